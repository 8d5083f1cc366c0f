"""The verb ``report``: its options, and what it reads, prints and writes."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.entries import Period, read_log, within
from llm_carbon_meter.report.groups import GROUPINGS, grouped
from llm_carbon_meter.report.page import write_page
from llm_carbon_meter.report.server import server_report, server_table
from llm_carbon_meter.report.text import ALL_COLUMNS, Report, table, values, write_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "log",
        help="a file written by LLM_CARBON_METER_REQUEST_LOG, LOG.1 … are read too; or the "
        "address of a Prometheus server",
    )
    parser.add_argument("--since", type=moment, metavar="ISO", help="requests that came from then")
    parser.add_argument("--until", type=moment, metavar="ISO", help="and before then; UTC")
    parser.add_argument("--by", choices=list(GROUPINGS), default="model", help="default: model")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the same as a table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the same as a page with plots")


def moment(text: str) -> float:
    """Unix time of an ISO 8601 date or time; UTC where it names no zone.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        at = datetime.fromisoformat(text)
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # the zone may lead out of all years
        raise argparse.ArgumentTypeError(
            f"{text!r} is no ISO 8601 time; give one such as 2026-03-01 or 2026-03-01T12:00:00Z"
        ) from None
    return at.timestamp()


def run(options: argparse.Namespace) -> int:
    """Print the report, and write the files asked for.

    Raises:
        MeterError: there is no log, nothing in the period, or a file cannot be written.
    """
    period = asked_period(options.since, options.until)
    if options.log.startswith(("http://", "https://")):
        return _report_server(options, period)
    report = make_report(Path(options.log), period, options.by)
    print(table(report))
    if options.csv:
        write_csv(values(report, ALL_COLUMNS), options.csv)
    if options.html:
        write_page(report, options.html)
    return 0


def _report_server(options: argparse.Namespace, period: Period) -> int:
    if options.html:
        raise MeterError("--html needs a request log: Prometheus knows no single request")
    report = server_report(options.log, period, options.by)
    print(server_table(report))
    if options.csv:
        heading = list(report.rows[0])
        write_csv([heading, *(list(row.values()) for row in report.rows)], options.csv)
    return 0


def asked_period(since_s: float | None, until_s: float | None) -> Period:
    """What is left out is open.

    Raises:
        MeterError: it would end before it begins.
    """
    given = {"since_s": since_s, "until_s": until_s}
    period = Period(**{name: at for name, at in given.items() if at is not None})
    if period.since_s >= period.until_s:
        raise MeterError(f"the period is empty: {period}; give an --until after --since")
    return period


def make_report(log: Path, period: Period, by: str) -> Report:
    """Read a log and add up its groups.

    Raises:
        MeterError: see `run`.
    """
    log_of_period = within(read_log(log), period)
    return Report(log_of_period, period, by, grouped(log_of_period.entries, by))
