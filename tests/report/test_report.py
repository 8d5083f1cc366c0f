"""The report of a period: figures by hand, what is left out, and the forms it takes."""

import argparse
import csv
import json
import logging
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from llm_carbon_meter.cli import main
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report import server
from llm_carbon_meter.report.command import asked_period, make_report, moment
from llm_carbon_meter.report.entries import Period, read_log, within
from llm_carbon_meter.report.page import page
from llm_carbon_meter.report.plots import COLOURS, bar_edges
from llm_carbon_meter.report.text import Report, facts, table
from tests.support.browser import look

NOON = moment("2026-03-01T12:00:00Z")
COVERS = "energy of the GPUs alone, grams times PUE 1; embodied: the whole GPU board (pcf)"


def line(**changes: Any) -> dict[str, Any]:
    """A record of 1 Wh, 100 prompt and 400 output tokens, estimated at 0.8 Wh."""
    record = {
        "model": "Llama",
        "zone": "FR",
        "source": "measured",
        "quality": "counter",
        "prompt_tokens": 100,
        "output_tokens": 400,
        "energy_joules": 3600.0,
        "prefill_joules": 360.0,
        "decode_joules": 2880.0,
        "recompute_joules": 180.0,
        "waste_joules": 180.0,
        "idle_joules": 0.0,
        "operational_grams": 0.5,
        "embodied_grams": 0.1,
        "covers": COVERS,
        "intensity_source": "France 2024",
        "estimate": {
            "facility": False,
            "energy_joules": 1.0,
            "calibrated": {"energy_joules": 2880},
        },
        "features": {"arrived_unix_s": NOON},
    }
    return {**record, **changes}


def at(unix_s: float) -> dict[str, Any]:
    """The field of a request that came then."""
    return {"features": {"arrived_unix_s": unix_s}}


def write(path: Path, *records: dict[str, Any] | str) -> Path:
    """A log of these records; text is written as it is."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def report_of(folder: Path, *records: dict[str, Any] | str, by: str = "model") -> Report:
    """The report of a whole log."""
    return make_report(write(folder / "requests.jsonl", *records), Period(), by)


def csv_rows(
    folder: Path, *records: dict[str, Any] | str, by: str = "model"
) -> list[dict[str, str]]:
    """What the verb writes with ``--csv``."""
    log, target = write(folder / "requests.jsonl", *records), folder / "out.csv"
    assert main(["report", str(log), "--by", by, "--csv", str(target)]) == 0
    return list(csv.DictReader(target.read_text("utf-8").splitlines()))


def test_the_figures_are_those_by_hand(tmp_path: Path) -> None:
    """Two requests of 1 Wh and 2 Wh: sums, ratios, grams and the estimates' errors."""
    second = line(energy_joules=7200.0, decode_joules=6480.0, output_tokens=100, prompt_tokens=400)
    (row,) = csv_rows(tmp_path, line(), second)
    expected = {
        "requests": 2,
        "prompt_tokens": 500,
        "output_tokens": 500,
        "prefill_wh": 0.2,
        "decode_wh": 2.6,
        "recompute_wh": 0.1,
        "waste_wh": 0.1,
        "idle_wh": 0.0,
        "energy_wh": 3.0,
        "wh_per_1000_output_tokens": 6.0,
        "operational_grams": 1.0,
        "embodied_grams": 0.2,
        "sci_grams_per_request": 0.6,
        "sci_grams_per_1000_tokens": 1.2,
        "compared_requests": 2,
        "estimated_wh": 1.6,
        "compared_wh": 3.0,
        "error_percent": 100 * (1.6 / 3.0 - 1.0),
        "median_error_percent": 40.0,
    }
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected)
    assert (row["model"], row["source"], row["quality"]) == ("Llama", "measured", "counter 2")
    assert set(row) == {*expected, "model", "source", "quality"}


def test_measured_and_modelled_are_never_added(tmp_path: Path) -> None:
    """Each source has its own rows, also for the same model, and its own sum."""
    rows = csv_rows(tmp_path, line(), line(source="modelled"), line(source="modelled", model="B"))
    found = [(row["model"], row["source"], row["requests"]) for row in rows]
    assert found == [
        ("Llama", "measured", "1"),
        ("B", "modelled", "1"),
        ("Llama", "modelled", "1"),
        ("all", "modelled", "2"),
    ]


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        ("hour", ["2026-03-01 12:00", "2026-03-01 23:00", "2026-03-02 00:00", "all"]),
        ("day", ["2026-03-01", "2026-03-02", "all"]),
        ("zone", ["FR"]),
    ],
)
def test_requests_are_grouped_by_when_and_where_they_came(
    tmp_path: Path, by: str, labels: list[str]
) -> None:
    """Hours and days of UTC, or zones, in order."""
    times = [NOON, NOON + 43_199, NOON + 43_200]
    rows = csv_rows(tmp_path, *(line(**at(time)) for time in times), by=by)
    assert [row[by] for row in rows] == labels


