"""Lines of request logs in DuckDB, with bounded memory: read, judged, and what is wrong named."""

import contextlib
import glob
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_carbon_meter.exporters.log_line import COLUMNS, REQUEST, SQL_TYPES, Column
from llm_carbon_meter.extras import require
from llm_carbon_meter.frontend.request_log import opened
from llm_carbon_meter.records import ACCOUNT_NAMES, MeterError, Source
from llm_carbon_meter.report.files import PARQUET, REMOTE, Files
from llm_carbon_meter.report.periods import Period, iso

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY: Final = "200MB"
"""Of DuckDB; what does not fit goes to a temporary folder."""
MOST_THREADS: Final = 4
EXTENSIONS: Final = ("httpfs", "aws")
"""Of DuckDB, for object stores and their usual logins."""
BROKEN_NAMED: Final = 5
MOST: Final = 1e12
"""Joules, grams, litres or money of a line, beyond all that a data centre could spend on one."""
MOST_TOKENS: Final = 1e9
MOST_CHARACTERS: Final = 100
"""Of a name."""
LAST_UNIX_S: Final = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
SOURCES: Final = (Source.MEASURED, Source.MODELLED)
NOT_A_RECORD: Final = "not a record of the request log"
NO_USE: Final = "no use for a report: "

_REQUIRED: Final = {
    "arrived_unix_s": (0.0, LAST_UNIX_S),
    "energy_joules": (-MOST, MOST),
    "prompt_tokens": (0.0, MOST_TOKENS),
    "output_tokens": (0.0, MOST_TOKENS),
}
"""Limits of what a request must have."""
_OF_ACCOUNTS: Final = ("arrived_unix_s", "energy_joules")
"""Of these, what accounts must have too."""
_OPTIONAL: Final = {
    **{f"{name}_joules": (-MOST, MOST) for name in (*ACCOUNT_NAMES, "overhead", "unattributed")},
    **dict.fromkeys(("operational_grams", "embodied_grams", "host_joules"), (-MOST, MOST)),
    **dict.fromkeys(("water_litres", "energy_cost", "gpu_cost"), (-MOST, MOST)),
    "estimate_calibrated_joules": (-MOST, MOST),
    "uncertainty": (0.0, MOST),
    "pue": (1.0, 1000.0),
}
"""Limits of what a line may have."""
_FEATURES: Final = (
    *("arrived_unix_s", "max_tokens", "num_sequences", "concurrency"),
    *("num_steps", "decode_steps", "decode_tokens", "mean_running"),
)
_FIGURES: Final = "energy_joules VARCHAR, low_joules VARCHAR, high_joules VARCHAR"
_OLD_TYPES: Final = {
    "features": f"STRUCT({', '.join(f'{name} VARCHAR' for name in _FEATURES)})",
    "estimate": "STRUCT(method VARCHAR, output_tokens VARCHAR, facility BOOLEAN, "
    f"{_FIGURES}, calibrated STRUCT({_FIGURES}))",
    "conditional": f"STRUCT({_FIGURES}, calibrated STRUCT({_FIGURES}))",
}
"""Fields that lines of version 1 have and no later ones."""


def _calibrated(name: str, estimate: str = "estimate") -> str:
    return f"coalesce({estimate}.calibrated.{name}, {estimate}.{name})"


_OLD_PLACES: Final = {
    **{name: f"features.{name}" for name in _FEATURES},
    "estimate_method": "estimate.method",
    "estimate_joules": "estimate.energy_joules",
    "estimate_calibrated_joules": _calibrated("energy_joules"),
    "estimate_low_joules": _calibrated("low_joules"),
    "estimate_high_joules": _calibrated("high_joules"),
    "estimate_output_tokens": "estimate.output_tokens",
    "estimate_facility": "estimate.facility",
    "conditional_joules": _calibrated("energy_joules", "conditional"),
}
"""Where version 1 has what stands beside the other fields now."""
_TEXTS: Final = (
    *("kind", "source", "quality", "covers", "intensity_source", "estimate_facility"),
    *("model", "tenant", "adapter", "zone", "currency"),
    *("instance", "host", "pod", "node", "namespace"),
)
REPORTED: Final = tuple(
    column for column in COLUMNS if column.name in {*_REQUIRED, *_OPTIONAL, *_TEXTS}
)
"""The columns that a report needs."""


