"""The end of a day: a table of ground truth against what the meter said, plots, data cards."""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import truth
from day import PARTS
from estimates import estimated
from part_campaign import FILE
from plan import ON_GPU, REHEARSAL
from rows import ENDED, HOST, MEASURED, NAME, DayError, Row, of_kind, read_rows
from tables import (
    CAMPAIGN_HEADING,
    ESTIMATE_HEADING,
    HEADING,
    MISSING,
    SENSOR_HEADING,
    Cells,
    Findings,
    campaign_rows,
    estimate_rows,
    markdown,
    sensor_rows,
    served_text,
    shares_text,
    table,
)

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.columns import figure
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.deployed_gpu import gpu_of
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.records import MeterError

REPORT = "report.md"
SHARES_LINE = (
    "*Exact* is the Shapley value of the joules of all subsets, each run by itself. The policies "
    "split the whole step as the meter does before it has learnt anything: by the data sheet."
)
SIMULATED_LINE = (
    "**Simulated: a rehearsal on the stub library of NVML. No figure here is of a GPU.** The work "
    "ran on a CPU, and a script made up the power; errors of estimates mean nothing here."
)


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
        markdown(HEADING, list(table(found))),
        "## The sensor",
        markdown(SENSOR_HEADING, list(sensor_rows(found.rows))),
        "## Shares of a step's joules",
        SHARES_LINE,
        shares_text(found),
        "## Estimates of the served requests",
        served_text(found.rows),
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


def part_rows(rows: list[Row]) -> Iterator[Cells]:
    """How each part ended the last time."""
    for part in PARTS:
        ends: list[Any] = list(of_kind(rows, part.name, ENDED))
        if ends:
            last = ends[-1]
            yield part.name, part.what, last["how"], figure(last["seconds"]), last["note"]
        else:
            yield part.name, part.what, "not begun", MISSING, ""
