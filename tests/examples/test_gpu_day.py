"""A GPU day, without a GPU: budgets, resuming, parts that fail, its numbers and its words."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_carbon_meter.campaign.subsets import subsets
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.testing.scrape import Entry, Scrape
from tests.support.waiting import eventually

SCRIPTS = Path(__file__).parents[2] / "examples" / "gpu_day"
NAMES = (
    *("rows", "session", "plan", "gpu", "part", "day", "truth", "estimates"),
    *("report", "tables", "cards", "balance", "start"),
)
GPU = "NVIDIA H100 80GB HBM3"
HOST = {
    "gpu": GPU,
    "architecture": "Hopper",
    "driver": "580",
    "power_limit_watts": 700.0,
    "python": "3.12.3",
    "versions": {"torch": "2.11.0", "transformers": "5.17.0"},
}


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules, which import each other as scripts of one folder do."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(SCRIPTS)
    before = set(sys.modules)
    yield SimpleNamespace(**{name: __import__(name) for name in NAMES}, served=_served())
    for name in set(sys.modules) - before:
        if "gpu_day" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _served() -> Any:
    import part_served

    return part_served


def options(day: Any, folder: Path) -> Any:
    """Of a rehearsal."""
    return day.part.Options(folder / "out", folder / "scratch", "transformers", True)


def ended(part: str, how: str, note: str = "") -> dict[str, Any]:
    """A row of a part's end."""
    return {"part": part, "kind": "ended", "how": how, "note": note, "seconds": 1.0, "key": ""}


def made_day(day: Any, out: Path, source: str, **changes: Any) -> Any:
    """A folder with a row of everything; energies are made up."""
    rows = day.rows.RowsFile(out, source)
    rows.add("host", "host", **HOST)
    watts = {"counter_watts": 300.0, "instant_watts": 299.0, "counter_to_power": 1.003}
    calls = {"call_median_s": 1e-5, "call_p99_s": 2e-5, "intervals_ms": {"100": 50}}
    rows.add("sensor", "load", "idle", period_s=0.1, **watts, **calls)
    for number, lag_s in enumerate((0.02, 0.03, 0.05)):
        rows.add("sensor", "onset", str(number), lag_s=lag_s)
    for subset, joules in zip(subsets(2), (10.0, 20.0, 26.0), strict=True):
        about = {"batch": "decode", "requests": [[1, 500], [1, 16000]], "members": list(subset)}
        rows.add(
            "shares", "subset", "+".join(map(str, subset)), joules=joules, step_s=0.01, **about
        )
    for number, factor in enumerate((0.8, 1.0, 1.5)):
        rows.add("served", "request", str(number), **request(100.0, factor))
    rows.add("served", "balance", "0", **{**BALANCE, **changes})
    rows.add("throughput", "pair", "0", metered=97.0, plain=100.0)
    rows.add("throughput", "pair", "1", metered=99.0, plain=100.0)
    rows.add("sensor", "ended", how="complete", note="", seconds=50.0)
    rows.add("served", "ended", how="short", note="197 of 200 requests", seconds=120.0)
    rows.close()
    return day.report.findings(out)


def request(joules: float, factor: float) -> dict[str, Any]:
    """A served request whose estimates are its own joules times a factor."""
    measured = {"energy_joules": joules, "prefill_joules": 20.0, "decode_joules": joules - 20.0}
    told = {name: value * factor for name, value in measured.items()}
    half = {name: value / 2 for name, value in told.items()}
    bounds = {"low_joules": 0.9 * joules * factor, "high_joules": 1.1 * joules * factor}
    estimate = {"raw": half, "calibrated": told, **bounds, "output_tokens": 9, "out_of_domain": ""}
    others = {"output_tokens": 50, "mean_running": 3.0, "quality": "counter", "idle_joules": 0.0}
    return {**measured, **others, "estimate": estimate, "conditional": None}


