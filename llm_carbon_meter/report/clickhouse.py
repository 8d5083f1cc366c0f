"""Lines of a table of ClickHouse, by its HTTP interface: it picks them, the report adds them up.

The table has the columns of the request log, as `export`'s Parquet brings them:

    CREATE TABLE lines ENGINE = MergeTree ORDER BY arrived_unix_s
        AS SELECT * FROM file('warehouse/*/lines.parquet')
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httpx

from llm_carbon_meter.addresses import check_url, is_loopback, shown_url, split_login
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.database import REPORTED, first_line, within
from llm_carbon_meter.report.periods import Period

SCHEMES: Final[Mapping[str, str]] = {"clickhouse://": "http://", "clickhouses://": "https://"}
"""Of our addresses, and of ClickHouse's own."""
ADVICE: Final = "give one such as clickhouse://user:password@host:8123/default/lines"
TIMEOUT_S: Final = 300.0
"""Of each read: ClickHouse may look through many lines before the first that it sends."""
_PLACE: Final = re.compile(r"/(\w+)/(\w+)/?")
_NAMES: Final = "SELECT name FROM system.columns WHERE database = '{}' AND table = '{}' FORMAT TSV"


def fetch(address: str, period: Period, file: Path) -> None:
    """Write the lines of a period as Parquet.

    Args:
        address: ``clickhouse://HOST:PORT/DATABASE/TABLE``, with ``clickhouses`` by TLS.
        period: of the lines.
        file: to be written.

    Raises:
        MeterError: the address cannot be used, nobody answers, or there is no such table.
    """
    url, database, table = _parts(address)
    with _client(url) as client:
        with _asked(client, _NAMES.format(database, table)) as answer:
            there = set(answer.read().decode().split())
        if "energy_joules" not in there:
            raise MeterError(
                f"{shown_url(url)} has no table {database}.{table} of a request log; {ADVICE}"
            )
        names = ", ".join(column.name for column in REPORTED if column.name in there)
        query = f"SELECT {names} FROM {database}.{table} WHERE {within(period)} FORMAT Parquet"
        with _asked(client, query) as answer, file.open("wb") as parquet:
            for part in answer.iter_bytes():
                parquet.write(part)


def _parts(address: str) -> tuple[str, str, str]:
    """ClickHouse's own address, the database and the table."""
    scheme, _, rest = address.partition("://")
    url = SCHEMES[f"{scheme}://"] + rest
    try:
        parts = urlsplit(check_url(url, query=False))
        place = _PLACE.fullmatch(parts.path)
        if place is None:
            raise ValueError("it names no table")
    except ValueError as error:
        raise MeterError(
            f"the address of ClickHouse {shown_url(url)} cannot be used: {error}; {ADVICE}"
        ) from None
    return urlunsplit(parts._replace(path="/")), place[1], place[2]


def _client(url: str) -> httpx.Client:
    address, login = split_login(url)
    return httpx.Client(
        base_url=address, auth=login, timeout=TIMEOUT_S, trust_env=not is_loopback(address)
    )


@contextmanager
def _asked(client: httpx.Client, query: str) -> Iterator[httpx.Response]:
    settings: Mapping[str, Any] = {"output_format_parquet_string_as_string": 1}
    where = shown_url(str(client.base_url))
    try:
        with client.stream("POST", "/", params=settings, content=query) as answer:
            if answer.status_code != httpx.codes.OK:
                said = first_line(RuntimeError(answer.read().decode("utf-8", "replace")))
                raise MeterError(
                    f"ClickHouse at {where} answers {answer.status_code}: {said}; {ADVICE}"
                )
            yield answer
    except httpx.HTTPError as error:
        reason = f"{type(error).__name__}: {error}"
        raise MeterError(f"ClickHouse at {where} gave no answer ({reason}); {ADVICE}") from error
