"""Lines of what no request is charged with: when they come, and that nothing is told twice."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_carbon_meter.exporters.log_line import Line
from llm_carbon_meter.frontend.account_lines import WHILE_S, AccountLines
from llm_carbon_meter.records import Account, EngineTotals, GpuTotals, Place
from tests.support.made.records import ACCOUNT_JOULES, TOTALS
from tests.support.servers.front_ends import front_end

BEGUN_S = 1_772_323_200.0


def lines_of(begun_s: float = BEGUN_S) -> AccountLines:
    """Of a server that began at midnight."""
    return AccountLines("llama", Place("one", host="here"), 1.2, "the GPUs", begun_s)


def times(factor: float, totals: EngineTotals = TOTALS) -> EngineTotals:
    """Later totals: so many times as much."""
    joules = tuple(factor * each for each in ACCOUNT_JOULES)
    gpu = GpuTotals("GPU-a", sum(joules), joules, joules, None)
    grams = tuple(factor * each for each in TOTALS.account_grams)
    return replace(totals, gpus=(gpu,), account_grams=grams)


def joules(lines: Sequence[Line]) -> list[float]:
    """Of each line."""
    return [line["energy_joules"] for line in lines]


def test_a_line_ends_with_a_quarter_of_an_hour() -> None:
    """It has every account, and what came since the line before."""
    lines = lines_of()
    assert lines.hear(times(1), BEGUN_S + 1) == []
    (first,) = lines.hear(times(2), BEGUN_S + WHILE_S)
    assert lines.hear(times(3), BEGUN_S + WHILE_S + 1) == []
    (second,) = lines.hear(times(5), BEGUN_S + 2 * WHILE_S + 3)
    for line, factor in ((first, 2), (second, 3)):
        accounts = [line[f"{account.label}_joules"] for account in Account]
        assert accounts == pytest.approx([factor * each for each in ACCOUNT_JOULES])
        assert line["energy_joules"] == pytest.approx(factor * 400.0)
        assert line["operational_grams"] == pytest.approx(factor * 40.0)
    assert (first["arrived_unix_s"], first["until_unix_s"]) == (BEGUN_S, BEGUN_S + WHILE_S)
    assert second["arrived_unix_s"] == first["until_unix_s"]
    assert (first["kind"], first["instance"], first["host"]) == ("accounts", "one", "here")


def test_the_rest_is_told_at_the_end_and_a_late_message_changes_nothing() -> None:
    """Each joule once."""
    lines = lines_of()
    told = lines.hear(times(4), BEGUN_S + WHILE_S)
    told += lines.hear(times(3), BEGUN_S + 2 * WHILE_S)
    told += lines.hear(times(7), BEGUN_S + 2 * WHILE_S - 1)
    told += lines.rest(BEGUN_S + 2 * WHILE_S)
    assert joules(told) == pytest.approx([1600.0, 1200.0])


def test_a_new_session_begins_at_zero() -> None:
    """What the old one had used and no line had is told."""
    lines = lines_of()
    assert lines.hear(times(4), BEGUN_S + 1) == []
    told = lines.hear(times(1, replace(TOTALS, session="second")), BEGUN_S + 2)
    told += lines.rest(BEGUN_S + 3)
    assert joules(told) == pytest.approx([1600.0, 400.0])
    assert [line["arrived_unix_s"] for line in told] == [BEGUN_S, BEGUN_S + 2]


def test_engines_have_lines_of_their_own_and_nothing_has_none() -> None:
    """Two engines; one that used nothing since."""
    lines = lines_of()
    for engine in (0, 1):
        lines.hear(replace(times(1 + engine), engine=engine), BEGUN_S + 1)
    told = lines.hear(replace(times(1), engine=0), BEGUN_S + WHILE_S)
    told += lines.rest(BEGUN_S + WHILE_S + 1)
    assert [(line["engine"], line["energy_joules"]) for line in told] == [
        (0, pytest.approx(400.0)),
        (1, pytest.approx(800.0)),
    ]


@pytest.mark.parametrize(("index", "expected"), [(0, [400.0]), (1, [])])
def test_the_first_api_server_logs_them(tmp_path: Path, index: int, expected: list[float]) -> None:
    """The others hear the same totals."""
    log = tmp_path / "log"
    meter = front_end(index=index, request_log=str(log))
    meter.receive_totals(TOTALS)
    meter.stop()
    files = [file for file in tmp_path.iterdir() if file.stat().st_size]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert joules(lines) == pytest.approx(expected)