BALANCE = {
    "counter_joules": 2000.0,
    "accounts_joules": {"prefill": 100.0, "decode": 900.0, "idle": 980.0, "unattributed": 0.0},
    "requests_accounts_joules": 1000.0,
    "records_joules": 999.0,
    "resolution_joules": 50.0,
    "counter_lag_s": 0.028,
    "sampler_read_s": 0.001,
    "serving_s": 10.0,
    "num_failed": 1,
}


def test_budgets_are_shares_of_what_is_left(day: Any) -> None:
    """What a part does not use is for those after it, by weight."""
    whole = day.day.budgets(day.day.PARTS, 480.0)
    assert sum(whole.values()) == pytest.approx(480)
    later = day.day.budgets(day.day.PARTS[1:], 480.0)
    assert all(later[part.name] > whole[part.name] for part in day.day.PARTS[1:])
    ratio = later["served"] / later["campaign"]
    assert ratio == pytest.approx(whole["served"] / whole["campaign"])


def test_eight_minutes_begin_every_part(day: Any) -> None:
    """Each share is more than what the part needs, with a spare for the preparation."""
    shares = day.day.budgets(day.day.PARTS, 8 * 60 - day.day.RESERVE_S - 20)
    assert all(shares[part.name] > part.least_s for part in day.day.PARTS)


class Children:
    """Parts that end as they are told, instead of processes."""

    def __init__(self, day: Any, folder: Path, **codes: Any) -> None:
        self.began: list[str] = []
        self.limits_s: dict[str, float] = {}
        self._day, self._folder, self._codes = day, folder, codes

    def run(self, name: str, budget_s: float, limit_s: float) -> int | None:
        self.began.append(name)
        self.limits_s[name] = limit_s / budget_s
        code: int | None = self._codes.get(name, 0)
        if code in (0, 1):
            rows = self._day.rows.RowsFile(self._folder, "simulated")
            how, note = (("complete", ""), ("failed", "CudaError: gone"))[code]
            rows.add(name, "ended", how=how, note=note, seconds=1.0)
            rows.close()
        return code


def run_parts(day: Any, folder: Path, **codes: Any) -> tuple[list[str], Any]:
    """One run of all parts: those that began, and the rows afterwards."""
    chosen = options(day, folder)
    (chosen.scratch / "model").mkdir(parents=True, exist_ok=True)
    rows = day.rows.RowsFile(chosen.out, "simulated")
    children = Children(day, chosen.out, **codes)
    with contextlib.closing(rows):
        day.day.run_parts(chosen, children, rows, time.monotonic() + 60)
    return children.began, rows


def test_a_part_that_fails_stops_no_other_and_is_tried_again(day: Any, tmp_path: Path) -> None:
    """What is complete is not measured a second time."""
    began, rows = run_parts(day, tmp_path, shares=1, campaign=None)
    assert began == [part.name for part in day.day.PARTS]
    (failed,) = rows.of("shares", "ended")
    assert failed["note"] == "CudaError: gone"
    (cut,) = rows.of("campaign", "ended")
    assert (cut["how"], cut["note"]) == ("cut", "ended after 90 s")
    assert run_parts(day, tmp_path)[0] == ["shares", "campaign"]
    assert run_parts(day, tmp_path)[0] == []


def test_a_process_that_dies_is_noted(day: Any, tmp_path: Path) -> None:
    """It could not say so itself."""
    _, rows = run_parts(day, tmp_path, sensor=-9)
    (died,) = rows.of("sensor", "ended")
    assert died["note"] == "its process ended with code -9"


def test_a_model_that_is_gone_is_made_again(day: Any, tmp_path: Path) -> None:
    """Only for parts that still need it."""
    chosen = options(day, tmp_path)
    done = [ended(part.name, "complete") for part in day.day.PARTS]
    assert day.day.still_to_do(done, chosen) == []
    todo = day.day.still_to_do([row for row in done if row["part"] != "served"], chosen)
    assert [part.name for part in todo] == ["model", "served"]


