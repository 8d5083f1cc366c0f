"""A report as aligned text and as CSV, and the facts that stand above every form of it."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm_carbon_meter.exporters.columns import aligned, figure
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.entries import Log, Period, span
from llm_carbon_meter.report.groups import SECTIONS, Columns, Group, Value, counted

BROKEN_SHOWN: Final = 5
MISSING: Final = "-"
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of what a spreadsheet takes for one."""
WORDS: Final = (0, 1)
"""Columns of group and source."""
ALL_COLUMNS: Final[Columns] = dict(
    column for columns in SECTIONS.values() for column in columns.items()
)


@dataclass(frozen=True, slots=True)
class Report:
    """What is printed."""

    log: Log
    """Of the period alone."""
    period: Period
    by: str
    groups: Sequence[Group]


def facts(report: Report) -> list[tuple[str, str]]:
    """Period, boundary and sources: a name and its text, some names more than once."""
    entries = report.log.entries
    return [
        ("period", f"{report.period}; requests came {span(entries)}"),
        ("files", ", ".join(map(str, report.log.files))),
        *_named("boundary", _with_counts(entry.covers for entry in entries)),
        ("sources", counted(entry.source for entry in entries) + "; never added to each other"),
        *_named("grid", _with_counts(f"{item.zone}: {item.intensity_source}" for item in entries)),
        *_named("broken line", report.log.broken[:BROKEN_SHOWN]),
        *_named("note", _notes(report)),
    ]


def _named(name: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, text) for text in texts]


def _with_counts(values: Iterable[str]) -> list[str]:
    return [f"{value} ({count} requests)" for value, count in Counter(values).most_common()]


def _notes(report: Report) -> list[str]:
    entries, broken = report.log.entries, report.log.broken
    without = sum(entry.embodied_grams is None for entry in entries)
    notes = [f"{len(broken)} broken lines are left out"] if broken else []
    if without:
        notes.append(f"{without} requests have no embodied grams: no SCI for a group with them")
    if any(entry.source == "modelled" for entry in entries):
        notes.append("against modelled energy, an estimate's error compares two models")
    return notes


def shown(value: Value) -> str:
    """A cell: three digits of a number, a dash for none."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else figure(value)


def values(report: Report, columns: Columns) -> list[list[Value]]:
    """The heading and one row per group."""
    rows: list[list[Value]] = [[report.by, "source", *columns]]
    for group in report.groups:
        rows.append([group.label, group.source, *(figure(group) for figure in columns.values())])
    return rows


def cells(report: Report, columns: Columns) -> list[list[str]]:
    """The same as text."""
    return [[shown(value) for value in row] for row in values(report, columns)]


def table(report: Report) -> str:
    """The facts, and a table for each of `SECTIONS`."""
    lines = [f"{name}: {text}" for name, text in facts(report)]
    for title, columns in SECTIONS.items():
        lines += ["", title, aligned(cells(report, columns), left=WORDS)]
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
    return [
        f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row
    ]