def test_a_period_begins_with_its_first_second_and_ends_before_its_last(tmp_path: Path) -> None:
    """Neighbouring periods share no request."""
    path = write(tmp_path / "log", *(line(**at(NOON + second)) for second in range(3)))
    kept = within(read_log(path), Period(NOON, NOON + 2))
    assert [entry.arrived_unix_s - NOON for entry in kept.entries] == [0, 1]


def test_times_without_a_zone_are_utc() -> None:
    """The report shows UTC; so does it read."""
    assert moment("2026-03-01T12:00:00") == moment("2026-03-01T13:00:00+01:00") == NOON
    assert moment("2026-03-01") == NOON - 43_200
    with pytest.raises(argparse.ArgumentTypeError, match="'noon' is no ISO 8601 time"):
        moment("noon")
    for far in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-14:00"):
        with pytest.raises(argparse.ArgumentTypeError, match="no ISO 8601 time"):
            moment(far)


def test_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    """Also past nine, and nothing else that lies beside them."""
    for name in ("log", "log.1", "log.2", "log.10", "log.gz", "other.1"):
        write(tmp_path / name, line(model=name))
    log = read_log(tmp_path / "log")
    assert [entry.model for entry in log.entries] == ["log.10", "log.2", "log.1", "log"]
    (tmp_path / "log").unlink()
    assert len(read_log(tmp_path / "log").files) == 3


def test_broken_lines_are_counted_and_named(tmp_path: Path) -> None:
    """Whatever is wrong with them, the others are added up."""
    no_time = {name: value for name, value in line().items() if name != "features"}
    bad = ["{", "null", no_time, line(prompt_tokens="many"), line(operational_grams=float("nan"))]
    report = report_of(tmp_path, line(), *bad, line())
    assert len(report.log.entries) == 2
    assert [re.findall(r"line (\d)", text)[0] for text in report.log.broken] == list("23456")
    text = table(report)
    assert f"{tmp_path / 'requests.jsonl'}, line 4: no use for a report" in text
    assert "5 broken lines are left out" in text


def test_an_old_log_has_energy_but_no_sci(tmp_path: Path) -> None:
    """Fields that were not logged are dashes and remarks, never zeros."""
    new = ("embodied_grams", "covers", "idle_joules", "estimate", "intensity_source")
    old = {name: value for name, value in line().items() if name not in new}
    report = report_of(tmp_path, old, line())
    rows = dict(zip(*last_table(table(report), "sci_"), strict=True))
    assert rows["operational_grams"] == "1"
    assert rows["embodied_grams"] == rows["sci_grams_per_request"] == "-"
    assert ("boundary", "not said (1 requests)") in facts(report)
    assert ("boundary", f"{COVERS} (1 requests)") in facts(report)
    assert "1 requests have no embodied grams" in table(report)


def last_table(text: str, word: str) -> tuple[list[str], list[str]]:
    """Heading and last row of the table whose heading has a word."""
    (block,) = (part for part in text.split("\n\n") if word in part.splitlines()[1])
    lines = block.splitlines()
    return lines[1].split(), lines[-1].split()


def test_an_estimate_of_a_facility_is_not_compared(tmp_path: Path) -> None:
    """It contains what the GPU's counter does not."""
    facility = line(estimate={"facility": True, "energy_joules": 9e9})
    (row,) = csv_rows(tmp_path, facility, line(estimate=None))
    assert (row["compared_requests"], row["error_percent"]) == ("0", "")