@dataclass(frozen=True, slots=True)
class Broken:
    """What was left out."""

    lines: int
    texts: Sequence[str]
    """Of the first lines and of all files that cannot be read: where, and what is wrong."""

    @property
    def sound(self) -> str:
        """The condition of the other lines; to judge all of Parquet anew takes its time."""
        return "wrong IS NULL" if self.lines else "true"


@contextlib.contextmanager
def database(wanted: str) -> Iterator["DuckDBPyConnection"]:
    """An empty data base in a temporary folder, which goes with it.

    Args:
        wanted: what it is for, for the error.

    Raises:
        MeterError: DuckDB is not installed, or met something that it cannot do.
    """
    require(wanted, "report", "duckdb")
    import duckdb

    with tempfile.TemporaryDirectory(prefix="llm-carbon-meter-") as folder:
        threads = 2
        limits = {"memory_limit": MEMORY, "threads": threads, "temp_directory": f"{folder}/spilt"}
        with duckdb.connect(f"{folder}/lines.duckdb", config=limits) as connection:
            try:
                connection.execute("SET preserve_insertion_order = false; SET TimeZone = 'UTC'")
                yield connection
            except duckdb.Error as error:
                raise MeterError(
                    f"{wanted}: the data base failed ({first_line(error)}); its temporary folder "
                    f"is {folder}: free some space, or set TMPDIR to another one"
                ) from error


def first_line(error: Exception) -> str:
    """What an error says, without the query and its place in it."""
    return clean(str(error).strip().partition("\n")[0], 300)


