"""The host's joules: by time alone, in a book of their own, and none of them lost."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.records import (
    Account,
    EnergyReading,
    HostTotals,
    Quality,
    RequestEnergy,
    Source,
    Status,
)
from tests.support.steps.ledger_worlds import (
    Play,
    World,
    played,
    readings_of_a_gpu,
    settlings,
    shares_of,
    spans_of,
    ticks_of,
    worlds,
)
from tests.support.steps.ledgers import close_to, end_of, ledger_of, overhead, read, step_of, wait

HOST = ("package", "dram")
OTHERS = (Account.OVERHEAD, Account.IDLE, Account.UNATTRIBUTED)


@st.composite
def worlds_on_a_host(draw: st.DrawFn, resets: bool) -> tuple[World, list[EnergyReading]]:
    """Two counters of the host beside the GPUs', with ticks of their own."""
    world = draw(worlds(resets=False))
    readings = [r for name in HOST for r in draw(readings_of_a_gpu(name, world.over_s, resets))]
    return world, readings


def played_on_a_host(
    world: World, readings: Sequence[EnergyReading], settle_at: Sequence[bool]
) -> Play:
    """With the host's book, to the end of all readings."""
    play = played(world, settle_at, host_readings=readings, host=HOST, host_source=Source.MEASURED)
    over_s = max(reading.monotonic_s for reading in (*world.readings, *readings))
    play.final += play.ledger.settle(over_s)
    return play


def owed_of_the_host(world: World, readings: Sequence[EnergyReading]) -> dict[str, float]:
    """Joules of each request: of each tick the part of its seconds, divided as its steps are."""
    joules: dict[str, float] = {}
    on_host = replace(world, readings=readings)
    for tick_start, tick_end, counted in (t for name in HOST for t in ticks_of(on_host, name)):
        for start_s, end_s, step in spans_of(world.steps):
            inside_s = min(end_s, tick_end) - max(start_s, tick_start)
            if inside_s <= 0 or not step.request_ids:
                continue
            part = counted * inside_s / (tick_end - tick_start)
            divided = shares_of(step, end_s - start_s, world.model)
            for request_id, share in zip(step.request_ids, divided, strict=True):
                joules[request_id] = joules.get(request_id, 0.0) + part * share
    return joules


@settings(max_examples=100, deadline=None)
@given(on_a_host=worlds_on_a_host(resets=False), settle_at=settlings)
def test_requests_and_the_rest_are_what_the_host_counted(
    on_a_host: tuple[World, list[EnergyReading]], settle_at: list[bool]
) -> None:
    """To floating-point accuracy; each request has its seconds' part of every tick."""
    world, readings = on_a_host
    play = played_on_a_host(world, readings, settle_at)
    totals = play.ledger.host_totals()
    for name, domain in zip(HOST, totals, strict=True):
        values = [reading.joules for reading in readings if reading.gpu == name]
        assert domain.counter_joules == close_to(values[-1] - values[0])
        assert sum(domain.account_joules) == close_to(domain.counter_joules)
    owed = owed_of_the_host(world, readings)
    for record in play.final:
        assert record.host_joules == close_to(owed.get(record.request_id, 0.0))
    others = sum(domain.account_joules[account] for domain in totals for account in OTHERS)
    requests = sum(record.host_joules or 0.0 for record in play.final)
    assert requests + others == close_to(sum(domain.counter_joules for domain in totals))
    assert all(record.host_joules is None for record in play.provisional)


@settings(max_examples=100, deadline=None)
@given(on_a_host=worlds_on_a_host(resets=True), settle_at=settlings)
def test_the_host_changes_nothing_of_the_gpus(
    on_a_host: tuple[World, list[EnergyReading]], settle_at: list[bool]
) -> None:
    """Whatever its counters do; a reset of one loses no other joule of the host."""
    world, readings = on_a_host
    play, alone = played_on_a_host(world, readings, settle_at), played(world, settle_at)
    for ours, theirs in zip(play.ledger.totals(), alone.ledger.totals(), strict=True):
        assert ours.account_joules == close_to(theirs.account_joules)
    joules = {record.request_id: close_to(record.joules) for record in alone.final}
    assert {record.request_id: record.joules for record in play.final} == joules
    for name, domain in zip(HOST, play.ledger.host_totals(), strict=True):
        values = [reading.joules for reading in readings if reading.gpu == name]
        grown = sum(max(b - a, 0.0) for a, b in pairwise(values))
        assert sum(domain.account_joules) == close_to(grown)


