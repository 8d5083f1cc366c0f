"""A report as aligned text and as CSV, and the facts that stand above every form of it."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from llm_carbon_meter.exporters.columns import aligned, figure
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.database import clean
from llm_carbon_meter.report.gpu_accounts import HEADING, gpu_labels
from llm_carbon_meter.report.groups import SECTIONS, Columns, Group, Value, sections, totals
from llm_carbon_meter.report.summary import MOST_NAMED, Report

MISSING: Final = "-"
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of what a spreadsheet takes for one."""
ALL_COLUMNS: Final[Columns] = dict(
    column for columns in SECTIONS.values() for column in columns.items()
)
GPUS: Final = "All energy of the GPUs"
REPEATED: Final = (
    "there are JSON lines and Parquet: where one is an export of the other, its requests count "
    "twice"
)
AT_MOST_OFF: Final = (
    "at_most_off_percent adds up the 90 % half-intervals of all requests as if all were off to one "
    "side, which is the most that the sum may be off; errors that are independent cancel in part"
)


def facts(report: Report) -> list[tuple[str, str]]:
    """Period, boundary and sources: a name and its text, some names more than once."""
    by_source = [f"{group.source} {group.requests}" for group in totals(report.groups)]
    zone = report.question.zone
    return [
        ("period", f"{report.question.period}; requests came {report.came}"),
        *_named("time zone of days, hours and months", [str(zone)] if str(zone) != "UTC" else []),
        *_named("files", [clean(str(report.files), 1000)] if report.files else []),
        *_named("boundary", _with_counts(report.covers)),
        ("sources", ", ".join(by_source) + "; never added to each other"),
        *_named("grid", _with_counts(report.grids)),
        *_named("left out", report.broken.texts),
        *_named("note", _notes(report)),
    ]


def _named(name: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, text) for text in texts]


def _with_counts(counts: Mapping[str, int]) -> list[str]:
    texts = [f"{value} ({count} requests)" for value, count in counts.items()]
    more = len(texts) - MOST_NAMED
    return [*texts[:MOST_NAMED], *([f"and {more} others"] if more > 0 else [])]


def _notes(report: Report) -> list[str]:
    wholes = totals(report.groups)
    notes = [f"{report.broken.lines} broken lines are left out"] if report.broken.lines else []
    if report.files is not None and report.files.may_repeat:
        notes.append(REPEATED)
    without = _lacking(wholes, "embodied_grams")
    if without:
        notes.append(f"{without} requests have no embodied grams: no SCI for a group with them")
    if any(group.sums["uncertain_joules_known"] for group in wholes):
        lacking = _lacking(wholes, "uncertain_joules")
        lack = f"; {lacking} requests have no interval: no sum for a group with them"
        notes.append(AT_MOST_OFF + (lack if lacking else ""))
    if any(len(group.sums["currencies"] or {}) > 1 for group in wholes):
        notes.append("costs in several currencies are not added; --by currency keeps them apart")
    if any(group.source == "modelled" for group in wholes):
        notes.append("against modelled energy, an estimate's error compares two models")
    return notes + _gpu_notes(report)


def _gpu_notes(report: Report) -> list[str]:
    if report.files is None:
        return ["energy of the GPUs that belongs to no request is not in here"]
    if not report.gpus:
        return [
            "idle, overhead and unattributed energy of the GPUs is not in this log, which has no "
            "lines of accounts in the period; a Prometheus server that scrapes them has it"
        ]
    return [
        "not_in_log_wh was charged to requests that this log has in another period or not at all; "
        "it is below 0 where lines of accounts are missing"
    ]


def _lacking(groups: Sequence[Group], name: str) -> int:
    return sum(group.requests - group.sums[f"{name}_known"] for group in groups)


def shown(value: Value) -> str:
    """A cell: three digits of a number, a dash for none."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else figure(value)


def values(report: Report, columns: Columns) -> list[list[Value]]:
    """The heading and one row per group."""
    by = report.question.by
    rows: list[list[Value]] = [[*by, "source", *columns]]
    for group in report.groups:
        labels = [*group.labels, *[""] * (len(by) - len(group.labels))]
        rows.append([*labels, group.source, *(figure(group) for figure in columns.values())])
    return rows


def gpu_values(report: Report) -> list[list[Value]]:
    """The heading and a row for each part of the GPUs' energy."""
    rows: list[list[Value]] = [[*gpu_labels(report.question.by), "source", *HEADING]]
    return [*rows, *([*part.labels, part.source, *part.figures] for part in report.gpus)]


Cells = Sequence[Sequence[str]]


def tables(report: Report) -> Mapping[str, tuple[Cells, int]]:
    """Each table as text by its title, and how many columns of words it begins with."""
    words = len(report.question.by) + 1
    parts = {
        title: (_cells(values(report, columns)), words)
        for title, columns in sections(report.groups).items()
    }
    if report.gpus:
        parts[GPUS] = _cells(gpu_values(report)), len(gpu_labels(report.question.by)) + 1
    return parts


def _cells(rows: Sequence[Sequence[Value]]) -> Cells:
    return [[shown(value) for value in row] for row in rows]


def table(report: Report) -> str:
    """The facts, and every table."""
    lines = [f"{name}: {text}" for name, text in facts(report)]
    for title, (cells, words) in tables(report).items():
        lines += ["", title, aligned(cells, left=range(words))]
    return "\n".join(lines)


def write_csv(rows: Sequence[Sequence[Value]], path: Path) -> None:
    """The heading and one row per group; a figure that is missing is an empty cell.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.

    Raises:
        MeterError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(map(_harmless, rows))
    except OSError as error:
        raise MeterError(
            f"the table {str(path)!r} cannot be written: {error}; give another --csv"
        ) from error


def _harmless(row: Sequence[Value]) -> list[Value]:
    return [harmless(cell) if isinstance(cell, str) else cell for cell in row]


def harmless(text: str) -> str:
    """A text that no spreadsheet runs."""
    return f"'{text}" if text.startswith(FORMULA) else text
