"""Reports of a table of ClickHouse: its embedded engine where chdb is installed, behind HTTP."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llm_carbon_meter.cli import main
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.clickhouse import fetch
from llm_carbon_meter.report.periods import Period
from llm_carbon_meter.testing.servers import free_port
from tests.support.reports import new_line, write
from tests.support.servers.proxied import running

Answer = Callable[[str], Response]


def serving(answer: Answer, seen: list[Request] | None = None) -> Starlette:
    """ClickHouse's HTTP interface, answered by a function of the query."""

    async def query(request: Request) -> Response:
        if seen is not None:
            seen.append(request)
        return answer((await request.body()).decode())

    return Starlette(routes=[Route("/", query, methods=["POST"])])


@pytest.fixture
def clickhouse() -> Iterator[Answer]:
    """ClickHouse's own engine, in this process."""
    if importlib.util.find_spec("chdb") is None:
        pytest.skip("chdb is not installed: pip install chdb")
    from chdb.session import Session

    with Session() as session:

        def answer(query: str) -> Response:
            try:
                return Response(session.query(query).bytes())
            except RuntimeError as error:
                return Response(str(error), 404)

        yield answer


def test_a_table_of_clickhouse_gives_the_report_of_its_log(
    clickhouse: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the period alone, to the last digit."""
    lines = [
        new_line(tenant=tenant, energy_joules=number / 7, arrived_unix_s=1.77e9 + 86_400 * number)
        for number, tenant in enumerate(("acme", "zeta", "acme", "=1"))
    ]
    log = write(tmp_path / "requests.jsonl", *lines)
    assert main(["export", str(log), "--parquet", str(tmp_path / "warehouse")]) == 0
    files = f"file('{tmp_path}/warehouse/*/lines.parquet', Parquet)"
    clickhouse(f"CREATE TABLE default.lines ENGINE = Memory AS SELECT * FROM {files}")
    tables = []
    with running(serving(clickhouse)) as url:
        address = url.replace("http://", "clickhouse://") + "/default/lines"
        for source in (str(log), address):
            table = tmp_path / f"{len(tables)}.csv"
            options = ("--by", "tenant,day", "--since", "2026-02-03", "--csv", str(table))
            assert main(["report", source, *options]) == 0
            tables.append(table.read_text())
        assert "files: a table of ClickHouse" in capsys.readouterr().out
        assert main(["report", address.replace("lines", "nothing")]) == 1
        assert "has no table default.nothing" in capsys.readouterr().err
    assert tables[0] == tables[1]
    assert tables[0].count("\n") == 5


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("clickhouse://host:8123", "it names no table"),
        ("clickhouse://host:8123/lines", "it names no table"),
        ("clickhouse://host:8123/default/lines;drop", "it names no table"),
        ("clickhouse://user:SECRET@host:99999/default/lines", "expected a URL"),
        ("clickhouse://user:SECRET@host/default/lines?query=SECRET", "expected a URL"),
    ],
)
def test_an_address_that_cannot_be_used(address: str, said: str, tmp_path: Path) -> None:
    """The error has an example, and no password."""
    with pytest.raises(MeterError, match=said) as caught:
        fetch(address, Period(), tmp_path / "lines.parquet")
    assert "clickhouse://user:password@host:8123/default/lines" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_nobody_answers(tmp_path: Path) -> None:
    """The reason is told."""
    address = f"clickhouse://user:SECRET@127.0.0.1:{free_port()}/default/lines"
    with pytest.raises(MeterError, match="gave no answer") as caught:
        fetch(address, Period(), tmp_path / "lines.parquet")
    assert "SECRET" not in str(caught.value)


def test_a_refusal_is_told(tmp_path: Path) -> None:
    """With ClickHouse's own words; user and password are sent as they stand in the address."""
    seen: list[Request] = []

    def refuse(_query: str) -> Response:
        return Response("Code: 516. DB::Exception: user: Authentication failed\nmore", 403)

    with running(serving(refuse, seen)) as url:
        address = url.replace("http://", "clickhouse://user:SECRET@") + "/default/lines"
        with pytest.raises(MeterError, match=r"answers 403: Code: 516.*Authentication failed"):
            fetch(address, Period(), tmp_path / "lines.parquet")
    assert seen[0].headers["authorization"] == "Basic dXNlcjpTRUNSRVQ="