def test_the_top_names_period_boundary_and_sources(tmp_path: Path) -> None:
    """What the figures are of is said before the figures."""
    said = dict(facts(report_of(tmp_path, line(), line(source="modelled"))))
    assert said["period"].startswith("whole log; requests came from 2026-03-01T12:00:00Z")
    assert said["boundary"] == f"{COVERS} (2 requests)"
    assert said["sources"] == "measured 1, modelled 1; never added to each other"
    assert said["grid"] == "FR: France 2024 (2 requests)"
    assert "compares two models" in said["note"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--since", "2027-01-01"], "no request came in the period.*the log's 1 requests came"),
        (["--since", "2026-03-02", "--until", "2026-03-01"], "the period is empty"),
        (["--csv", "/no/such/folder/out.csv"], "cannot be written.*another --csv"),
        (["--html", "/no/such/folder/out.html"], "cannot be written.*another --html"),
    ],
)
def test_what_cannot_be_done_is_an_error_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], error: str
) -> None:
    """Exit code 1 and one line."""
    log = write(tmp_path / "log", line())
    assert main(["report", str(log), *options]) == 1
    assert re.search(error, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "needs --since"),
        (["--since", "2026-03-01", "--by", "zone"], "zone needs a request log"),
        (["--since", "2026-03-01", "--html", "x.html"], "--html needs a request log"),
        (["--since", "2126-03-01"], "the period is empty"),
        (["--since", "2026-03-01"], "gave no answer.*address of a Prometheus server"),
    ],
)
def test_what_prometheus_cannot_tell_is_an_error(
    capsys: pytest.CaptureFixture[str], options: list[str], error: str
) -> None:
    """Also where nobody listens."""
    assert main(["report", "http://127.0.0.1:9", *options]) == 1
    assert re.search(error, capsys.readouterr().err)