def ledger_on_a_host() -> EnergyLedger:
    """One GPU, one package."""
    return ledger_of(host=["package"], host_source=Source.MEASURED)


def host_read(
    ledger: EnergyLedger, *points: tuple[float, float], quality: Quality = Quality.PACKAGE
) -> None:
    """Enter (time, joules) of the package."""
    for at_s, joules in points:
        ledger.observe_host(EnergyReading(at_s, "package", joules, quality=quality))


def finals_of(ledger: EnergyLedger) -> list[RequestEnergy]:
    """A request in [1, 2]; the GPU's tick has passed it."""
    read(ledger, "gpu-0", (0.0, 0.0), (4.0, 400.0))
    ledger.observe_steps([step_of(1.0, 2.0, "a")])
    assert ledger.close(end_of("a", 2.0)).status is Status.PROVISIONAL
    return ledger.settle(4.0)


def booked(ledger: EnergyLedger) -> dict[str, float]:
    """The package's accounts that are not empty."""
    (totals,) = ledger.host_totals()
    assert isinstance(totals, HostTotals)
    assert sum(totals.account_joules) == close_to(totals.counter_joules)
    return {a.label: totals.account_joules[a] for a in Account if totals.account_joules[a]}


def test_a_final_figure_waits_for_the_host() -> None:
    """A quarter of the tick was the request's; idle time is nobody's."""
    ledger = ledger_on_a_host()
    host_read(ledger, (0.0, 1000.0))
    assert not finals_of(ledger)
    host_read(ledger, (4.0, 1080.0))
    (final,) = ledger.settle(4.0)
    assert (final.host_joules, final.host_source) == (close_to(20.0), Source.MEASURED)
    assert booked(ledger) == {"decode": close_to(20.0), "idle": close_to(60.0)}


def test_steps_for_no_request_are_overhead_of_the_host_too() -> None:
    """As of the GPUs."""
    ledger = ledger_on_a_host()
    host_read(ledger, (0.0, 0.0), (4.0, 80.0))
    read(ledger, "gpu-0", (0.0, 0.0), (4.0, 400.0))
    ledger.observe_steps([overhead(1.0, 3.0)])
    ledger.settle(4.0)
    assert booked(ledger) == {"overhead": close_to(40.0), "idle": close_to(40.0)}


@pytest.mark.parametrize("joules", [10.0, 1080.0], ids=["fell", "unsure"])
def test_where_the_host_s_joules_are_not_known_there_is_no_figure(joules: float) -> None:
    """A counter that fell, or one that may have come round unseen: unattributed, and not 0."""
    ledger = ledger_on_a_host()
    host_read(ledger, (0.0, 1000.0))
    host_read(ledger, (4.0, joules), quality=Quality.RESET)
    (final,) = finals_of(ledger)
    assert final.host_joules is None
    assert final.quality is Quality.COUNTER
    assert booked(ledger) == ({} if joules < 1000 else {"unattributed": close_to(80.0)})


def test_a_silent_host_keeps_nobody_waiting() -> None:
    """The request is final without it; what is counted later is unattributed."""
    ledger = ledger_on_a_host()
    host_read(ledger, (0.0, 1000.0))
    assert not finals_of(ledger)
    read(ledger, "gpu-0", (30.0, 1000.0))
    (final,) = wait(ledger, 4.5, 30.0)
    assert (final.host_joules, final.joules) == (None, close_to(final.joules))
    host_read(ledger, (40.0, 1800.0))
    ledger.settle(40.0)
    assert booked(ledger) == {"unattributed": close_to(800.0)}


def test_a_stopping_meter_waits_for_no_host() -> None:
    """What it had not counted is not known."""
    ledger = ledger_on_a_host()
    host_read(ledger, (0.0, 1000.0), (0.5, 1010.0))
    assert not finals_of(ledger)
    (final,) = ledger.give_up(5.0)
    assert final.host_joules is None
    assert booked(ledger) == {"idle": close_to(10.0)}
