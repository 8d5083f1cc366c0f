"""The end of a day: a table of ground truth against what the meter said, plots, data cards."""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import truth
from day import PARTS
from estimates import estimated
from part_campaign import FILE
from plan import ON_GPU, REHEARSAL
from rows import ENDED, HOST, MEASURED, NAME, DayError, Row, of_kind, read_rows

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.columns import figure, percent
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.ledger.attribution import POLICIES
from llm_carbon_meter.physics.deployed_gpu import gpu_of
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.records import MeterError

REPORT = "report.md"
SIMULATED_LINE = (
    "**Simulated: a rehearsal on the stub library of NVML. No figure here is of a GPU.** The work "
    "ran on a CPU, and a script made up the power; errors of estimates mean nothing here."
)
MISSING = "-"
Cells = Sequence[str]


class Findings(NamedTuple):
    """All that the table, the plots and the cards are made of."""

    rows: list[Row]
    remarks: Sequence[str]
    host: Row
    shares: Sequence[truth.Shares]
    configurations: Sequence[truth.Configuration]
    estimates: Sequence[tuple[float, float]]
    """Joules of prefill and decode, of each configuration."""

    @property
    def simulated(self) -> bool:
        """Whether the rows are of a rehearsal."""
        return bool(self.host["source"] != MEASURED)


def findings(out: Path) -> Findings:
    """From a day's folder.

    Raises:
        DayError: it has no rows of a day.
    """
    rows, remarks = read_rows(out / NAME)
    hosts = [row for row in rows if row["kind"] == HOST]
    if not hosts:
        raise DayError(f"{out} has no rows of a GPU day: run `make gpu-day OUT={out}` first")
    host, remarks = hosts[-1], list(remarks)
    measured = truth.configurations(_campaign(out / FILE))
    try:
        estimates = estimated(measured)
    except MeterError as error:
        remarks.append(f"no estimate of the campaign: {error}")
        measured, estimates = [], []
    model = _cost_model(host)
    shares = truth.shares(rows, model)
    return Findings(rows, remarks, host, shares, measured, estimates)


