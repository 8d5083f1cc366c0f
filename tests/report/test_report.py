"""The report of a period: figures by hand, what is left out, and the forms it takes."""

import argparse
import gzip
import json
import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from matplotlib.image import imread

from llm_carbon_meter.cli import main
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.command import asked_period
from llm_carbon_meter.report.page import page
from llm_carbon_meter.report.periods import Period, moment
from llm_carbon_meter.report.plots import COLOURS, bar_edges
from llm_carbon_meter.report.server import bars_of
from llm_carbon_meter.report.text import facts, table
from tests.support.browser import look
from tests.support.reports import COVERS, NOON, at, csv_rows, line, made, report_of, reported, write


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
    empty = ("host_wh", "water_litres", "energy_cost", "gpu_cost", "cost_currency")
    assert [row[name] for name in (*empty, "at_most_off_percent")] == [""] * 6
    assert set(row) == {*expected, *empty, "at_most_off_percent", "model", "source", "quality"}


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
        ("month", ["2026-03"]),
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
    report = made(path, Period(NOON, NOON + 2))
    assert report.requests == 2
    assert report.came == "from 2026-03-01T12:00:00Z to 2026-03-01T12:00:01Z"


def test_times_without_a_zone_are_utc() -> None:
    """The report shows UTC; so does it read."""
    assert moment("2026-03-01T12:00:00") == moment("2026-03-01T13:00:00+01:00") == NOON
    assert moment("2026-03-01") == NOON - 43_200
    with pytest.raises(argparse.ArgumentTypeError, match="'noon' is no ISO 8601 time"):
        moment("noon")
    for far in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-14:00"):
        with pytest.raises(argparse.ArgumentTypeError, match="no ISO 8601 time"):
            moment(far)


def test_broken_lines_are_counted_and_named(tmp_path: Path) -> None:
    """Whatever is wrong with them, the others are added up."""
    no_time = {name: value for name, value in line().items() if name != "features"}
    bad = ["{", "null", no_time, line(prompt_tokens="many"), line(operational_grams=float("nan"))]
    report = report_of(tmp_path, line(), *bad, line())
    assert report.requests == 2
    assert report.broken.lines == 5
    assert [re.findall(r"line (\d)", text)[0] for text in report.broken.texts] == list("23456")
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
    told = facts(report_of(tmp_path, line(), line(source="modelled")))
    said = dict(reversed(told))
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


def test_bars_are_hours_cut_to_the_period() -> None:
    """They meet, and their names are when the hour began."""
    bars = bars_of(NOON + 1800.0, NOON + 2 * 3600 + 60.0, "hour", UTC)
    assert bars == {
        "2026-03-01 12:00 ": (NOON + 1800.0, NOON + 3600.0),
        "2026-03-01 13:00 ": (NOON + 3600.0, NOON + 7200.0),
        "2026-03-01 14:00 ": (NOON + 7200.0, NOON + 7260.0),
    }


def test_bars_of_a_time_zone_follow_its_summer_time() -> None:
    """A day of 23 hours; an hour of autumn that comes twice has two names."""
    berlin = ZoneInfo("Europe/Berlin")
    spring = moment("2026-03-28", berlin)
    days = bars_of(spring, spring + 3 * 86_400, "day", berlin)
    assert [(end - begin) / 3600 for begin, end in days.values()] == [24.0, 23.0, 24.0, 1.0]
    autumn = moment("2026-10-25T01:00", berlin)
    hours = bars_of(autumn, autumn + 4 * 3600, "hour", berlin)
    assert list(hours)[1:3] == ["2026-10-25 02:00 +0200 ", "2026-10-25 02:00 +0100 "]
    months = bars_of(moment("2026-01-31"), moment("2026-03-02"), "month", UTC)
    assert list(months) == ["2026-01 ", "2026-02 ", "2026-03 "]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, "there is no request log.*give the file"),
        (lambda path: path.mkdir(), "there is no request log"),
        (lambda path: path.touch(), "no finished request and 0 broken lines"),
        (lambda path: path.write_text("{\n"), "1 broken lines.*line 1: not a record"),
    ],
    ids=["missing", "an empty folder", "empty", "broken"],
)
def test_a_log_without_requests_is_an_error(
    tmp_path: Path, make: Callable[[Path], object], error: str
) -> None:
    """Nothing is not 0 Wh."""
    make(tmp_path / "log")
    with pytest.raises(MeterError, match=error):
        made(tmp_path / "log")


def test_the_page_stands_alone_and_has_the_figures(tmp_path: Path) -> None:
    """No address, script or file beside it; a picture per source; names are escaped."""
    log = write(tmp_path / "log", line(model="<b>&"), line(source="modelled", output_tokens=0))
    with reported(log) as (connection, report):
        text = page(connection, report)
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert re.findall(r'src="([^"]{22})', text) == ["data:image/png;base64,"] * 2
    assert '<td class="word">&lt;b&gt;&amp;</td>' in text
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
    edges = bar_edges(*times)
    assert edges[0] <= times[0]
    assert times[1] < edges[-1]
    assert len(edges) <= 62 or span_s == 1e9


