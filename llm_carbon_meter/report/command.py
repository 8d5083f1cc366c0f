"""The verb ``report``: its options, and what it reads, prints and writes."""

import argparse
import time
from datetime import UTC, tzinfo
from pathlib import Path

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.database import database
from llm_carbon_meter.report.files import found_files
from llm_carbon_meter.report.groups import GROUPINGS, NAMES
from llm_carbon_meter.report.page import write_page, write_pages
from llm_carbon_meter.report.periods import NAMED, Period, moment, named_period, time_zone
from llm_carbon_meter.report.sci import write_sci
from llm_carbon_meter.report.summary import Question, load_lines, make_report
from llm_carbon_meter.report.text import ALL_COLUMNS, table, values, write_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "log",
        help="a file that LLM_CARBON_METER_REQUEST_LOG names: its rotated files, and those of the "
        "server's other processes, are read too; a folder, a pattern, or s3://…, of JSON lines or "
        "Parquet; clickhouse://HOST:PORT/DATABASE/TABLE; or the address of a Prometheus server",
    )
    parser.add_argument("--since", metavar="ISO", help="requests that came from then")
    parser.add_argument("--until", metavar="ISO", help="and before then")
    parser.add_argument("--period", metavar="NAME", help=f"instead of both: {NAMED}")
    parser.add_argument(
        "--timezone",
        type=time_zone,
        default=UTC,
        metavar="ZONE",
        help="whose hours, days and months are meant, such as Europe/Berlin; default: UTC",
    )
    parser.add_argument(
        "--by",
        type=groupings,
        default=("model",),
        metavar="NAME,…",
        help=f"any of {', '.join(GROUPINGS)}; default: model",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the same as a table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the same as a page with plots")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="SCI scores (ISO/IEC 21031): E, I, M, R"
    )
    parser.add_argument(
        "--html-per",
        nargs=2,
        metavar=("NAME", "FOLDER"),
        help="a page and SCI scores for each tenant, or other name, that its owner may have",
    )


def groupings(text: str) -> tuple[str, ...]:
    """Names of groupings, with commas between them.

    Raises:
        argparse.ArgumentTypeError: one is none, or comes twice.
    """
    names = tuple(text.split(","))
    if set(names) <= set(GROUPINGS) and len(set(names)) == len(names):
        return names
    raise argparse.ArgumentTypeError(f"{text!r}: give some of {','.join(GROUPINGS)}, each once")


def run(options: argparse.Namespace) -> int:
    """Print the report, and write the files asked for.

    Raises:
        MeterError: there is no log, nothing in the period, or a file cannot be written.
    """
    try:
        period = asked_period(options, time.time())
    except argparse.ArgumentTypeError as error:
        raise MeterError(str(error)) from error
    question = Question(period, options.by, options.timezone)
    if options.html_per and options.html_per[0] not in NAMES:
        raise MeterError(f"--html-per {options.html_per[0]}: give one of {', '.join(NAMES)}")
    if options.log.startswith(("http://", "https://")):
        return _report_server(options, question)
    with found_files(options.log, period) as files, database("the report") as connection:
        broken = load_lines(connection, files, question)
        report = make_report(connection, files, broken, question)
        print(table(report))
        if options.csv:
            write_csv(values(report, ALL_COLUMNS), options.csv)
        if options.json:
            write_sci(report, options.json)
        if options.html:
            write_page(connection, report, options.html)
        if options.html_per:
            name, folder = options.html_per
            pages = write_pages(connection, report, name, Path(folder))
            print(f"\n{len(pages)} pages in {folder}")
    return 0


def _report_server(options: argparse.Namespace, question: Question) -> int:
    for name in ("html", "json", "html_per"):
        if getattr(options, name):
            option = "--" + name.replace("_", "-")
            raise MeterError(f"{option} needs a request log: Prometheus knows no single request")
    from llm_carbon_meter.report.server import server_report, server_table  # httpx takes a while

    report = server_report(options.log, question)
    print(server_table(report))
    if options.csv:
        heading = list(report.rows[0])
        write_csv([heading, *(list(row.values()) for row in report.rows)], options.csv)
    return 0


def asked_period(options: argparse.Namespace, now_s: float) -> Period:
    """What is left out is open.

    Args:
        options: `since`, `until`, `period` as texts or None, and `timezone`.
        now_s: Unix time.

    Raises:
        MeterError: it would end before it begins, or is told twice.
        argparse.ArgumentTypeError: a text is no time.
    """
    zone: tzinfo = options.timezone
    if options.period and (options.since or options.until):
        raise MeterError("--period has both ends: leave --since and --until out")
    if options.period:
        return named_period(options.period, zone, now_s)
    given = {"since_s": options.since, "until_s": options.until}
    period = Period(**{name: moment(text, zone) for name, text in given.items() if text})
    if period.since_s >= period.until_s:
        raise MeterError(f"the period is empty: {period}; give an --until after --since")
    return period