def test_on_a_gpu_a_part_without_its_least_time_is_not_begun(day: Any, tmp_path: Path) -> None:
    """It says how much it had and how much it needs."""
    chosen = day.part.Options(tmp_path / "out", tmp_path / "scratch", "transformers", False)
    rows = day.rows.RowsFile(chosen.out, "measured")
    children = Children(day, chosen.out)
    day.day.run_parts(chosen, children, rows, time.monotonic() + 20)
    rows.close()
    assert children.began == []
    (note,) = [row["note"] for row in rows.of("served", "ended")]
    assert note.startswith("not begun: ")
    assert note.endswith("it needs 75")


def test_on_a_gpu_a_part_is_ended_soon_after_its_budget(day: Any, tmp_path: Path) -> None:
    """The making of the model has twice its budget: without it nothing is served."""
    chosen = day.part.Options(tmp_path / "out", tmp_path / "scratch", "transformers", False)
    rows = day.rows.RowsFile(chosen.out, "measured")
    children = Children(day, chosen.out, **{part.name: None for part in day.day.PARTS})
    with contextlib.closing(rows):
        day.day.run_parts(chosen, children, rows, time.monotonic() + 480)
    assert list(children.limits_s) == [part.name for part in day.day.PARTS]
    last = children.limits_s.pop("throughput")
    assert last == pytest.approx(1, abs=0.01)
    assert children.limits_s.pop("model") > 2
    assert all(1 < limit < 1.2 for limit in children.limits_s.values())