def test_a_period_left_open_is_the_whole_log() -> None:
    """Either end may be left out."""
    assert str(asked()) == "whole log"
    assert str(asked(since="2026-03-01T12:00")) == "from 2026-03-01T12:00:00Z"
    assert str(asked(until="2026-03-01T12:00")) == "until before 2026-03-01T12:00:00Z"


def asked(zone: str = "UTC", now: str = "2026-03-31T22:30:00Z", **texts: str) -> Period:
    """What options ask for at some time."""
    options = {"since": None, "until": None, "period": None, "timezone": ZoneInfo(zone), **texts}
    return asked_period(argparse.Namespace(**options), moment(now))


@pytest.mark.parametrize(
    ("zone", "period", "since", "until"),
    [
        ("UTC", "today", "2026-03-31T00:00Z", "2026-04-01T00:00Z"),
        ("UTC", "yesterday", "2026-03-30T00:00Z", "2026-03-31T00:00Z"),
        ("UTC", "this-month", "2026-03-01T00:00Z", "2026-04-01T00:00Z"),
        ("UTC", "last-month", "2026-02-01T00:00Z", "2026-03-01T00:00Z"),
        ("UTC", "this-week", "2026-03-30T00:00Z", "2026-04-06T00:00Z"),
        ("UTC", "last-week", "2026-03-23T00:00Z", "2026-03-30T00:00Z"),
        ("UTC", "2026-12", "2026-12-01T00:00Z", "2027-01-01T00:00Z"),
        ("UTC", "2026-02-28", "2026-02-28T00:00Z", "2026-03-01T00:00Z"),
        # There it is April already, and summer time began in March.
        ("Europe/Berlin", "today", "2026-03-31T22:00Z", "2026-04-01T22:00Z"),
        ("Europe/Berlin", "last-month", "2026-02-28T23:00Z", "2026-03-31T22:00Z"),
        ("America/New_York", "today", "2026-03-31T04:00Z", "2026-04-01T04:00Z"),
    ],
)
def test_periods_of_the_calendar_are_those_of_the_time_zone(
    zone: str, period: str, since: str, until: str
) -> None:
    """Days, weeks from Monday, months; with summer time where it begins."""
    assert asked(zone, period=period) == Period(moment(since), moment(until))


@pytest.mark.parametrize("period", ["last-year", "2026-13", "2026-02-30", "9999-12"])
def test_what_is_no_period_is_an_error(period: str) -> None:
    """It names those that are; both ends cannot be told twice."""
    with pytest.raises(argparse.ArgumentTypeError, match="is no period; give one of today"):
        asked(period=period)
    with pytest.raises(MeterError, match="--period has both ends"):
        asked(period=period, since="2026-03-01")


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
    assert report.requests == 1
    energy, time = report.broken.texts
    assert "line 2: no use for a report: energy_joules is 1e+300; expected" in energy
    assert "line 3: no use for a report: arrived_unix_s is 1770000000000.0; expected" in time


def test_figures_that_are_none_are_never_lost_in_silence(tmp_path: Path) -> None:
    """Optional ones, too: a text among the grams is not 0 grams."""
    odd = [
        line(operational_grams="many"),
        line(estimate={"calibrated": {"energy_joules": []}}),
        line(source="guessed"),
        line(uncertainty=-1.0),
        line(pue=0.0),
    ]
    report = report_of(tmp_path, line(), *odd)
    assert (report.requests, report.broken.lines) == (1, len(odd))
    fields = ("operational_grams", "estimate_calibrated", "source", "uncertainty", "pue")
    for text, field in zip(report.broken.texts, fields, strict=True):
        assert f"no use for a report: {field}" in text


def test_lines_are_counted_with_those_that_are_empty(tmp_path: Path) -> None:
    """As an editor shows them; also in a packed file."""
    texts = [json.dumps(line()), "", "   ", "{", "", json.dumps(line(prompt_tokens=-1))]
    (tmp_path / "log").write_text("\r\n".join(texts))
    packed = tmp_path / "log.20260301T000000.000000Z.gz"
    packed.write_bytes(gzip.compress("\n".join(texts).encode()))
    told = made(tmp_path / "log").broken.texts
    assert [re.findall(r"(log\S*), line (\d)", text)[0] for text in told] == [
        ("log", "4"),
        ("log", "6"),
        (packed.name, "4"),
        (packed.name, "6"),
    ]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_name_is_no_formula(tmp_path: Path, name: str) -> None:
    """A spreadsheet that opens the table runs nothing; figures stay figures."""
    (row,) = csv_rows(tmp_path, line(model=name, energy_joules=-1.0, prefill_joules=-1.0))
    assert row["model"][0] in "'\ufffd"
    assert float(row["energy_wh"]) < 0


def test_a_file_with_a_line_beyond_all_bounds_is_named_and_left_out(tmp_path: Path) -> None:
    """The lines of other files are in the report."""
    write(tmp_path / "log.1", line(), line(model="x" * 40_000_000))
    report = made(write(tmp_path / "log", line()))
    assert report.requests == 1
    (text,) = report.broken.texts
    assert f"{tmp_path / 'log.1'}: cannot be read, left out: " in text