def _campaign(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _cost_model(host: Row) -> CostModel:
    plan = ON_GPU if host["source"] == MEASURED else REHEARSAL
    fields = {"gpu": host["gpu"]}
    if host.get("power_limit_watts"):
        fields["power_limit_watts"] = host["power_limit_watts"]
    return CostModel(gpu_of(Config(), fields, Faults()).spec, step_costs(plan.decoder))


def write_all(out: Path) -> None:
    """Report, plots and cards; plots only where matplotlib is installed.

    Raises:
        DayError: the folder has no rows of a day.
    """
    found = findings(out)
    pictures, note = _draw(out, found)
    text = report(found, [picture.name for picture in pictures], note)
    (out / REPORT).write_text(text, "utf-8")
    from cards import write_cards

    cards = write_cards(out, found)
    print(text)
    print(f"written to {out}: {REPORT}, {len(pictures)} plots, {len(cards)} cards")


def _draw(out: Path, found: Findings) -> tuple[list[Path], str]:
    try:
        import matplotlib  # noqa: F401 - is it there?
    except ImportError:
        return [], "matplotlib is not installed here: `day.py report --out OUT` elsewhere draws"
    from figures import draw_all

    try:
        return draw_all(out, found), ""
    except Exception as error:  # noqa: BLE001 - boundary: a plot that fails costs no figures
        print(f"gpu-day: plots failed: {error!r}", file=sys.stderr)
        return [], f"plots failed: {error!r}"


def report(found: Findings, pictures: Sequence[str], note: str = "") -> str:
    """As Markdown, its first line says whether anything was measured."""
    host = found.host
    title = f"# GPU day on {host['gpu']}" + (" (rehearsal)" if found.simulated else "")
    first = SIMULATED_LINE if found.simulated else _measured_line(host)
    sections = [
        title,
        first,
        _host_line(host),
        "## Ground truth against what the meter said",
        markdown(("what", "ground truth", "the meter", "difference"), list(table(found))),
        "## The sensor",
        markdown(SENSOR_HEADING, list(sensor_rows(found.rows))),
        "## Shares of a step",
        _shares_text(found),
        "## Estimates of the served requests",
        markdown(ESTIMATE_HEADING, list(estimate_rows(found.rows))),
        "## Campaign: prefill and decode apart",
        markdown(CAMPAIGN_HEADING, list(campaign_rows(found))),
        "## What was seen, what is missing",
        markdown(("part", "what", "how it ended", "s", "note"), list(part_rows(found.rows))),
        *(f"* {remark}" for remark in (*found.remarks, *filter(None, [note]))),
        *(f"![{name}]({name})" for name in pictures),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _measured_line(host: Row) -> str:
    return f"**Measured** on one {host['gpu']} by its own energy counter, {host['utc'][:10]} (UTC)."


def _host_line(host: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    limit = host["power_limit_watts"]
    told = f", power limit {limit:g} W" if limit else ""
    return f"Driver {host['driver']}{told}; Python {host['python']}, {versions}."


def markdown(heading: Cells, rows: Sequence[Cells]) -> str:
    """A table; a line instead where there are no rows."""
    if not rows:
        return "Nothing was measured."
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(found: Findings) -> Iterator[Cells]:
    """The day in a dozen lines."""
    yield from _lag_row(found.rows)
    yield from _share_rows(found.shares)
    yield from _balance_rows(found.rows)
    yield from _served_rows(found.rows)
    yield from _campaign_summary(found)
    yield from _throughput_row(found.rows)


def _ms(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{figure(1000 * seconds)} ms"


def _lag_row(rows: list[Row]) -> Iterator[Cells]:
    lags_s, learnt_s = truth.onset_lags_s(rows), truth.learnt_lag_s(rows)
    if lags_s:
        true_s = median(lags_s)
        off = MISSING if learnt_s is None else _ms(learnt_s - true_s)
        said = "not learnt" if learnt_s is None else f"ledger: {_ms(learnt_s)}"
        yield f"lag of the counter, {len(lags_s)} onsets of a load", _ms(true_s), said, off


def _share_rows(shares: Sequence[truth.Shares]) -> Iterator[Cells]:
    for policy in POLICIES if shares else ():
        errors = [abs(error) for one in shares for error in one.errors(policy)]
        relative = [abs(error) for one in shares for error in one.relative_errors(policy)]
        yield (
            f"shares of {len(errors)} requests in {len(shares)} steps",
            "Shapley value of all subsets",
            f"policy `{policy}`",
            f"largest {percent(max(errors))} of the step, median {percent(median(relative))} of "
            "the share",
        )


def _balance_rows(rows: list[Row]) -> Iterator[Cells]:
    for one in truth.balances(rows):
        yield (
            "joules while requests were served",
            f"counter {figure(one.counter)} J ± {figure(one.resolution)} J",
            f"all accounts {figure(one.accounts)} J",
            percent(one.accounts_error, "+"),
        )
        yield (
            "joules charged to requests",
            f"accounts {one.requests_accounts:.1f} J",
            f"sum of the records {one.records:.1f} J",
            percent(one.records_error, "+"),
        )


def _served_rows(rows: list[Row]) -> Iterator[Cells]:
    for one in truth.estimate_errors(rows):
        if one.phase == "whole request":
            yield (
                f"{one.count} served requests, estimate {one.basis}",
                "record of each",
                one.stage,
                f"median of the size {percent(one.median_size)}, median {percent(one.median, '+')}",
            )


def _campaign_summary(found: Findings) -> Iterator[Cells]:
    for place, phase in enumerate(("prefill", "decode")):
        errors = [abs(error[place]) for error in campaign_errors(found)]
        if errors:
            yield (
                f"{phase} of {len(errors)} configurations",
                "campaign rows",
                "estimate of the verb",
                f"median of the size {percent(median(errors))}, largest {percent(max(errors))}",
            )


def _throughput_row(rows: list[Row]) -> Iterator[Cells]:
    ratios = truth.ratios(rows)
    if ratios:
        told = f"{min(ratios):.3f} to {max(ratios):.3f}"
        pairs = f"tokens per second, {len(ratios)} pairs of rounds by turns"
        yield pairs, "without the meter: 1", f"with it: {median(ratios):.3f}", told


SENSOR_HEADING = ("load", "period", "counter W", "power W", "counter / power", "a call, p99")


def sensor_rows(rows: list[Row]) -> Iterator[Cells]:
    """Steady loads and bursts."""
    for kind, about in (("load", ""), ("burst", "bursts of period, s: ")):
        for row in of_kind(rows, "sensor", kind):
            call = f"{_ms(row['call_median_s'])}, {_ms(row['call_p99_s'])}"
            watts = [_number(row[name]) for name in ("counter_watts", "instant_watts")]
            agreement = _number(row["counter_to_power"])
            yield about + row["key"], _ms(row["period_s"]), *watts, agreement, call


def _number(value: float | None) -> str:
    return MISSING if value is None or value != value else figure(value)


def _shares_text(found: Findings) -> str:
    heading = ("batch", "new + cached tokens", "exact", *(f"`{policy}`" for policy in POLICIES))
    rows = [
        (
            one.batch,
            f"{request[0]} + {request[1]}",
            percent(one.exact[place]),
            *(percent(one.meter[policy][place]) for policy in POLICIES),
        )
        for one in found.shares
        for place, request in enumerate(one.requests)
    ]
    return markdown(heading, rows)


ESTIMATE_HEADING = ("estimate", "stage", "phase", "requests", "median", "median of the size")


def estimate_rows(rows: list[Row]) -> Iterator[Cells]:
    """By basis, stage and phase."""
    for one in truth.estimate_errors(rows):
        sizes = percent(one.median, "+"), percent(one.median_size)
        yield one.basis, one.stage, one.phase, str(one.count), *sizes


CAMPAIGN_HEADING = (
    *("model", "batch", "prompt", "output"),
    *("prefill J, counter", "estimated", "decode J, counter", "estimated"),
)


def campaign_rows(found: Findings) -> Iterator[Cells]:
    """One a configuration; joules of a request, gross."""
    for one, (prefill, decode) in zip(found.configurations, found.estimates, strict=True):
        lengths = (one.batch, one.prompt_tokens, one.output_tokens)
        joules = (one.prefill_joules, prefill, one.decode_joules, decode)
        yield one.model, *map(str, lengths), *map(figure, joules)


def campaign_errors(found: Findings) -> list[tuple[float, float]]:
    """Of prefill and decode, (estimated - measured) / measured."""
    return [
        (prefill / one.prefill_joules - 1, decode / one.decode_joules - 1)
        for one, (prefill, decode) in zip(found.configurations, found.estimates, strict=True)
    ]


def part_rows(rows: list[Row]) -> Iterator[Cells]:
    """How each part ended the last time."""
    for part in PARTS:
        ends: list[Any] = list(of_kind(rows, part.name, ENDED))
        if ends:
            last = ends[-1]
            yield part.name, part.what, last["how"], figure(last["seconds"]), last["note"]
        else:
            yield part.name, part.what, "not begun", MISSING, ""
