"""Joules that no reading tells: a counter that resets, a gap in power, a GPU that is lost."""

import pytest

from llm_carbon_meter.ledger import counters
from llm_carbon_meter.ledger.ledger import LOST_AFTER_S, EnergyLedger
from llm_carbon_meter.records import EnergyReading, Quality, Source
from tests.support.steps.cost_models import UNKNOWN
from tests.support.steps.ledgers import GPUS, book, close_to, end_of, ledger_of, read, step_of, wait


def test_a_reset_within_a_tick_keeps_what_came_before() -> None:
    """Joules counted before a jump back are divided, also where their tick was still growing."""
    ledger = ledger_of(tick_s=0.5)
    read(ledger, "gpu-0", (0, 1000), (0.2, 1020), (0.3, 3), (0.9, 63))
    ledger.observe_steps([step_of(0, 0.2, "before"), step_of(0.3, 0.9, "after")])
    ledger.close(end_of("before", 0.2))
    ledger.close(end_of("after", 0.9))
    joules = {record.request_id: record.joules for record in ledger.settle(0.9)}
    assert joules == close_to({"before": 20, "after": 60})
    assert ledger.totals()[0].counter_joules == close_to(80)


def test_a_reset_credits_nothing_and_says_so() -> None:
    """Joules over a reset are not known: no request gets any, and those that ran are marked."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 1000), (1, 1100), (2, 3), (3, 33))
    ledger.observe_steps([step_of(0, 1, "before"), step_of(1, 2, "amid"), step_of(2, 3, "after")])
    for name, at_s in (("before", 1), ("amid", 2), ("after", 3)):
        ledger.close(end_of(name, at_s))
    records = {record.request_id: record for record in ledger.settle(3)}
    figures = {name: (record.joules, record.quality) for name, record in records.items()}
    assert figures == {
        "before": (100, Quality.COUNTER),
        "amid": (0, Quality.RESET),
        "after": (30, Quality.COUNTER),
    }
    assert ledger.totals()[0].counter_joules == 130


def test_a_lost_gpu_keeps_nobody_waiting() -> None:
    """Silent for ten seconds, a GPU is given up: figures leave, marked, with what is known."""
    ledger = ledger_of(GPUS)
    read(ledger, "gpu-0", (0, 0), (1, 100))
    read(ledger, "gpu-1", (0, 0))
    ledger.observe_steps([step_of(0, 1, "a")])
    ledger.close(end_of("a", 1))
    assert ledger.settle(1) == []
    read(ledger, "gpu-0", (11, 800))
    assert wait(ledger, 1, LOST_AFTER_S) == []
    (record,) = wait(ledger, LOST_AFTER_S, LOST_AFTER_S + 2)
    assert (record.joules, record.quality) == (100, Quality.RESET)


def test_after_a_pause_of_ours_a_gpu_is_not_lost() -> None:
    """A step that hangs, or a process that stands still, says nothing of the GPU."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 100))
    ledger.settle(1)
    ledger.observe_steps([step_of(1, 20, "a")])
    ledger.close(end_of("a", 20))
    ledger.settle(20)
    ledger.settle(20.1)
    read(ledger, "gpu-0", (20.5, 2000))
    (record,) = ledger.settle(20.5)
    assert record.quality is Quality.COUNTER
    assert "unattributed" not in book(ledger.totals()[0])


def test_what_a_lost_gpu_counted_meanwhile_is_unattributed() -> None:
    """When it answers again its joules are in the book, and its next tick is divided as usual."""
    ledger = ledger_of(GPUS)
    read(ledger, "gpu-0", (0, 0), (1, 100))
    read(ledger, "gpu-1", (0, 0))
    ledger.observe_steps([step_of(0, 1, "a")])
    wait(ledger, 0, 12)
    read(ledger, "gpu-1", (12, 500))
    ledger.settle(12)
    assert book(ledger.totals()[1]) == {"unattributed": 500}
    ledger.observe_steps([step_of(12, 13, "b")])
    read(ledger, "gpu-1", (13, 600))
    ledger.settle(13)
    assert book(ledger.totals()[1]) == {"unattributed": 500, "decode": 100}
    assert ledger.totals()[1].counter_joules == 600


def test_a_gap_in_power_labels_who_ran_in_it() -> None:
    """However short: its joules are missing, and those after it are not spread over it."""
    ledger = ledger_of()
    ledger.observe_steps([step_of(0, 1, "a"), step_of(1, 1.5, "gap"), step_of(1.5, 2.5, "b")])
    read(ledger, "gpu-0", (0.0, 0.0), (1.0, 100.0))
    ledger.observe_reading(EnergyReading(1.5, "gpu-0", 100.0, quality=Quality.RESET))
    read(ledger, "gpu-0", (2.5, 200.0))
    for name in ("a", "gap", "b"):
        ledger.close(end_of(name, 2.5))
    final = {record.request_id: record for record in ledger.settle(2.5)}
    assert [final[name].quality for name in ("a", "gap", "b")] == [
        Quality.COUNTER,
        Quality.RESET,
        Quality.COUNTER,
    ]
    assert [final[name].joules for name in ("a", "gap", "b")] == pytest.approx([100, 0, 100])


@pytest.mark.parametrize("waiting", [2048, 1])
def test_joules_that_cannot_be_are_nobodys(monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    """Only who ran in that piece is labelled, also where ticks had to wait and were joined."""
    monkeypatch.setattr(counters, "MAX_WAITING_TICKS", waiting)
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 1000), (1, 1100))
    jump = EnergyReading(1.1, "gpu-0", 1_101_100.0, quality=Quality.IMPOSSIBLE)
    ledger.observe_reading(jump)
    read(ledger, "gpu-0", (2, 1_101_200), (3, 1_101_300))
    spans = {"before": (0, 1), "amid": (1, 1.1), "after": (2, 3)}
    ledger.observe_steps([step_of(start, end, name) for name, (start, end) in spans.items()])
    for name in spans:
        ledger.close(end_of(name, 3))
    final = {record.request_id: record for record in ledger.settle(3)}
    assert [final[name].quality for name in spans] == [
        Quality.COUNTER,
        Quality.IMPOSSIBLE,
        Quality.COUNTER,
    ]
    (totals,) = ledger.totals()
    assert book(totals)["unattributed"] == pytest.approx(1.1e6)
    assert sum(totals.account_joules) == pytest.approx(totals.counter_joules)
    assert totals.counter_joules == 1_100_300


def test_joules_that_are_missing_are_said_of_any_source() -> None:
    """Also where the source is worse than a reset: they are missing from what was modelled."""
    ledger = EnergyLedger(("gpu-0",), UNKNOWN, Source.MODELLED, Quality.MODELLED)
    ledger.observe_steps([step_of(0, 1, "lost"), step_of(1, 2, "kept")])
    read(ledger, "gpu-0", (0.0, 50.0), (1.0, 20.0), (2.0, 30.0))
    for name in ("lost", "kept"):
        ledger.close(end_of(name, 2.0))
    final = {record.request_id: record.quality for record in ledger.settle(2.0)}
    assert final == {"lost": Quality.RESET, "kept": Quality.MODELLED}
