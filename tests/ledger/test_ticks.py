"""Which steps a counter's tick belongs to, and when the counter has ticked."""

import pytest

from llm_carbon_meter.ledger.counters import STUCK_S
from llm_carbon_meter.records import Quality
from tests.support.steps.ledgers import GPUS, book, close_to, end_of, ledger_of, read, step_of


def test_a_step_in_two_ticks_gets_part_of_each() -> None:
    """A step from 1 to 3 s takes its share of the tick to 2 s and of the tick to 4 s."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (2, 1000), (4, 1300))
    ledger.observe_steps([step_of(1, 3, "a")])
    ledger.close(end_of("a", 3))
    (record,) = ledger.settle(4)
    watts = 70 + 0.65 * 630
    assert record.decode_joules == pytest.approx((1000 + 300) * watts / (watts + 70))
    assert book(ledger.totals()[0])["idle"] == pytest.approx(1300 * 70 / (watts + 70))


def test_a_tick_belongs_to_what_it_covers() -> None:
    """Of two requests one after the other, each has its own tick and nothing of the other's."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 100), (2, 107))
    ledger.observe_steps([step_of(0, 1, "a"), step_of(1, 2, "b")])
    ledger.close(end_of("a", 1))
    ledger.close(end_of("b", 2))
    assert {record.request_id: record.joules for record in ledger.settle(2)} == {"a": 100, "b": 7}


def test_two_gpus_are_added_up() -> None:
    """A request has its share of every GPU of the group, each with its own ticks."""
    ledger = ledger_of(GPUS)
    read(ledger, "gpu-0", (0, 5), (1, 105))
    read(ledger, "gpu-1", (0, 0), (0.4, 30), (1.5, 80))
    ledger.observe_steps([step_of(0, 2, "a", "b")])
    assert ledger.settle(2) == []
    ledger.close(end_of("a", 2))
    read(ledger, "gpu-0", (2, 205))
    assert ledger.settle(2) == []
    read(ledger, "gpu-1", (2, 100))
    (record,) = ledger.settle(2)
    assert record.joules == pytest.approx((200 + 100) / 2)
    assert [gpu.counter_joules for gpu in ledger.totals()] == [200, 100]


def test_a_counter_at_rest_has_not_ticked() -> None:
    """The same joules again are no tick, until they have stood for a second."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 10), (0.5, 10), (0.9, 10))
    ledger.observe_steps([step_of(0, 0.4, "a")])
    ledger.close(end_of("a", 0.4))
    assert ledger.settle(STUCK_S) == []
    read(ledger, "gpu-0", (STUCK_S, 10))
    (record,) = ledger.settle(STUCK_S)
    assert record.joules == ledger.totals()[0].counter_joules == 0


def test_joules_after_a_rest_belong_to_the_whole_rest() -> None:
    """A counter that moves every 0.1 s is divided over what happened since it last moved."""
    ledger = ledger_of()
    ledger.observe_steps([step_of(0, 0.05, "a")])
    read(ledger, "gpu-0", (0, 0), (0.05, 0), (0.1, 20))
    ledger.close(end_of("a", 0.05))
    (record,) = ledger.settle(0.1)
    assert record.joules == pytest.approx(20 * 479.5 / (479.5 + 70))


def test_readings_out_of_order_are_left_out() -> None:
    """A reading that is not later than the last changes nothing."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (1, 100), (2, 200), (1.5, 150), (2, 300), (3, 400))
    ledger.settle(3)
    assert ledger.totals()[0].counter_joules == 300


def test_a_lag_moves_ticks_back() -> None:
    """A counter that shows power 0.5 s late is credited to what ran 0.5 s before."""
    ledger = ledger_of(lag_s=0.5)
    read(ledger, "gpu-0", (0.5, 0), (1.5, 100), (2.5, 107))
    ledger.observe_steps([step_of(0, 1, "a")])
    ledger.close(end_of("a", 1))
    (record,) = ledger.settle(2)
    assert record.joules == 100


def test_ticks_are_at_least_as_long_as_wanted() -> None:
    """Short ticks are divided as one; a rest of the counter, or giving up, ends a tick at once."""
    ledger = ledger_of(tick_s=0.5)
    read(ledger, "gpu-0", (0, 0), (0.2, 90), (0.4, 95), (0.6, 100))
    ledger.observe_steps([step_of(0, 0.3, "a"), step_of(0.3, 0.6, "b"), step_of(0.6, 0.8, "c")])
    for name in "abc":
        ledger.close(end_of(name, 0.8))
    assert [record.joules for record in ledger.settle(0.8)] == close_to([50, 50])
    read(ledger, "gpu-0", (0.7, 107), (0.8, 110))
    assert ledger.settle(0.8) == []
    (record,) = ledger.give_up(0.8)
    assert (record.joules, record.quality) == (close_to(10), Quality.COUNTER)