def clean(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text that fits a cell: of a bounded length, and without characters that move a cursor."""
    cut = text if len(text) <= most else text[:most] + "…"
    return "".join(character if character.isprintable() else "\ufffd" for character in cut)


def load(
    connection: "DuckDBPyConnection", files: Files, columns: Sequence[Column], period: Period
) -> Broken:
    """Make ``lines``: the columns, and `wrong`, which is null unless a line is of no use.

    JSON becomes a table, which is read again and again; Parquet is read where it lies.

    Args:
        connection: of an empty data base.
        files: to be read.
        columns: that are wanted.
        period: in which a request came, or accounts began.

    Raises:
        MeterError: there is no way to an object store.
    """
    if files.are_remote:
        _reach_stores(connection)
    types = ", ".join(f'"{column.name}" {SQL_TYPES[column.kind]}' for column in columns)
    wanted = ", ".join(f'"{column.name}"' for column in columns)
    connection.execute(f"CREATE TABLE staged ({types}, file VARCHAR, wrong VARCHAR)")

    def query(reader: Reader, names: Sequence[str]) -> str:
        judged = _judged(*reader(connection, names))
        return f"SELECT {wanted}, file, wrong FROM ({judged}) WHERE {within(period)}"

    def stage(names: Sequence[str]) -> None:
        kept = query(_from_json, names) + " OR wrong IS NOT NULL"
        connection.execute(f"INSERT INTO staged {kept}")

    def bad(relation: str) -> Mapping[str, int]:
        counting = f"SELECT file, count(*) FROM {relation} WHERE wrong IS NOT NULL GROUP BY file"
        return dict(connection.execute(counting).fetchall())

    def check(names: Sequence[str]) -> None:
        counts.update(bad(f"({_judged(*_from_parquet(connection, names))})"))

    _, unread_json = _sound(files.json, stage)
    counts = {**bad("staged")}
    sound, unread_parquet = _sound(files.parquet, check)
    parts = ["FROM staged", *([query(_from_parquet, sound)] if sound else [])]
    connection.execute(f"CREATE VIEW lines AS {' UNION ALL '.join(parts)}")
    texts = [*unread_json, *unread_parquet, *_named(connection, sorted(counts))]
    return Broken(sum(counts.values()), texts)


def _sound(
    names: Sequence[str], do: Callable[[Sequence[str]], None]
) -> tuple[list[str], list[str]]:
    """Do something with all files that can be read: these, and a word about each of the others."""
    import duckdb

    if not names:
        return [], []
    try:
        do(names)
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException) or "No space left" in str(error):
            raise
        if len(names) == 1:
            return [], [f"{clean(names[0], 300)}: cannot be read, left out: {first_line(error)}"]
        half = len(names) // 2
        (first, some), (second, others) = _sound(names[:half], do), _sound(names[half:], do)
        return first + second, some + others
    return list(names), []


def _reach_stores(connection: "DuckDBPyConnection") -> None:
    import duckdb

    try:
        for extension in EXTENSIONS:
            connection.execute(f"INSTALL {extension}; LOAD {extension}")
        connection.execute("CREATE SECRET (TYPE s3, PROVIDER credential_chain)")
    except duckdb.Error as error:
        raise MeterError(
            f"object stores need DuckDB's extensions {', '.join(EXTENSIONS)}, which cannot be "
            f"loaded ({first_line(error)}); let this host reach extensions.duckdb.org once, or "
            "copy the files here and give their folder"
        ) from error


Relation = tuple[str, Mapping[str, str]]
"""What stands behind FROM, and the expression of each column that is there."""
Reader = Callable[["DuckDBPyConnection", Sequence[str]], Relation]
"""Makes it for names of files."""


def _from_json(_connection: "DuckDBPyConnection", names: Sequence[str]) -> Relation:
    """Every figure as text, so that one that is none is noticed; a line that is no JSON is null."""
    types = {column.name: _text_type(column.kind) for column in COLUMNS} | _OLD_TYPES
    fields = ", ".join(f"'{name}': '{kind}'" for name, kind in types.items())
    source = (
        f"read_json({_list(names)}, columns = {{{fields}}}, format = 'newline_delimited', "
        "ignore_errors = true, filename = 'file')"
    )
    places = {
        column.name: f"coalesce({column.name}, {_OLD_PLACES[column.name]})"
        if column.name in _OLD_PLACES
        else column.name
        for column in COLUMNS
    }
    return source, places


def _text_type(kind: type) -> str:
    return "VARCHAR" if kind in (int, float) else SQL_TYPES[kind]


def _from_parquet(connection: "DuckDBPyConnection", names: Sequence[str]) -> Relation:
    source = f"read_parquet({_list(names)}, union_by_name = true, filename = 'file')"
    there = {row[0] for row in connection.execute(f"DESCRIBE FROM {source}").fetchall()}
    return source, {column.name: column.name for column in COLUMNS if column.name in there}


def _list(names: Sequence[str]) -> str:
    """In SQL; DuckDB takes a name for a pattern, which only that of an object store may be."""
    plain = (name if REMOTE.match(name) else glob.escape(name) for name in names)
    return "[" + ", ".join(map(quoted, plain)) + "]"


def quoted(text: str) -> str:
    """A text in SQL; older versions of DuckDB take no NUL in one."""
    parts = ("'" + part.replace("'", "''") + "'" for part in text.split("\0"))
    return "(" + " || chr(0) || ".join(parts) + ")" if "\0" in text else next(parts)


def within(period: Period) -> str:
    """The condition that a line is of a period."""
    limits = [(">=", period.since_s), ("<", period.until_s)]
    sides = [f"arrived_unix_s {sign} {at!r}" for sign, at in limits if math.isfinite(at)]
    return " AND ".join(sides) or "true"


def _judged(source: str, places: Mapping[str, str]) -> str:
    """A query with every column, in its type, and with `wrong`."""
    found = {**{column.name: "NULL" for column in COLUMNS}, **places}
    raw = ", ".join(f'{place} AS "{name}"' for name, place in found.items())
    typed = ", ".join(
        f'{_value(column.name, column.kind)} AS "{column.name}"' for column in COLUMNS
    )
    return f"SELECT {typed}, file, {_verdict()} AS wrong FROM (SELECT {raw}, file FROM {source})"


def _value(name: str, kind: type) -> str:
    if name == "kind":
        return f"coalesce(kind, '{REQUEST}')"
    return f'try_cast("{name}" AS {SQL_TYPES[kind]})'


def _verdict() -> str:
    """What is wrong with a line, or null."""
    cases = [
        f"WHEN source IS NULL OR energy_joules IS NULL THEN '{NOT_A_RECORD}: it has no ' || "
        "CASE WHEN source IS NULL THEN 'source' ELSE 'energy_joules' END"
    ]
    texts = ", ".join(map(quoted, SOURCES))
    cases.append(
        f"WHEN source NOT IN ({texts}) THEN '{NO_USE}source is ' || left(source, 40) || "
        f"'; expected one of {', '.join(SOURCES)}'"
    )
    for name, (low, high) in _REQUIRED.items():
        asked = "" if name in _OF_ACCOUNTS else f"coalesce(kind, '{REQUEST}') = '{REQUEST}' AND "
        cases.append(f"WHEN {asked}{_beyond(name, low, high)}")
    for name, (low, high) in _OPTIONAL.items():
        cases.append(f"WHEN {name} IS NOT NULL AND {_beyond(name, low, high)}")
    return f"CASE {' '.join(cases)} END"


def _beyond(name: str, low: float, high: float) -> str:
    inside = f"coalesce(try_cast({name} AS DOUBLE) BETWEEN {low!r} AND {high!r}, false)"
    shown = f"coalesce(left({name}::VARCHAR, 40), 'missing')"
    return (
        f"NOT {inside} THEN '{NO_USE}{name} is ' || {shown} || "
        f"'; expected a number from {low:g} to {high:g}'"
    )


def _named(connection: "DuckDBPyConnection", files: Sequence[str]) -> list[str]:
    """The first lines that are of no use: file, number of the line, and why."""
    texts: list[str] = []
    for file in files:
        reader = _from_parquet if file.endswith(PARQUET) else _from_json
        query = (
            f"SELECT number, wrong FROM (SELECT wrong, row_number() OVER () AS number "
            f"FROM ({_judged(*reader(connection, [file]))})) WHERE wrong IS NOT NULL "
            f"ORDER BY number LIMIT {BROKEN_NAMED - len(texts)}"
        )
        connection.execute("SET preserve_insertion_order = true")
        rows = connection.execute(query).fetchall()
        connection.execute("SET preserve_insertion_order = false")
        numbers = _line_numbers(Path(file), [row[0] for row in rows])
        texts += [
            f"{clean(file, 300)}, line {number}: {clean(row[1], 300)}"
            for number, row in zip(numbers, rows, strict=True)
        ]
        if len(texts) == BROKEN_NAMED:
            break
    return texts


def _line_numbers(file: Path, places: Sequence[int]) -> Sequence[int]:
    """Numbers of lines by their places among those that are not empty, which alone are read."""
    if file.suffix == PARQUET or not file.exists():
        return places
    with opened(file) as lines:
        filled = (number for number, line in enumerate(lines, 1) if line.strip())
        wanted = dict(zip(range(1, places[-1] + 1), filled, strict=False))
    return [wanted[place] for place in places]


def span(connection: "DuckDBPyConnection", files: Files) -> tuple[int, str]:
    """How many requests all files hold, and when these came: for the error of an empty period."""
    counted = [
        connection.execute(
            f"SELECT count(*), min(arrived_unix_s), max(arrived_unix_s) FROM ({judged}) "
            f"WHERE wrong IS NULL AND kind = '{REQUEST}'"
        ).fetchone()
        for names, reader in ((files.json, _from_json), (files.parquet, _from_parquet))
        if names
        for judged in [_judged(*reader(connection, names))]
    ]
    some = [row for row in counted if row is not None and row[0]]
    if not some:
        return 0, ""
    requests, firsts, lasts = zip(*some, strict=True)
    return sum(requests), f"from {iso(min(firsts))} to {iso(max(lasts))}"
