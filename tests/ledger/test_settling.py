"""When a figure is provisional, when the ledger settles it, and when the ledger gives up."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.ledger.counters import MAX_WAITING_TICKS
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.physics.gpu_specs import at_limit
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.power.modelled import ModelledMeter
from llm_carbon_meter.records import (
    Account,
    Outcome,
    Quality,
    RequestEnergy,
    Source,
    Status,
    StepEvent,
)
from tests.support.steps.cost_models import H100, QWEN
from tests.support.steps.ledger_worlds import World, played, settlings, steps_of_a_world, worlds
from tests.support.steps.ledgers import GPUS, book, close_to, end_of, ledger_of, read, step_of


@settings(max_examples=150, deadline=None)
@given(world=worlds(), settle_at=settlings, idle_by_time=st.booleans())
def test_it_does_not_matter_when_ticks_are_settled(
    world: World, settle_at: list[bool], idle_by_time: bool
) -> None:
    """Settling after every event, after some, or once at the end gives the same figures."""

    def figures(marks: list[bool]) -> dict[str, tuple[Any, ...]]:
        play = played(world, marks, idle_by_time=idle_by_time)
        return {
            record.request_id: (
                close_to(record.joules),
                close_to(record.accounts.idle),
                record.quality,
                record.num_steps,
                record.last_step_s,
            )
            for record in play.final
        }

    once = {
        name: (joules.expected, idle.expected, *rest)
        for name, (joules, idle, *rest) in figures([False]).items()
    }
    assert once == figures([True])
    assert once == figures(settle_at)


@settings(max_examples=100, deadline=None)
@given(steps=steps_of_a_world(), delay=st.integers(0, 3), gpus=st.integers(1, 2))
def test_provisional_equals_final_where_power_is_as_modelled(
    steps: list[StepEvent], delay: int, gpus: int
) -> None:
    """With a source that counts exactly the expected watts, the first figure is the last."""
    meter = ModelledMeter(H100, gpus, 0.0)
    ledger = EnergyLedger(meter.gpus, QWEN, meter.source, meter.quality)
    last_s = {name: step.done_s for step in steps for name in step.request_ids}
    provisional: dict[str, RequestEnergy] = {}
    final: dict[str, RequestEnergy] = {}

    def tick(known_until_s: float) -> None:
        for reading in meter.read():
            ledger.observe_reading(reading)
        final.update({record.request_id: record for record in ledger.settle(known_until_s)})

    tick(0.0)
    for number, step in enumerate(steps):
        meter.add_load(ledger.observe_steps([step]), step.done_s)
        for name in step.request_ids:
            if last_s[name] == step.done_s:
                provisional[name] = ledger.close(end_of(name, step.done_s))
        if number % (delay + 1) == delay:
            tick(step.done_s)
    over_s = steps[-1].done_s + 1 if steps else 1.0
    meter.add_load([], over_s)
    tick(over_s)
    assert provisional.keys() == final.keys()
    for name, record in final.items():
        assert record.joules == pytest.approx(provisional[name].joules, rel=1e-9)
        assert provisional[name].status is Status.PROVISIONAL
        assert record.source is Source.MODELLED


def test_a_figure_waits_for_its_last_tick() -> None:
    """Half settled, a request's provisional figure is filled from the model at the recent scale."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 239.75))
    ledger.observe_steps([step_of(0, 2, "a")])
    ledger.settle(1)
    provisional = ledger.close(end_of("a", 2))
    assert provisional.status is Status.PROVISIONAL
    # 479.5 W were expected and half of that was counted.
    assert provisional.joules == pytest.approx(239.75 + 0.5 * 479.5)
    assert ledger.settle(2) == []
    assert ledger.num_closed == 1
    read(ledger, "gpu-0", (2, 1000))
    (final,) = ledger.settle(2)
    assert final.joules == pytest.approx(1000)
    assert final.status is Status.FINAL


