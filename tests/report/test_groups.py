"""Groups by several names at once, in a time zone, and money that is never mixed."""

from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.cli import main
from llm_carbon_meter.report.periods import moment
from llm_carbon_meter.report.text import facts, table
from tests.support.reports import at, csv_rows, line, new_line, report_of


def test_requests_are_grouped_by_several_names(tmp_path: Path) -> None:
    """Each has a column; what a line does not say is said to be so."""
    records = [
        new_line(tenant="acme", adapter="sql"),
        new_line(tenant="acme"),
        new_line(tenant="zeta", model="Qwen"),
        line(),
    ]
    rows = csv_rows(tmp_path, *records, by="tenant,model,adapter")
    found = [(row["tenant"], row["model"], row["adapter"], row["requests"]) for row in rows]
    assert found == [
        ("acme", "Llama", "none", "1"),
        ("acme", "Llama", "sql", "1"),
        ("not said", "Llama", "none", "1"),
        ("zeta", "Qwen", "none", "1"),
        ("all", "", "", "4"),
    ]


@pytest.mark.parametrize("by", ["tenant,tenant", "colour", "", "model,", "model;drop table lines"])
def test_other_names_are_wrong_usage(by: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, with those that there are."""
    with pytest.raises(SystemExit, match="2"):
        main(["report", "log", "--by", by])
    assert "give some of model,tenant,adapter,zone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("by", "labels"),
    [
        ("day", ["2026-10-24", "2026-10-25", "all"]),
        ("month", ["2026-10"]),
        ("hour", ["2026-10-24 23:00 +02", "2026-10-25 02:00 +01", "2026-10-25 02:00 +02", "all"]),
    ],
)
def test_days_and_hours_are_those_of_the_time_zone(
    tmp_path: Path, by: str, labels: list[str]
) -> None:
    """At the end of summer time an hour comes twice."""
    times = ["2026-10-24T21:30Z", "2026-10-25T00:30Z", "2026-10-25T01:30Z"]
    records = [line(**at(moment(time))) for time in times]
    rows = csv_rows(tmp_path, *records, by=by, options=("--timezone", "Europe/Berlin"))
    assert [row[by] for row in rows] == labels


def test_a_month_of_a_time_zone_begins_there(tmp_path: Path) -> None:
    """A request of the last hour of March in UTC is one of April in Berlin."""
    records = [line(**at(moment("2026-03-31T22:30Z"))), line(**at(moment("2026-03-31T21:30Z")))]
    options = ("--timezone", "Europe/Berlin", "--period", "2026-04")
    (row,) = csv_rows(tmp_path, *records, by="day", options=options)
    assert (row["day"], row["requests"]) == ("2026-04-01", "1")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/passwd", "/etc/passwd", "x" * 300])
def test_a_time_zone_that_is_none_is_wrong_usage(
    zone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2."""
    with pytest.raises(SystemExit, match="2"):
        main(["report", "log", "--timezone", zone])
    assert "is no time zone of this host; give one such as UTC" in capsys.readouterr().err


def test_a_month_without_requests_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says when the log's requests came."""
    csv_rows(tmp_path, line())
    assert main(["report", str(tmp_path / "requests.jsonl"), "--period", "2026-02"]) == 1
    text = capsys.readouterr().err
    assert "no request came in the period asked for (from 2026-02-01T00:00:00Z until" in text
    assert "the log's 1 requests came from 2026-03-01T12:00:00Z" in text


def cost(currency: str | None = "EUR", **changes: Any) -> dict[str, Any]:
    """A line that costs 2 for its energy and 3 for the GPUs."""
    return new_line(energy_cost=2.0, gpu_cost=3.0, currency=currency, **changes)


def test_money_of_one_currency_is_added(tmp_path: Path) -> None:
    """Like everything beside the GPUs' energy, where every request has it."""
    more = {"host_joules": 360.0, "water_litres": 0.25}
    (row,) = csv_rows(tmp_path, cost(**more), cost(**more))
    assert (row["energy_cost"], row["gpu_cost"], row["cost_currency"]) == ("4.0", "6.0", "EUR")
    assert float(row["host_wh"]) == pytest.approx(0.2)
    assert (row["water_litres"], row["energy_wh"]) == ("0.5", "2.0")
    (row,) = csv_rows(tmp_path, cost(**more), new_line())
    assert [row[name] for name in ("energy_cost", "host_wh", "water_litres")] == [""] * 3


def test_currencies_are_never_added(tmp_path: Path) -> None:
    """There is no sum, a remark says why, and they can be told apart."""
    report = report_of(tmp_path, cost(), cost("USD"))
    assert report.groups[0].cost("energy_cost") is None
    assert "EUR, USD" in table(report)
    assert any("--by currency keeps them apart" in text for _, text in facts(report))
    rows = csv_rows(tmp_path, cost(), cost("USD"), by="currency")
    assert [(row["currency"], row["energy_cost"]) for row in rows] == [
        ("EUR", "2.0"),
        ("USD", "2.0"),
        ("all", ""),
    ]


def test_intervals_are_added_as_if_all_were_off_to_one_side(tmp_path: Path) -> None:
    """1 Wh within 10 % and 3 Wh within 2 %: at most 4 % of 4 Wh; nothing where one has none."""
    third = {"energy_joules": 3 * 3600.0, "uncertainty": 0.02}
    (row,) = csv_rows(tmp_path, new_line(uncertainty=0.1), new_line(**third))
    assert float(row["at_most_off_percent"]) == pytest.approx(4.0)
    report = report_of(tmp_path, new_line(uncertainty=0.1), new_line())
    assert "1 requests have no interval: no sum for a group with them" in table(report)
    (row,) = csv_rows(tmp_path, new_line(uncertainty=0.1), new_line())
    assert row["at_most_off_percent"] == ""


def test_both_versions_of_lines_give_the_same_figures(tmp_path: Path) -> None:
    """Whatever a line of version 1 says in other places."""
    (old,) = csv_rows(tmp_path, line())
    (new,) = csv_rows(tmp_path, new_line())
    assert old == new


@pytest.mark.parametrize("name", ["all", "not said", "none"])
def test_a_name_that_is_a_word_of_ours_is_a_group_of_its_own(tmp_path: Path, name: str) -> None:
    """In quotation marks; it is neither the total nor those without a name."""
    for others in ([], [new_line()]):
        rows = csv_rows(tmp_path, new_line(tenant=name), *others, by="tenant")
        labels = {row["tenant"]: row["requests"] for row in rows}
        assert labels[f'"{name}"'] == "1"
        assert labels.get("not said") == ("1" if others else None)
