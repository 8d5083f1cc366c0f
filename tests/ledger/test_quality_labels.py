"""The quality label of a request: the worst that the source or a reading has."""

import pytest

from llm_carbon_meter.ledger.counters import MAX_WAITING_TICKS
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.records import EnergyReading, Quality, Source
from tests.support.steps.cost_models import UNKNOWN
from tests.support.steps.ledgers import end_of, ledger_of, read, step_of


def test_a_request_keeps_the_worst_label_that_it_met() -> None:
    """A tick read while the GPU was shared marks who ran in it, and nobody else; no joule moves."""
    ledger = ledger_of()
    steps = [
        step_of(0, 1, "early", "whole"),
        step_of(1, 2, "whole"),
        step_of(2, 3, "whole", "late"),
    ]
    ledger.observe_steps(steps)
    for at_s, quality in ((0.0, Quality.COUNTER), (1.0, Quality.COUNTER)):
        ledger.observe_reading(EnergyReading(at_s, "gpu-0", 100 * at_s, quality=quality))
    ledger.observe_reading(EnergyReading(2.0, "gpu-0", 200.0, quality=Quality.CONTENDED))
    ledger.observe_reading(EnergyReading(3.0, "gpu-0", 300.0))
    for name in ("early", "whole", "late"):
        ledger.close(end_of(name, 3.0))
    final = {record.request_id: record for record in ledger.settle(3.0)}
    assert {name: record.quality for name, record in final.items()} == {
        "early": Quality.COUNTER,
        "whole": Quality.CONTENDED,
        "late": Quality.COUNTER,
    }
    assert sum(record.joules for record in final.values()) == pytest.approx(300)


def test_a_reading_no_better_than_the_source_changes_no_label() -> None:
    """The source's own quality is the best that a request can have."""
    ledger = EnergyLedger(("gpu-0",), UNKNOWN, Source.MEASURED, Quality.MIG_PARENT)
    ledger.observe_steps([step_of(0, 1, "a")])
    read(ledger, "gpu-0", (0.0, 0.0), (1.0, 100.0))
    ledger.close(end_of("a", 1.0))
    (record,) = ledger.settle(1.0)
    assert record.quality is Quality.MIG_PARENT


def test_a_merged_tick_keeps_the_worse_label() -> None:
    """Ticks that wait for a step too long become one; so do their labels."""
    ledger = ledger_of()
    ledger.observe_reading(EnergyReading(0.0, "gpu-0", 0.0))
    for tick in range(1, MAX_WAITING_TICKS + 3):
        quality = Quality.CONTENDED if tick == MAX_WAITING_TICKS else Quality.COUNTER
        ledger.observe_reading(EnergyReading(tick * 0.1, "gpu-0", float(tick), quality=quality))
    end_s = (MAX_WAITING_TICKS + 2) * 0.1
    ledger.observe_steps([step_of(end_s - 0.15, end_s, "a")])
    ledger.close(end_of("a", end_s))
    (record,) = ledger.settle(end_s)
    assert record.quality is Quality.CONTENDED