@pytest.mark.parametrize(("limit", "at_most"), [(700.0, 700.0), (500.0, 500.0)])
def test_what_is_filled_in_is_no_more_than_a_gpu_may_draw(limit: float, at_most: float) -> None:
    """Twice as much was counted as was expected: 896 W, which no H100 goes on to draw."""
    ledger = ledger_of(model=CostModel(at_limit(H100, limit), None))
    read(ledger, "gpu-0", (0, 0), (1, 896))
    ledger.observe_steps([step_of(0, 2, "a")])
    ledger.settle(1)
    assert ledger.close(end_of("a", 2)).joules == pytest.approx(896 + at_most)


def test_ticks_wait_for_steps_that_are_still_running() -> None:
    """A tick beyond what is known is not settled: a step in it may still come."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 50), (2, 100))
    ledger.settle(1.5)
    assert ledger.totals()[0].counter_joules == 50
    ledger.observe_steps([step_of(1.5, 3, "a")])
    ledger.settle(3)
    assert ledger.totals()[0].counter_joules == 100
    assert book(ledger.totals()[0])["decode"] > 0


def test_a_request_that_never_ran_does_not_wait() -> None:
    """Aborted in the queue, a request is final at the next settling, with 0 J."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0))
    provisional = ledger.close(end_of("queued", 5, Outcome.ABORTED))
    (record,) = ledger.settle(0)
    assert (provisional.joules, record.joules, record.num_steps) == (0, 0, 0)
    assert (record.status, record.outcome) == (Status.FINAL, Outcome.ABORTED)
    assert (record.first_step_s, record.last_step_s, record.mean_running) == (5, 5, 0)
    assert ledger.num_open == ledger.num_closed == 0


def test_ticks_of_a_hanging_step_are_bounded() -> None:
    """While nothing can be settled, late ticks grow into one and no joule is lost."""
    ledger = ledger_of()
    for number in range(MAX_WAITING_TICKS + 500):
        read(ledger, "gpu-0", (number * 0.05, number * 2.0))
    ledger.observe_steps([step_of(0, 200, "a")])
    ledger.close(end_of("a", 200))
    assert len(ledger._gpus["gpu-0"].counter.ticks) == MAX_WAITING_TICKS
    ledger.settle(200)
    totals = ledger.totals()[0]
    assert totals.counter_joules == 2.0 * (MAX_WAITING_TICKS + 499)
    assert book(totals) == close_to({"decode": totals.counter_joules})


def test_giving_up_labels_what_is_not_known() -> None:
    """Without another tick a request leaves with what was settled, marked as damaged."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 100))
    ledger.observe_steps([step_of(0, 1, "whole"), step_of(1, 2, "half")])
    ledger.close(end_of("whole", 1))
    ledger.close(end_of("half", 2))
    whole, *rest = ledger.settle(2)
    assert (whole.request_id, whole.quality, rest) == ("whole", Quality.COUNTER, [])
    (half,) = ledger.give_up(2)
    assert (half.joules, half.quality, half.status) == (0, Quality.RESET, Status.FINAL)


def test_the_intensity_of_the_moment_counts() -> None:
    """Grams of a tick follow the intensity at which it was settled, as do provisional ones."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 479.5))
    ledger.observe_steps([step_of(0, 2, "a")])
    ledger.settle(1, grams_per_joule=1.0)
    provisional = ledger.close(end_of("a", 2), grams_per_joule=3.0)
    assert provisional.operational_grams == pytest.approx(479.5 + 3 * 479.5)
    read(ledger, "gpu-0", (2, 489.5))
    (record,) = ledger.settle(2, grams_per_joule=3.0)
    assert record.operational_grams == pytest.approx(479.5 + 3 * 10)
    assert ledger.account_grams[Account.DECODE] == pytest.approx(509.5)


def test_before_the_first_reading_nothing_is_counted() -> None:
    """Totals are zero, and a figure is filled from the model."""
    ledger = ledger_of(GPUS)
    ledger.observe_steps([step_of(0, 1, "a")])
    assert ledger.close(end_of("a", 1)).joules == pytest.approx(2 * 479.5)
    assert ledger.settle(1) == []
    assert [(g.counter_joules, sum(g.account_joules)) for g in ledger.totals()] == [(0, 0)] * 2