class Prometheus:
    """A local server that answers every query alike."""

    def __init__(self, status: int) -> None:
        labels = {"model_name": "toy", "source": "measured", "account": "decode"}
        body = {"data": {"result": [{"metric": labels, "value": [0, "3600"]}]}}
        self.logins: list[str | None] = []
        prometheus = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                prometheus.logins.append(self.headers.get("Authorization"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.place = f"127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Prometheus":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (200, 0, "server: http://{place}\n"),
        (401, 1, "http://{place} gave no answer .*answered 401"),
    ],
)
def test_prometheus_of_this_host_is_asked_directly_and_its_login_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    status: int,
    code: int,
    said: str,
) -> None:
    """No proxy of the environment stands between; neither output, error nor log has the login."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with Prometheus(status) as prometheus, caplog.at_level(logging.DEBUG):
        url = f"http://user:SECRET@{prometheus.place}/SECRET"
        assert main(["report", url, "--since", "2026-03-01"]) == code
    text = "".join(capsys.readouterr())
    assert re.search(said.format(place=prometheus.place), text)
    assert set(prometheus.logins) == {"Basic dXNlcjpTRUNSRVQ="}
    assert "SECRET" not in text
    assert "user:SECRET" not in caplog.text


@pytest.mark.parametrize("url", ["http://user:SECRET", "http://x/?token=SECRET"])
def test_an_address_that_cannot_be_used_is_not_shown(
    capsys: pytest.CaptureFixture[str], url: str
) -> None:
    """It may have a password in it."""
    assert main(["report", url, "--since", "2026-03-01"]) == 1
    said = capsys.readouterr().err
    assert "cannot be used; give the address of a Prometheus server" in said
    assert "SECRET" not in said


def test_bars_are_hours_of_utc_cut_to_the_period() -> None:
    """They meet, and their names are when the hour began."""
    bars = server._bars(NOON + 1800.0, NOON + 2 * 3600 + 60.0, 3600.0)
    assert bars == {
        "2026-03-01 12:00 ": (NOON + 1800.0, NOON + 3600.0),
        "2026-03-01 13:00 ": (NOON + 3600.0, NOON + 7200.0),
        "2026-03-01 14:00 ": (NOON + 7200.0, NOON + 7260.0),
    }


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, "there is no request log.*give the file"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.touch(), "no finished request and 0 broken lines"),
        (lambda path: path.write_text("{\n"), "1 broken lines.*line 1: not a record"),
    ],
    ids=["missing", "a folder", "empty", "broken"],
)
def test_a_log_without_requests_is_an_error(
    tmp_path: Path, make: Callable[[Path], object], error: str
) -> None:
    """Nothing is not 0 Wh."""
    make(tmp_path / "log")
    with pytest.raises(MeterError, match=error):
        make_report(tmp_path / "log", Period(), "model")


def test_the_page_stands_alone_and_has_the_figures(tmp_path: Path) -> None:
    """No address, script or file beside it; a picture per source; names are escaped."""
    text = page(report_of(tmp_path, line(model="<b>&"), line(source="modelled", output_tokens=0)))
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert re.findall(r'src="([^"]{22})', text) == ["data:image/png;base64,"] * 2
    assert "<td>&lt;b&gt;&amp;</td>" in text
    assert "<dt>boundary</dt><dd>energy of the GPUs alone" in text
    assert "<td>2.5</td>" in text  # Wh per 1,000 output tokens


@pytest.mark.slow
def test_a_browser_shows_the_page_with_its_plots(tmp_path: Path) -> None:
    """Without a network: table, and a picture that has the colours of both phases."""
    records = [line(**at(NOON + 60 * minute)) for minute in range(9)]
    page_file, picture = tmp_path / "report.html", tmp_path / "report.png"
    log = write(tmp_path / "requests.jsonl", *records)
    assert main(["report", str(log), "--html", str(page_file)]) == 0
    assert "Llama" in look(page_file, picture)
    seen = {tuple(pixel) for pixel in np.round(imread(picture)[::2, ::2, :3] * 255).reshape(-1, 3)}
    for phase in ("prefill", "decode"):
        colour = COLOURS[phase].removeprefix("#")
        assert tuple(bytes.fromhex(colour)) in seen


@pytest.mark.parametrize("span_s", [0.0, 30.0, 4_000.0, 90_000.0, 3e7, 1e9])
def test_bars_hold_every_request_and_are_few(span_s: float) -> None:
    """Of a round length, from before the first request to after the last."""
    times = NOON + 0.5 + np.array([0.0, span_s])
    edges = bar_edges(times)
    assert edges[0] <= times[0]
    assert times[1] < edges[-1]
    assert len(edges) <= 62 or span_s == 1e9


def test_a_period_left_open_is_the_whole_log() -> None:
    """Either end may be left out."""
    assert str(asked_period(None, None)) == "whole log"
    assert str(asked_period(NOON, None)) == "from 2026-03-01T12:00:00Z"
    assert str(asked_period(None, NOON)) == "until before 2026-03-01T12:00:00Z"


ODD = {
    "energy beyond all GPUs": line(energy_joules=1e300),
    "energy that overflows": line(energy_joules=1.7e308, decode_joules=1.7e308),
    "a time in milliseconds": line(**at(1.77e12)),
    "a time after the last year": line(**at(1e300)),
    "a time before the first year": line(**at(-1e12)),
    "a negative time": line(**at(-86_400.0 * 365)),
    "a far time": line(**at(4e9)),
    "mathematics in a name": line(model="$x^$", source="mea$ured^"),
    "too many tokens": json.dumps(line()).replace("400,", "4" + "0" * 400 + ",", 1),
    "more tokens than models have": line(output_tokens=10**18),
    "negative tokens": line(output_tokens=-5, prompt_tokens=-5),
    "negative energy": line(energy_joules=-3600.0, decode_joules=-3600.0),
    "grams beyond the planet": line(operational_grams=1e300, embodied_grams=1e300),
    "an estimate beyond all GPUs": line(estimate={"energy_joules": 1e300}),
    "an estimate of nothing": line(estimate={"energy_joules": -1.0}),
    "a name of control characters": line(model="\x1b[2J\x00\n\r\u202eevil"),
    "half a character": '{"model": "\\ud800", ' + json.dumps(line(model="x"))[15:],
    "a name without end": line(model="x" * 100_000),
    "a hidden name": line(model="_x"),
    "no name": line(model=""),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_one_odd_line_ends_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], odd: dict[str, Any] | str
) -> None:
    """Neither text nor table nor page, nor the replay; what cannot be is named and left out."""
    log = write(tmp_path / "requests.jsonl", line(), odd, line())
    files = ["--csv", str(tmp_path / "out.csv"), "--html", str(tmp_path / "out.html")]
    for by in ("model", "hour"):
        assert main(["report", str(log), "--by", by, *files]) == 0
        text = capsys.readouterr().out
        assert "\x1b" not in text
        for written in (text, (tmp_path / "out.csv").read_text(), page_of(tmp_path)):
            assert not re.search(r"\b(nan|inf)\b", written)
    assert main(["replay", str(log)]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


def page_of(folder: Path) -> str:
    """The page's text, without its pictures."""
    return re.sub('base64,[^"]*', "", (folder / "out.html").read_text())


def test_what_cannot_be_is_a_broken_line(tmp_path: Path) -> None:
    """With the field, what it holds, and what was expected."""
    report = report_of(tmp_path, line(), line(energy_joules=1e300), line(**at(1.77e12)))
    assert len(report.log.entries) == 1
    energy, time = report.log.broken
    assert "line 2: no use for a report: energy_joules is 1e+300; expected" in energy
    assert "line 3: no use for a report: arrived_unix_s is 1770000000000.0; expected" in time


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_name_is_no_formula(tmp_path: Path, name: str) -> None:
    """A spreadsheet that opens the table runs nothing; figures stay figures."""
    (row,) = csv_rows(tmp_path, line(model=name, energy_joules=-1.0, prefill_joules=-1.0))
    assert row["model"][0] in "'\ufffd"
    assert float(row["energy_wh"]) < 0