def test_an_interrupted_part_says_so(
    day: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none after it begins."""

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Children, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_parts(day, tmp_path)
    rows, _ = day.rows.read_rows(tmp_path / "out" / day.rows.NAME)
    assert [(row["part"], row["note"]) for row in rows] == [("sensor", "interrupted")]


def test_a_part_ends_with_all_its_processes_when_the_day_is_killed(
    day: Any, tmp_path: Path
) -> None:
    """Nobody else would free the GPU: a server in a group of its own goes too."""
    part = (
        "import subprocess, sys, time\n"
        f"sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from session import end_with_parent\n"
        "end_with_parent()\n"
        "subprocess.Popen(['sleep', '60'], process_group=0)\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {part!r}], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    with killed:
        assert killed.stdout is not None
        session = int(killed.stdout.readline())
        assert killed.stdout.readline() == "begun\n"
        assert len(day.session.groups_of(session)) == 2
        killed.kill()
    eventually(lambda: not day.session.groups_of(session), "the end of the session")


def test_an_error_inside_a_part_is_a_row(day: Any, tmp_path: Path) -> None:
    """How it begins and how it ends, and the time until then."""
    rows = day.rows.RowsFile(tmp_path, "simulated")
    world = day.part.Day(options(day, tmp_path), None, rows, time.monotonic() + 9)

    def broken(_: Any) -> str:
        raise ValueError("the server ended; its log:\nmany\nlines\nno such option")

    assert day.part.execute("served", world, broken) == "failed"
    assert day.part.execute("served", world, lambda _: "3 of 9 requests") == "short"
    rows.close()
    first, second = rows.of("served", "ended")
    assert first["note"] == "ValueError: the server ended; its log: … no such option"
    assert (second["how"], second["note"]) == ("short", "3 of 9 requests")


def test_rows_survive_a_kill_in_the_middle_of_a_line(day: Any, tmp_path: Path) -> None:
    """Half a line is left out and said; the rows after it are whole."""
    rows = day.rows.RowsFile(tmp_path, "simulated")
    rows.add("sensor", "load", "idle", watts=1.0)
    rows.close()
    path = tmp_path / day.rows.NAME
    path.write_text(path.read_text() + '{"part": "sensor", "kind": "lo')
    again = day.rows.RowsFile(tmp_path, "simulated")
    assert again.remarks == ["line 2 of rows.jsonl cannot be read and is left out"]
    again.add("sensor", "load", "decode", watts=2.0)
    again.close()
    kept, _ = day.rows.read_rows(path)
    assert [row["key"] for row in kept] == ["idle", "decode"]


@pytest.mark.parametrize("line", ["[1]", "7", '{"kind": "load"}', "\x00"])
def test_a_line_that_is_no_row_is_left_out(day: Any, tmp_path: Path, line: str) -> None:
    """Whatever it is."""
    path = tmp_path / day.rows.NAME
    path.write_text(line + "\n")
    rows, remarks = day.rows.read_rows(path)
    assert (rows, len(remarks)) == ([], 1)


def test_simulated_and_measured_rows_are_never_in_one_folder(day: Any, tmp_path: Path) -> None:
    """The second run is refused before it measures."""
    made_day(day, tmp_path, "simulated")
    with pytest.raises(day.rows.DayError, match="has simulated rows, and this run is measured"):
        day.rows.RowsFile(tmp_path, "measured")


def test_a_folder_that_cannot_be_written_is_named(day: Any, tmp_path: Path) -> None:
    """A file stands in its place."""
    (tmp_path / "out").write_text("")
    with pytest.raises(day.rows.DayError, match="name another OUT"):
        day.rows.RowsFile(tmp_path / "out", "simulated")
    with pytest.raises(day.start.StartError, match="cannot be written"):
        day.start.check_out(tmp_path / "out")


def test_the_table_has_the_errors_of_its_rows(day: Any, tmp_path: Path) -> None:
    """Each against the figure that is known: lag, estimates, joules, tokens per second."""
    cells = {row[0]: row[1:] for row in day.tables.table(made_day(day, tmp_path, "measured"))}
    assert cells["lag of the counter, 3 onsets of a load"] == ("30 ms", "ledger: 28 ms", "-2 ms")
    (judged,) = (row for name, row in cells.items() if "estimate before it ran" in name)
    assert judged[1:] == ("calibrated", "median absolute error 20%, median +0%")
    joules = cells["joules while requests were served"]
    assert joules == ("counter 2000 J ± 50 J", "all accounts 1980 J", "-1%")
    assert cells["joules charged to requests"][-1] == "-0.1%"
    speed = cells["tokens per second, 2 pairs of rounds by turns"]
    assert speed[1:] == ("with it: 0.980", "0.970 to 0.990")


def test_exact_shares_of_known_joules(day: Any, tmp_path: Path) -> None:
    """10 J and 20 J alone, 26 J together: 8 and 18 of them; equal shares are wrong by a fifth."""
    model = CostModel(gpu_spec("H100"), step_costs(built_in_model("Llama-3.1-8B")))
    (one,) = day.truth.shares(made_day(day, tmp_path, "measured").rows, model)
    assert one.exact == pytest.approx([8 / 26, 18 / 26])
    assert one.errors("equal") == pytest.approx([0.5 - 8 / 26, 0.5 - 18 / 26])
    assert one.relative_errors("equal") == pytest.approx([13 / 8 - 1, 13 / 18 - 1])
    assert sum(one.meter["shapley"]) == pytest.approx(1)


def test_a_batch_with_a_subset_missing_has_no_exact_shares(day: Any) -> None:
    """Two of three are not enough."""
    rows = [
        {"part": "shares", "kind": "subset", "batch": "b", "requests": [[1, 5], [1, 6]],
         "members": [member], "joules": 1.0, "step_s": 0.1}
        for member in (0, 1)
    ]  # fmt: skip
    assert day.truth.shares(rows, None) == []


def test_estimates_are_judged_by_phase_and_stage(day: Any, tmp_path: Path) -> None:
    """Signed and by size; the raw ones are half of the calibrated."""
    found = day.truth.estimate_errors(made_day(day, tmp_path, "measured").rows)
    errors = {(one.stage, one.phase): one for one in found}
    assert errors["calibrated", "whole request"].median == pytest.approx(0)
    assert errors["calibrated", "whole request"].median_size == pytest.approx(0.2)
    assert errors["raw", "decode"].median == pytest.approx(-0.5)
    assert errors["raw", "prefill"].requests == 3


def test_the_interval_counts_what_it_holds(day: Any, tmp_path: Path) -> None:
    """Of three estimates with ten percent on either side, one holds its request."""
    found = made_day(day, tmp_path, "measured")
    assert day.truth.inside(found.rows) == (1, 3)
    (row,) = (row for row in day.tables.table(found) if "interval" in row[0])
    assert row[2] == "1 of 3, 33.3%"


def test_what_was_served_is_told_with_its_quality(day: Any, tmp_path: Path) -> None:
    """Requests, tokens, seconds, company, and answers that were given up."""
    text = day.tables.served_text(made_day(day, tmp_path, "measured").rows)
    assert text == (
        "3 requests with 150 output tokens in 10 s, a median of 3 at once; quality counter; "
        "1 given up. A reading of the meter took 1 ms."
    )
    assert day.tables.served_text([]) == ""


def test_decode_is_the_whole_answer_less_its_prefill(day: Any) -> None:
    """Medians of good repetitions; a configuration without one of the phases is left out."""
    common = dict.fromkeys(("engine", "engine_version", "dtype", "gpu"), "x")
    load = {"model": "m", "batch": "8", "prompt_tokens": "100", "output_tokens": "10"}

    def raw(phase: str, joules: float, status: str = "ok", **others: str) -> dict[str, str]:
        about = {"phase": phase, "joules_per_request": str(joules), "status": status}
        return {**common, **load, **about, **others}

    whole = [raw("prefill+decode", joules) for joules in (9.0, 11.0, 12.0)]
    prefill = [raw("prefill", 3.0), raw("prefill", 90.0, "throttled")]
    (one,) = day.truth.configurations([*whole, *prefill, raw("prefill", 1.0, model="other")])
    assert (one.batch, one.prefill_joules, one.decode_joules) == (8, 3.0, 8.0)


def test_the_estimate_is_that_of_the_verb(day: Any) -> None:
    """The same request, by the same predictor, on the command line."""
    where = ("transformers", "5.17.0", "bfloat16", GPU)
    asked = day.truth.Configuration("Llama-3.1-8B", 8, 1020, 129, *where, 1.0, 1.0)
    ((prefill, decode),) = day.estimates.estimated([asked])
    command = (
        *(sys.executable, "-m", "llm_carbon_meter.cli", "estimate", "--model", "Llama-3.1-8B"),
        *("--gpu", "H100", "--engine", "transformers", "--engine-version", "5.17.0"),
        *("--concurrency", "8", "--prompt-tokens", "1020", "--output-tokens", "129"),
    )
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = {line.split()[0]: float(line.split()[1]) for line in shown.splitlines()[2:5]}
    assert prefill / 3600 == pytest.approx(figures["prefill"], rel=0.01)
    assert decode / 3600 == pytest.approx(figures["decode"], rel=0.01)


def test_a_balance_is_taken_between_moves_of_the_counter(day: Any) -> None:
    """At 100 W: 1100 J by the counter in eleven seconds, whatever its ticks.

    Of several scrapes the one counts that is as far behind as most are.
    """
    from llm_carbon_meter.records import EnergyReading

    ticks = [EnergyReading(0.05 * n, "g", 10.0 * (n // 2)) for n in range(400)]
    entries = [Entry("g", "measured", account) for account in ("decode", "idle")]

    def booked(at_s: float, *joules: float) -> Scrape:
        return Scrape(at_s, dict(zip(entries, joules, strict=True)), (1.0,))

    before = [booked(3.0, 0.0, 200.0), booked(4.0, 0.0, 300.0), booked(5.0, 0.0, 420.0)]
    after = [booked(14.0, 600.0, 700.0), booked(15.0, 600.0, 720.0)]
    found = day.balance.balance(before, after, ticks, 598.0)
    assert found["counter_joules"] == pytest.approx(1100)
    assert found["span_s"] == pytest.approx(11)
    assert sum(found["accounts_joules"].values()) == 1100
    assert found["accounts_joules"]["decode"] == 600
    assert found["requests_accounts_joules"] == 600
    assert found["records_joules"] == 598
    assert found["resolution_joules"] == pytest.approx(80)
    alike = day.balance.balance(before, after[:1], ticks, 598.0)
    assert alike["resolution_joules"] == pytest.approx(60)  # of 0.6 s at 100 W


def test_gauges_are_read_from_metrics(day: Any) -> None:
    """With and without labels; what is absent is unknown."""
    text = 'llm_carbon_meter_gpu_energy_lag_seconds{gpu="a",engine="0"} 0.031\nother 1\n'
    assert day.served.value_of(text, "gpu_energy_lag_seconds") == 0.031
    assert day.served.value_of(text, "sampler_read_seconds") is None


def test_a_report_of_a_rehearsal_says_so_first(day: Any, tmp_path: Path) -> None:
    """And none of its lines claims that something was measured."""
    text = day.report.report(made_day(day, tmp_path, "simulated"), [])
    lines = text.splitlines()
    assert "rehearsal" in lines[0]
    assert lines[2].startswith("**Simulated: a rehearsal on the stub library of NVML.")
    assert "Measured** on" not in text


def test_a_report_says_what_is_missing_and_why(day: Any, tmp_path: Path) -> None:
    """Parts that did not begin, that ended early, and lines that could not be read."""
    out = tmp_path / "out"
    made_day(day, out, "measured")
    with (out / day.rows.NAME).open("a") as file:
        file.write('{"half')
    text = day.report.report(day.report.findings(out), [])
    assert "| served | requests of the Azure trace" in text
    assert "| short | 120 | 197 of 200 requests |" in text
    assert "| campaign | prefill and decode apart, three models | not begun | - |  |" in text
    assert "cannot be read and is left out" in text
    assert text.splitlines()[2].startswith(f"**Measured** on one {GPU}")


def test_a_folder_without_a_day_is_refused(day: Any, tmp_path: Path) -> None:
    """There is nothing to report."""
    with pytest.raises(day.rows.DayError, match="no rows of a GPU day"):
        day.report.findings(tmp_path)


def test_cards_name_their_source_in_their_first_line(day: Any, tmp_path: Path) -> None:
    """And in the file's name, where it is a rehearsal."""
    for source, first in (("measured", "Source: measured."), ("simulated", "Source: SIMULATED")):
        out = tmp_path / source
        written = day.cards.write_cards(out, made_day(day, out, source))
        (card,) = (path for path in written if path.suffix == ".md" and "measurements" in str(path))
        assert card.read_text().startswith(first)
        assert ("rehearsal" in card.name) is (source == "simulated")


def test_the_sensors_row_is_that_of_the_package(day: Any, tmp_path: Path) -> None:
    """Period of the loads, median lag of the onsets; none while one is missing."""
    found = made_day(day, tmp_path, "measured")
    written = day.cards.write_cards(tmp_path, found)
    (path,) = (path for path in written if path.name == "sensors.json")
    row = json.loads(path.read_text())["gpus"][GPU]
    assert (row["period_s"], row["lag_s"], row["source"]) == (0.1, 0.03, "measured")
    short = found._replace(rows=[row for row in found.rows if row["kind"] != "onset"])
    assert day.cards.sensor_notes(short) == {}


def test_only_what_a_gpu_measured_is_adopted(day: Any, tmp_path: Path) -> None:
    """A rehearsal leaves the repository as it was."""
    root = tmp_path / "root"
    made_day(day, tmp_path / "rehearsed", "simulated")
    with pytest.raises(day.rows.DayError, match="only what a GPU measured is adopted"):
        day.cards.adopt(tmp_path / "rehearsed", root)
    assert not root.exists()
    made_day(day, tmp_path / "measured", "measured")
    (root / "llm_carbon_meter" / "data").mkdir(parents=True)
    assert day.cards.adopt(tmp_path / "measured", root) == 0
    data = root / "llm_carbon_meter" / "data"
    assert json.loads((data / "sensors.json").read_text())["gpus"][GPU]["lag_s"] == 0.03
    assert len(list((data / "measurements").iterdir())) == 2


def test_a_host_without_a_gpu_is_told_of_the_rehearsal(
    day: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is modelled in its place."""
    monkeypatch.setattr(day.gpu, "default_gpu", lambda: "")
    with pytest.raises(day.rows.DayError, match="POWER=stub"):
        day.gpu.RealGpu()


def test_one_gpu_is_used_and_numbered_as_nvml_does(
    day: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several; a server would spread its model over all."""
    monkeypatch.setattr(day.gpu, "default_gpu", lambda: "2")
    assert day.gpu.real_environment()["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setattr(day.gpu, "default_gpu", lambda: "")
    assert day.gpu.real_environment() == {}


def test_what_the_host_lacks_is_named_with_the_way_out(
    day: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every missing module at once."""
    monkeypatch.setattr(day.start, "NEEDED", {"surely_not_there": "the meter", "json": "it"})
    with pytest.raises(day.start.StartError, match=r"lacks surely_not_there: .* BUNDLE=FOLDER"):
        day.start.check_modules(sys.executable)


def test_an_environment_sees_the_host_first_and_the_bundle_last(day: Any, tmp_path: Path) -> None:
    """A module of both is the host's; one of the bundle alone is found."""
    host, bundle = tmp_path / "lib" / "site-packages", tmp_path / "bundle"
    for folder, names in ((host, ("both",)), (bundle, ("both", "carried"))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.py").write_text(f"place = {folder.name!r}")
    python = day.start.make_environment(tmp_path / "environment", bundle)
    (packages,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    (packages / "gpu-day.pth").write_text(day.start.path_file([str(host)], bundle))
    code = "import both, carried, llm_carbon_meter; print(both.place, carried.place)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["site-packages", "bundle"]


def test_a_folder_that_is_no_bundle_is_named(day: Any, tmp_path: Path) -> None:
    """Before an environment is half made."""
    with pytest.raises(day.start.StartError, match=r"no manifest\.json"):
        day.start.unpack(tmp_path, tmp_path / "into", Path(sys.executable))


@pytest.mark.engine
@pytest.mark.slow
def test_a_rehearsal_runs_from_end_to_end(tmp_path: Path) -> None:
    """`make gpu-day POWER=stub MINUTES=1`: every part is complete, and the second run does nothing.

    The stub's script is the truth: its period and lag are found again, the accounts hold the
    counter's joules, and nothing is called measured.
    """
    out = tmp_path / "day"
    root = SCRIPTS.parents[1]
    command = ["make", "gpu-day", f"OUT={out}", "POWER=stub", "MINUTES=1", "BIN=."]
    command += [f"PYTHON={sys.executable}"]
    first = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    lines = (out / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["source"] for row in rows} == {"simulated"}
    assert "measured" not in (out / "campaign.csv").read_text()
    lags_s = [row["lag_s"] for row in rows if row["kind"] == "onset"]
    assert sorted(lags_s)[len(lags_s) // 2] == pytest.approx(0.03, abs=0.01)
    periods_s = [row["period_s"] for row in rows if row["kind"] == "load"]
    assert periods_s == pytest.approx([0.02] * len(periods_s), abs=0.003)
    (balance,) = (row for row in rows if row["kind"] == "balance")
    booked = sum(balance["accounts_joules"].values())
    assert booked == pytest.approx(balance["counter_joules"], abs=balance["resolution_joules"])
    assert balance["records_joules"] == pytest.approx(balance["requests_accounts_joules"], rel=1e-6)
    assert (out / "report.md").read_text().splitlines()[2].startswith("**Simulated")
    pictures = ("sensor", "shares", "joules", "served", "campaign", "throughput")
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in pictures)
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert len((out / "rows.jsonl").read_text().splitlines()) == len(lines) + 1  # the host's
    assert "sensor: period" not in again.stdout
