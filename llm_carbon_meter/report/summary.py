"""The report of a period from request logs: what is asked for, and what the data base answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Final

from llm_carbon_meter.exporters.log_line import REQUEST
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.database import REPORTED, Broken, clean, load, quoted, span
from llm_carbon_meter.report.files import Files
from llm_carbon_meter.report.gpu_accounts import GpuEnergy, gpu_energy, gpu_labels
from llm_carbon_meter.report.groups import NOT_SAID, Group, grouped, label_expression
from llm_carbon_meter.report.periods import Period, iso

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MOST_NAMED: Final = 20
"""Boundaries or grids."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a report is asked for."""

    period: Period
    by: Sequence[str] = ("model",)
    zone: tzinfo = UTC

    def __str__(self) -> str:
        return ", ".join(self.by)


@dataclass(frozen=True, slots=True)
class Report:
    """What is shown."""

    question: Question
    files: Files | None
    """None in what a customer gets."""
    broken: Broken
    groups: Sequence[Group]
    gpus: Sequence[GpuEnergy]
    came: str
    """When the first and the last request came."""
    covers: Mapping[str, int]
    """Boundaries in words, and how many requests have them."""
    grids: Mapping[str, int]
    """Likewise zones with the source of their intensity."""
    where: str
    """Condition of its requests."""

    @property
    def requests(self) -> int:
        """Of all groups together."""
        return sum(self.covers.values())


def load_lines(connection: "DuckDBPyConnection", files: Files, question: Question) -> Broken:
    """Make the table of lines, in the time zone that is asked for.

    Raises:
        MeterError: there is no way to an object store.
    """
    connection.execute(f"SET TimeZone = {quoted(str(question.zone))}")
    return load(connection, files, REPORTED, question.period)


def make_report(
    connection: "DuckDBPyConnection", files: Files, broken: Broken, question: Question
) -> Report:
    """The report of all requests.

    Args:
        connection: with the table of lines.
        files: that it was made of.
        broken: what was left out of it.
        question: as `load_lines` had it.

    Raises:
        MeterError: no request is left.
    """
    gpus = gpu_energy(connection, gpu_labels(question.by), question.zone, broken.sound)
    where = f"{broken.sound} AND kind = '{REQUEST}'"
    report = _report(connection, files, broken, question, gpus, where)
    if not report.groups:
        raise _nothing(connection, files, broken, question)
    return report


def reports_per(connection: "DuckDBPyConnection", whole: Report, name: str) -> Mapping[str, Report]:
    """A report for each value of a grouping, without what is the operator's alone.

    Args:
        connection: with the table of lines.
        whole: the report of all requests.
        name: a key of `groups.NAMES`.
    """
    label = label_expression(name, whole.question.zone)
    query = f"SELECT DISTINCT {label} FROM lines WHERE {whole.where} ORDER BY 1"
    return {
        value: _report(
            connection,
            None,
            Broken(0, ()),
            whole.question,
            (),
            f"{whole.where} AND {label} = {quoted(value)}",
        )
        for (value,) in connection.execute(query).fetchall()
    }


def _report(
    connection: "DuckDBPyConnection",
    files: Files | None,
    broken: Broken,
    question: Question,
    gpus: Sequence[GpuEnergy],
    where: str,
) -> Report:
    times = f"SELECT min(arrived_unix_s), max(arrived_unix_s) FROM lines WHERE {where}"
    ((first, last),) = connection.execute(times).fetchall()
    return Report(
        question=question,
        files=files,
        broken=broken,
        groups=grouped(connection, question.by, question.zone, where),
        gpus=gpus,
        came="" if first is None else f"from {iso(first)} to {iso(last)}",
        covers=_counts(connection, ["covers"], where),
        grids=_counts(connection, ["zone", "intensity_source"], where),
        where=where,
    )


def _counts(
    connection: "DuckDBPyConnection", names: Sequence[str], where: str
) -> Mapping[str, int]:
    """How many requests have the same texts in some columns, the most frequent first."""
    rows = connection.execute(
        f"SELECT {', '.join(names)}, count(*) FROM lines WHERE {where} GROUP BY ALL "
        f"ORDER BY count(*) DESC, {', '.join(names)}"
    ).fetchall()
    return {
        ": ".join(clean(text or NOT_SAID, 300) for text in texts): count for *texts, count in rows
    }


def _nothing(
    connection: "DuckDBPyConnection", files: Files, broken: Broken, question: Question
) -> MeterError:
    requests, came = span(connection, files)
    if requests:
        return MeterError(
            f"no request came in the period asked for ({question.period}); the log's {requests} "
            f"requests came {came}: give another --since, --until or --period"
        )
    return MeterError(
        f"{clean(str(files), 300)}: there is no finished request and {broken.lines} broken lines"
        + "".join(f"; {text}" for text in broken.texts[:1])
        + "; give a log that a metered server has written to"
    )
