"""Any world for a ledger, drawn by hypothesis.

A `World` has steps that overlap when dispatched, ticks of two GPUs out of phase, ends and resets.
`played` enters a world into a ledger; `owed` does the same sums one by one, in plain Python.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from llm_carbon_meter.ledger.attribution import shares
from llm_carbon_meter.ledger.counters import STUCK_S
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.physics.step_coefficients import sheet_coefficients
from llm_carbon_meter.physics.step_work import CostModel, step_work
from llm_carbon_meter.records import (
    EnergyReading,
    Outcome,
    RequestEnd,
    RequestEnergy,
    StepEvent,
    StepKind,
)
from tests.support.steps.cost_models import QWEN, UNKNOWN
from tests.support.steps.ledgers import GPUS, expected_watts, ledger_of, rows_of


@dataclass(frozen=True)
class World:
    """What happens, each list in the order of its times."""

    steps: Sequence[StepEvent]
    ends: Sequence[RequestEnd]
    readings: Sequence[EnergyReading]
    over_s: float
    model: CostModel

    def known_until(self, now_s: float) -> float:
        """The time before which an engine knows that no step will start, as the capture says."""
        done = [step.done_s for step in self.steps if step.done_s <= now_s]
        flying = [s.dispatched_s for s in self.steps if s.dispatched_s <= now_s < s.done_s]
        return max(min(flying, default=now_s), max(done, default=-np.inf))


@dataclass
class Play:
    """What came out."""

    ledger: EnergyLedger
    provisional: list[RequestEnergy] = field(default_factory=list)
    final: list[RequestEnergy] = field(default_factory=list)
    accounts: list[list[Sequence[float]]] = field(default_factory=list)
    """Of each GPU, after every settling."""


def played(
    world: World,
    settle_at: Sequence[bool],
    grams_per_joule: float = 0.0,
    host_readings: Sequence[EnergyReading] = (),
    **options: Any,
) -> Play:
    """Enter everything at its time; settle after the events that are marked, and at the end."""
    play = Play(ledger_of(GPUS, model=world.model, **options))
    events: list[tuple[float, int, Any]] = [(step.done_s, 0, step) for step in world.steps]
    events += [(end.monotonic_s, 1, end) for end in world.ends]
    events += [(reading.monotonic_s, 2, reading) for reading in world.readings]
    events += [(reading.monotonic_s, 3, reading) for reading in host_readings]
    events.sort(key=lambda event: event[:2])
    for number, (now_s, kind, event) in enumerate(events):
        match event:
            case StepEvent():
                play.ledger.observe_steps([event])
            case RequestEnd():
                play.provisional.append(play.ledger.close(event, grams_per_joule))
            case EnergyReading() if kind == 3:
                play.ledger.observe_host(event)
            case EnergyReading():
                play.ledger.observe_reading(event)
        if settle_at[number % len(settle_at)]:
            play.final += play.ledger.settle(world.known_until(now_s), grams_per_joule)
            play.accounts.append([gpu.account_joules for gpu in play.ledger.totals()])
    play.final += play.ledger.settle(world.over_s, grams_per_joule)
    play.accounts.append([gpu.account_joules for gpu in play.ledger.totals()])
    return play


milliseconds = st.integers(1, 90).map(lambda value: value / 1000)


@st.composite
def steps_of_a_world(draw: st.DrawFn) -> list[StepEvent]:
    """Steps one after the other, some dispatched before the last is done, some overhead."""
    steps: list[StepEvent] = []
    done_s = dispatched_s = draw(milliseconds)
    for number in range(draw(st.integers(0, 10))):
        idle_s = draw(st.sampled_from([0.0, 0.0, 0.003, 0.15]))
        overlaps = not idle_s and bool(steps and steps[-1].request_ids)
        ahead_s = draw(st.sampled_from([0.0, 0.002, 0.04])) if overlaps else 0.0
        dispatched_s = max(dispatched_s, done_s + idle_s - ahead_s)
        done_s = max(done_s + idle_s, dispatched_s) + draw(milliseconds)
        ids = draw(st.sets(st.sampled_from("abcdef"), max_size=5))
        kind = StepKind.SERVING if ids else draw(st.sampled_from(StepKind))
        count = len(ids)

        def column(values: st.SearchStrategy[int], n: int = count) -> list[int]:
            return draw(st.lists(values, min_size=n, max_size=n))

        steps.append(
            StepEvent(
                number,
                dispatched_s,
                done_s,
                sorted(ids),
                column(st.sampled_from([0, 1, 1, 2, 3])),
                column(st.integers(1, 300)),
                column(st.integers(0, 500)),
                column(st.integers(0, 1)),
                kind,
            )
        )
    return steps


@st.composite
def readings_of_a_gpu(
    draw: st.DrawFn, gpu: str, over_s: float, resets: bool
) -> list[EnergyReading]:
    """Ticks of any length from before or amid the steps to their end; joules are exact eighths."""
    at_s = draw(st.integers(0, 200)) / 1000
    joules = draw(st.integers(0, 8_000_000)) / 8
    readings = [EnergyReading(at_s, gpu, joules)]
    while at_s < over_s:
        at_s += (400 - draw(st.integers(0, 399))) / 1000
        if resets and draw(st.integers(0, 7)) == 0:
            joules = draw(st.integers(0, 800)) / 8
        else:
            joules += draw(st.sampled_from([0, 0.125, 1, 20, 500]))
        readings.append(EnergyReading(at_s, gpu, joules))
    return [*readings, EnergyReading(at_s + 0.5, gpu, joules + 1)]


@st.composite
def worlds(draw: st.DrawFn, resets: bool = True) -> World:
    """Steps, an end for everybody (at once or later, aborts too) and readings of both GPUs."""
    steps = draw(steps_of_a_world())
    seen_s = {name: step.done_s for step in steps for name in step.request_ids}
    seen_s |= dict.fromkeys(draw(st.sets(st.sampled_from(["idler", "queued"]))), 0.05)
    ends = [
        RequestEnd(name, draw(st.sampled_from(Outcome)), 1, 0, 1, at_s + draw(milliseconds))
        for name, at_s in sorted(seen_s.items())
    ]
    over_s = max([1.0, *(end.monotonic_s for end in ends), *(step.done_s for step in steps)])
    readings = [r for gpu in GPUS for r in draw(readings_of_a_gpu(gpu, over_s, resets))]
    over_s = max(reading.monotonic_s for reading in readings)
    model = draw(st.sampled_from([QWEN, UNKNOWN]))
    return World(steps, ends, readings, over_s, model)


settlings = st.lists(st.booleans(), min_size=1, max_size=5)


def of_gpu(world: World, gpu: str) -> list[EnergyReading]:
    """The readings of one GPU."""
    return [reading for reading in world.readings if reading.gpu == gpu]


def ticks_of(world: World, gpu: str) -> list[tuple[float, float, float]]:
    """Start, end and joules of each tick without a reset; a counter at rest has not ticked."""
    ticks, last = [], of_gpu(world, gpu)[0]
    for reading in of_gpu(world, gpu)[1:]:
        if reading.joules == last.joules and reading.monotonic_s - last.monotonic_s < STUCK_S:
            continue
        if reading.joules >= last.joules:
            joules = reading.joules - last.joules
            ticks.append((last.monotonic_s, reading.monotonic_s, joules))
        last = reading
    return ticks


def spans_of(steps: Iterable[StepEvent]) -> list[tuple[float, float, StepEvent]]:
    """When each step had the GPUs: [max(dispatched, done before), done]."""
    spans, free_s = [], -np.inf
    for step in steps:
        if step.request_ids or step.kind is StepKind.OVERHEAD:
            spans.append((max(step.dispatched_s, free_s), step.done_s, step))
            free_s = step.done_s
    return spans


def shares_of(step: StepEvent, seconds: float, model: CostModel) -> list[float]:
    """Of a single step's requests."""
    rows, coefficients = rows_of(step), sheet_coefficients(model.gpu)
    work = step_work(rows, model)
    return list(shares("shapley", rows, work, np.array([seconds]), coefficients))


def owed(world: World) -> dict[tuple[str, int], float]:
    """Joules of each request and account, tick by tick and step by step."""
    joules: dict[tuple[str, int], float] = {}
    watts_of: dict[int, float] = {}
    spans = spans_of(world.steps)
    for number, (_, _, step) in enumerate(spans):
        serving = bool(step.request_ids)
        watts_of[number] = expected_watts(step, world.model) if serving else 70.0
    for tick_start, tick_end, tick_joules in (t for gpu in GPUS for t in ticks_of(world, gpu)):
        inside = [max(0.0, min(e, tick_end) - max(s, tick_start)) for s, e, _ in spans]
        expected = [seconds * watts_of[number] for number, seconds in enumerate(inside)]
        total = sum(expected) + 70.0 * (tick_end - tick_start - sum(inside))
        for (start_s, end_s, step), part in zip(spans, expected, strict=True):
            if not part or not step.request_ids:
                continue
            divided = shares_of(step, end_s - start_s, world.model)
            for name, account, share in zip(step.request_ids, step.accounts, divided, strict=True):
                key = (name, account)
                joules[key] = joules.get(key, 0.0) + tick_joules * part / total * share
    return joules
