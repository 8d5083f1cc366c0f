"""All energy of the GPUs: requests, idle, overhead and unattributed add up to the counters."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.frontend.exchanges import Exchange
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import Account, EngineTotals, EventBatch, RequestEnergy
from llm_carbon_meter.report.gpu_accounts import HEADING
from llm_carbon_meter.report.text import GPUS, table
from llm_carbon_meter.units import watt_hours
from tests.support.reports import NOON, made, new_line, report_of
from tests.support.servers.front_ends import front_end
from tests.test_meter import END, STEP, Counter, Published, meter_of


def accounts(**changes: Any) -> dict[str, Any]:
    """A line of a quarter of an hour: 10 Wh, of them 1 of requests and 6 idle."""
    joules = {"decode": 3600.0, "idle": 6 * 3600.0, "overhead": 2 * 3600.0, "unattributed": 3600.0}
    return {
        "version": 2,
        "kind": "accounts",
        "model": "Llama",
        "source": "measured",
        "arrived_unix_s": NOON,
        "until_unix_s": NOON + 900.0,
        "energy_joules": 36_000.0,
        **{f"{name}_joules": value for name, value in joules.items()},
        "operational_grams": 5.0,
        **changes,
    }


def row(folder: Path, *records: dict[str, Any], by: str = "model") -> Mapping[str, Any]:
    """The only one of the table."""
    (part,) = report_of(folder, *records, by=by).gpus
    return dict(zip(HEADING, part.figures, strict=True))


def test_requests_and_accounts_are_one_sum(tmp_path: Path) -> None:
    """What was charged to requests that the log has not stands by itself."""
    found = row(tmp_path, new_line(energy_joules=3000.0), accounts())
    assert found == pytest.approx(
        {
            "requests_wh": watt_hours(3000.0),
            "not_in_log_wh": watt_hours(600.0),
            "idle_wh": 6.0,
            "overhead_wh": 2.0,
            "unattributed_wh": 1.0,
            "gpus_wh": 10.0,
            "operational_grams": 5.0,
            "embodied_grams": None,
        }
    )


def test_idle_that_was_spread_over_requests_is_not_counted_twice(tmp_path: Path) -> None:
    """It is in the account idle all the same."""
    spread = new_line(energy_joules=7200.0, idle_joules=3600.0)
    found = row(tmp_path, spread, accounts())
    assert (found["requests_wh"], found["not_in_log_wh"]) == (1.0, 0.0)
    assert (found["idle_wh"], found["gpus_wh"]) == (6.0, 10.0)


def test_gpus_have_no_tenants(tmp_path: Path) -> None:
    """They are grouped by what they have of the names."""
    records = [new_line(tenant="a"), accounts(), accounts(arrived_unix_s=NOON + 86_400.0)]
    report = report_of(tmp_path, *records, by="tenant,day")
    assert [part.labels for part in report.gpus] == [["2026-03-01"], ["2026-03-02"]]
    assert len(report_of(tmp_path, *records, by="tenant").gpus) == 1


def test_measured_and_modelled_gpus_stay_apart(tmp_path: Path) -> None:
    """A row for each source."""
    report = report_of(tmp_path, new_line(), accounts(), accounts(source="modelled"))
    assert [part.source for part in report.gpus] == ["measured", "modelled"]
    assert GPUS in table(report)


def test_a_log_without_accounts_says_where_they_are(tmp_path: Path) -> None:
    """Nothing is not 0 Wh."""
    text = table(report_of(tmp_path, new_line()))
    assert GPUS not in text
    assert "idle, overhead and unattributed energy of the GPUs is not in this log" in text


@pytest.mark.parametrize("idle", ["separate", "by_time"])
def test_the_log_of_a_server_adds_up_to_the_counters(tmp_path: Path, idle: str) -> None:
    """A real meter's figures through a real front end: two GPUs of 300 W, busy for a second and
    idle for another."""
    log = tmp_path / "requests.jsonl"
    published, counter = Published(), Counter(["gpu-0", "gpu-1"])
    batches = EventBatch([STEP], [END], 1.0, False), EventBatch([], [], 3.0, False)
    meter = meter_of(published, counter, *batches, idle=idle)
    served = front_end(request_log=str(log))
    exchange = Exchange()
    served.begin(exchange, "a", "mine", Prompt(10), 5)
    served.end(exchange, answered=True)
    for at_s in (0.0, 1.0):
        meter._readings.extend(counter.at(at_s))
    meter._turn()
    meter._readings.extend([*counter.at(2.0), *counter.at(3.0)])
    meter._turn()
    totals = meter._totals()
    for message in [*published, totals]:
        if isinstance(message, RequestEnergy):
            served.receive_energies([message])
        elif isinstance(message, EngineTotals):
            served.receive_totals(message)
    served.stop()
    counted = sum(gpu.counter_joules for gpu in totals.gpus)
    booked = {
        account: sum(gpu.account_joules[account] for gpu in totals.gpus) for account in Account
    }
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    assert sorted(one["kind"] for one in lines) == ["accounts", "request"]
    (part,) = made(log).gpus
    found = dict(zip(HEADING, part.figures, strict=True))
    names = ("requests_wh", "idle_wh", "overhead_wh", "unattributed_wh")
    assert found["gpus_wh"] == pytest.approx(watt_hours(counted), rel=1e-12)
    assert sum(found[name] for name in names) == pytest.approx(found["gpus_wh"], rel=1e-9)
    assert found["not_in_log_wh"] == pytest.approx(0.0, abs=1e-12)
    assert found["idle_wh"] == pytest.approx(watt_hours(booked[Account.IDLE]))
    assert booked[Account.IDLE] > 0


def test_what_rounding_leaves_is_nothing(tmp_path: Path) -> None:
    """The same joules, less a rounding, are not said to be in no log."""
    found = row(tmp_path, new_line(energy_joules=3600.0 * (1 + 1e-15)), accounts())
    assert found["not_in_log_wh"] == 0.0
