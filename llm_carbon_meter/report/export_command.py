"""The verb ``export``: request logs as Parquet, a folder for each day."""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from llm_carbon_meter.exporters.log_line import COLUMNS, Column
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.database import Broken, database, load, quoted, within
from llm_carbon_meter.report.files import Files, files_of
from llm_carbon_meter.report.periods import Period

DAY_S: Final = 86_400.0
ROWS: Final = 50_000
"""Of a row group, which is held in memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("log", help="as of the verb report; no Prometheus server")
    parser.add_argument(
        "--parquet",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="gets day=YYYY-MM-DD/*.parquet; days of UTC",
    )
    parser.add_argument(
        "--replace", action="store_true", help="also days that the folder has already"
    )


def run(options: argparse.Namespace) -> int:
    """Write the files, and print what was written and what was left out.

    Raises:
        MeterError: there is no log or no line in it, a day is there already, or a file cannot be
            written.
    """
    files = files_of(options.log)
    try:
        options.parquet.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=options.parquet) as part:
            broken = _write(files, Path(part))
            moved = _move(Path(part), options.parquet, replace=options.replace)
    except OSError as error:
        raise MeterError(
            f"the folder {str(options.parquet)!r} cannot be written: {error}; "
            "give another --parquet"
        ) from error
    kept = [f"{day.name} stays as it is: it has more lines than the log" for day in moved.kept]
    days = f"{moved.lines} lines of {moved.days} days in {options.parquet}"
    print("\n".join([days, *kept, *_left_out(broken)]))
    return 0


def _write(files: Files, folder: Path) -> Broken:
    """Every line that is of use, to a folder that is empty."""
    with database("the export") as connection:
        broken = load(connection, files, COLUMNS, Period())
        days = connection.execute(
            f"SELECT DISTINCT floor(arrived_unix_s / {DAY_S})::BIGINT FROM lines "
            "WHERE wrong IS NULL ORDER BY 1"
        ).fetchall()
        columns = ", ".join(map(_parquet, COLUMNS))
        for (day,) in days:
            begin_s = day * DAY_S
            target = folder / f"day={datetime.fromtimestamp(begin_s, UTC):%Y-%m-%d}"
            target.mkdir()
            connection.execute(
                f"COPY (SELECT {columns} FROM lines WHERE wrong IS NULL "
                f"AND {within(Period(begin_s, begin_s + DAY_S))}) "
                f"TO {quoted(str(target / 'lines.parquet'))} "
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROWS})"
            )
    if not days:
        raise MeterError(
            f"{files}: there is no line to export"
            + "".join(f"; {text}" for text in broken.texts[:1])
            + "; give a log that a metered server has written to"
        )
    return broken


def _parquet(column: Column) -> str:
    """A JSON is a text there, for readers that know no other."""
    text = "::VARCHAR" if column.kind is dict else ""
    return f'"{column.name}"{text} AS "{column.name}"'


class _Moved(NamedTuple):
    days: int
    lines: int
    kept: Sequence[Path]
    """Days of which the log has lost lines since."""


def _move(part: Path, folder: Path, *, replace: bool) -> _Moved:
    """Put the days into their place, each whole."""
    days = sorted(part.iterdir())
    there = [day.name for day in days if (folder / day.name).exists()]
    if there and not replace:
        raise MeterError(
            f"{folder} has {', '.join(there[:3])} already; give --replace, which exchanges whole "
            "days, or another --parquet"
        )
    counts = {day: _lines(day) for day in days}
    kept = [day for day in days if day.name in there and _lines(folder / day.name) > counts[day]]
    for day in set(days) - set(kept):
        if day.name in there:
            shutil.rmtree(folder / day.name)
        day.rename(folder / day.name)
    lines = sum(count for day, count in counts.items() if day not in kept)
    return _Moved(len(days) - len(kept), lines, kept)


def _lines(day: Path) -> int:
    """Of the files of a day; a file that cannot be read has none."""
    import duckdb

    try:
        files = quoted(str(day / "*.parquet"))
        ((count,),) = duckdb.sql(f"SELECT count(*) FROM read_parquet({files})").fetchall()
        return int(count)
    except duckdb.Error:
        return 0


def _left_out(broken: Broken) -> list[str]:
    count = [f"{broken.lines} broken lines are left out"] if broken.lines else []
    return [*count, *broken.texts]
