"""The book of joules: conservation under any order of steps, ticks, ends and resets.

Property tests draw a `World` (steps that overlap when dispatched, ticks of two GPUs out of phase,
ends, resets) and play it into a ledger; `owed` does the same sums one by one, in plain Python.
"""

import tracemalloc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.ledger.attribution import (
    shares,
    step_loads,
    step_watts,
)
from llm_carbon_meter.ledger.ledger import (
    LOST_AFTER_S,
    MAX_WAITING_TICKS,
    STUCK_S,
    EnergyLedger,
    Window,
)
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_coefficients import sheet_coefficients
from llm_carbon_meter.physics.step_work import (
    CostModel,
    StepRows,
    step_work,
)
from llm_carbon_meter.power.modelled import ModelledMeter
from llm_carbon_meter.records import (
    REQUEST_ACCOUNTS,
    Account,
    EnergyReading,
    GpuTotals,
    Outcome,
    Quality,
    RequestEnd,
    RequestEnergy,
    Source,
    Status,
    StepEvent,
    StepKind,
)

GPUS = ("gpu-0", "gpu-1")
H100 = gpu_spec("H100")
MODEL = CostModel(H100, step_costs(built_in_model("Qwen2-0.5b")))
UNKNOWN = CostModel(H100, None)


def ledger_of(gpus: Sequence[str] = GPUS[:1], **options: Any) -> EnergyLedger:
    """A ledger of a measuring source; tokens decide unless a test says otherwise."""
    model = options.pop("model", UNKNOWN)
    return EnergyLedger(gpus, model, Source.MEASURED, Quality.COUNTER, **options)


def step_of(start_s: float, done_s: float, *request_ids: str, **columns: Any) -> StepEvent:
    """A decode step of some requests, one token each."""
    count = len(request_ids)
    return StepEvent(
        step_id=0,
        dispatched_s=start_s,
        done_s=done_s,
        request_ids=request_ids,
        accounts=columns.get("accounts", [Account.DECODE] * count),
        num_scheduled_tokens=columns.get("new", [1] * count),
        num_computed_tokens=columns.get("cached", [10] * count),
        num_sampled=columns.get("sampled", [1] * count),
    )


def overhead(start_s: float, done_s: float) -> StepEvent:
    """A dummy batch."""
    return StepEvent(0, start_s, done_s, kind=StepKind.OVERHEAD)


def end_of(request_id: str, at_s: float, outcome: Outcome = Outcome.FINISHED) -> RequestEnd:
    """The engine's last word about a request."""
    return RequestEnd(request_id, outcome, 7, 2, 5, at_s)


def read(ledger: EnergyLedger, gpu: str, *points: tuple[float, float]) -> None:
    """Enter (time, joules) of a GPU."""
    for at_s, joules in points:
        ledger.observe_reading(EnergyReading(at_s, gpu, joules))


def wait(ledger: EnergyLedger, start_s: float, end_s: float) -> list[RequestEnergy]:
    """Settle every half second of a span, as the meter does while time passes."""
    return [
        final for at_s in np.arange(start_s, end_s, 0.5).tolist() for final in ledger.settle(at_s)
    ]


def book(totals: GpuTotals) -> Mapping[str, float]:
    """The accounts that are not empty."""
    named = {account.label: totals.account_joules[account] for account in Account}
    return {name: joules for name, joules in named.items() if joules}


# Any world


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
    embodied_grams_per_gpu_s: float | None = None,
    **options: Any,
) -> Play:
    """Enter everything at its time; settle after the events that are marked, and at the end."""
    play = Play(ledger_of(GPUS, model=world.model, **options))
    play.ledger.grams_per_joule = grams_per_joule
    play.ledger.embodied_grams_per_gpu_s = embodied_grams_per_gpu_s
    events: list[tuple[float, int, Any]] = [(step.done_s, 0, step) for step in world.steps]
    events += [(end.monotonic_s, 1, end) for end in world.ends]
    events += [(reading.monotonic_s, 2, reading) for reading in world.readings]
    events.sort(key=lambda event: event[:2])
    for number, (now_s, _, event) in enumerate(events):
        match event:
            case StepEvent():
                play.ledger.observe_steps([event])
            case RequestEnd():
                play.provisional.append(play.ledger.close(event))
            case EnergyReading():
                play.ledger.observe_reading(event)
        if settle_at[number % len(settle_at)]:
            play.final += play.ledger.settle(world.known_until(now_s))
            play.accounts.append([gpu.account_joules for gpu in play.ledger.totals()])
    play.final += play.ledger.settle(world.over_s)
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
    model = draw(st.sampled_from([MODEL, UNKNOWN]))
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


def rows_of(step: StepEvent) -> StepRows:
    """A single step as columns."""
    return StepRows(
        np.array([len(step.request_ids)]),
        np.array(step.num_scheduled_tokens, np.float64),
        np.array(step.num_computed_tokens, np.float64),
        np.array(step.num_sampled, np.float64),
    )


def expected_watts(step: StepEvent, model: CostModel) -> float:
    """Of a single step."""
    rows, coefficients = rows_of(step), sheet_coefficients(model.gpu)
    return float(
        step_watts(step_loads(rows, step_work(rows, model), coefficients), coefficients)[0]
    )


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


def close_to(value: Any) -> Any:
    """The value to 1e-9, relative or in joules."""
    return pytest.approx(value, rel=1e-9, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(world=worlds(), settle_at=settlings, tick_s=st.sampled_from([0.0, 0.1, 0.3]))
def test_every_joule_of_a_counter_is_in_one_account(
    world: World, settle_at: list[bool], tick_s: float
) -> None:
    """Each GPU's accounts add up to the increments of its own counter, resets left out."""
    play = played(world, settle_at, tick_s=tick_s)
    for totals in play.ledger.totals():
        values = [reading.joules for reading in of_gpu(world, totals.gpu)]
        grown = sum(max(b - a, 0.0) for a, b in pairwise(values))
        assert totals.counter_joules == close_to(grown)
        assert sum(totals.account_joules) == close_to(grown)
        assert totals.account_joules[Account.UNATTRIBUTED] == 0


@settings(max_examples=150, deadline=None)
@given(world=worlds(), settle_at=settlings)
def test_requests_and_the_other_accounts_make_the_total(
    world: World, settle_at: list[bool]
) -> None:
    """Final figures, overhead, idle and unattributed together are all that was counted."""
    play = played(world, settle_at)
    accounts = np.sum([gpu.account_joules for gpu in play.ledger.totals()], axis=0)
    requests = sum(record.joules for record in play.final)
    others = accounts[[Account.OVERHEAD, Account.IDLE, Account.UNATTRIBUTED]].sum()
    assert requests + others == close_to(sum(g.counter_joules for g in play.ledger.totals()))
    assert sum(record.waste_joules for record in play.final) == close_to(accounts[Account.WASTE])
    assert sorted(r.request_id for r in play.final) == sorted(e.request_id for e in world.ends)
    assert all(record.status is Status.FINAL for record in play.final)
    assert play.ledger.num_open == play.ledger.num_closed == 0


@settings(max_examples=150, deadline=None)
@given(world=worlds(), settle_at=settlings)
def test_figures_equal_the_sums_done_one_by_one(world: World, settle_at: list[bool]) -> None:
    """Each request has what its steps' parts of each tick come to, account by account."""
    play = played(world, settle_at)
    expected = owed(world)
    for record in play.final:
        figures = (
            record.prefill_joules,
            record.decode_joules,
            record.recompute_joules,
            record.waste_joules,
        )
        for account, joules in enumerate(figures):
            assert joules == close_to(expected.get((record.request_id, account), 0.0))


@settings(max_examples=100, deadline=None)
@given(world=worlds(), settle_at=settlings)
def test_no_joules_from_outside_a_lifetime(world: World, settle_at: list[bool]) -> None:
    """A request can have no more than the ticks hold that overlap one of its steps."""
    play = played(world, settle_at)
    for record in play.final:
        spans = [s for s in spans_of(world.steps) if record.request_id in s[2].request_ids]
        touching = sum(
            joules
            for gpu in GPUS
            for start, end, joules in ticks_of(world, gpu)
            if any(start < s_end and s_start < end for s_start, s_end, _ in spans)
        )
        assert record.joules <= touching * (1 + 1e-12)
        assert record.joules >= 0


@settings(max_examples=100, deadline=None)
@given(world=worlds())
def test_accounts_only_grow(world: World) -> None:
    """After every event, no account of any GPU is lower than before."""
    history = np.array(played(world, [True]).accounts)
    assert (np.diff(history, axis=0) >= 0).all()


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
                close_to(record.idle_joules),
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
@given(world=worlds(resets=False), settle_at=settlings)
def test_every_second_of_a_gpu_is_in_one_account(world: World, settle_at: list[bool]) -> None:
    """Those of the requests are their records'; what was embodied is shared by them."""
    play = played(world, settle_at, embodied_grams_per_gpu_s=3.0)
    totals = play.ledger.totals()
    for gpu, held in zip(totals, play.ledger._gpus.values(), strict=True):
        first_s = min(one.monotonic_s for one in world.readings if one.gpu == gpu.gpu)
        assert sum(gpu.account_seconds) == close_to(held.settled_until_s - first_s)
    of_requests = sum(sum(gpu.account_seconds[: len(REQUEST_ACCOUNTS)]) for gpu in totals)
    assert sum(record.gpu_seconds for record in play.final) <= of_requests * (1 + 1e-9)
    for record in (*play.final, *play.provisional):
        assert record.embodied_grams == close_to(3.0 * record.gpu_seconds)


@settings(max_examples=100, deadline=None)
@given(world=worlds(resets=False), settle_at=settlings)
def test_idle_by_time_spreads_but_keeps_the_accounts(world: World, settle_at: list[bool]) -> None:
    """Spread over requests, idle stays in its own account and nobody's other joules change."""
    apart = played(world, settle_at)
    spread = played(world, settle_at, idle_by_time=True)
    for one, other in zip(apart.ledger.totals(), spread.ledger.totals(), strict=True):
        assert one == other
    idle = sum(gpu.account_joules[Account.IDLE] for gpu in spread.ledger.totals())
    assert sum(record.idle_joules for record in spread.final) <= idle * (1 + 1e-12)
    assert sum(record.idle_joules for record in apart.final) == 0
    before = {record.request_id: record.joules for record in apart.final}
    for record in spread.final:
        assert record.joules - record.idle_joules == close_to(before[record.request_id])


@settings(max_examples=100, deadline=None)
@given(world=worlds(), settle_at=settlings)
def test_grams_follow_the_joules(world: World, settle_at: list[bool]) -> None:
    """At a constant intensity, grams are joules times grams per joule, everywhere."""
    play = played(world, settle_at, grams_per_joule=2.0)
    for record in play.provisional + play.final:
        assert record.operational_grams == close_to(2 * record.joules)
    accounts = np.sum([gpu.account_joules for gpu in play.ledger.totals()], axis=0)
    assert play.ledger.account_grams.tolist() == close_to((2 * accounts).tolist())


@settings(max_examples=100, deadline=None)
@given(steps=steps_of_a_world(), delay=st.integers(0, 3), gpus=st.integers(1, 2))
def test_provisional_equals_final_where_power_is_as_modelled(
    steps: list[StepEvent], delay: int, gpus: int
) -> None:
    """With a source that counts exactly the expected watts, the first figure is the last."""
    meter = ModelledMeter(H100, gpus, 0.0)
    ledger = EnergyLedger(meter.gpus, MODEL, meter.source, meter.quality)
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


# One thing at a time


def test_a_step_in_two_ticks_gets_part_of_each() -> None:
    """A step from 1 to 3 s takes its share of the tick to 2 s and of the tick to 4 s."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (2, 1000), (4, 1300))
    ledger.observe_steps([step_of(1, 3, "a")])
    ledger.close(end_of("a", 3))
    (record,) = ledger.settle(4)
    watts = 70 + 0.6 * 630
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


def test_overlapping_dispatches_do_not_overlap_on_the_gpu() -> None:
    """Step N occupies [max(dispatched N, done N-1), done N], also over several calls."""
    ledger = ledger_of()
    first = ledger.observe_steps([step_of(0, 2, "a"), step_of(0.5, 3, "a")])
    second = ledger.observe_steps([step_of(2.5, 4, "a"), step_of(6, 7, "a")])
    spans = [(window.start_s, window.end_s) for window in first + second]
    assert spans == [(0, 2), (2, 3), (3, 4), (6, 7)]


def test_windows_carry_the_expected_watts() -> None:
    """A modelled source gets the power of every step, idle power for overhead."""
    ledger = ledger_of(model=MODEL)
    step = step_of(0, 1, "a", "b", new=[300, 1], accounts=[0, 1])
    windows = ledger.observe_steps([step, overhead(1, 2)])
    assert windows == [
        Window(0, 1, expected_watts(step, MODEL)),
        Window(1, 2, H100.idle_watts),
    ]


def test_an_empty_step_is_idle_time() -> None:
    """A step without requests did nothing; an overhead step without requests did something."""
    ledger = ledger_of()
    assert ledger.observe_steps([StepEvent(0, 0.0, 1.0)]) == []
    ledger.observe_steps([overhead(1, 2)])
    read(ledger, "gpu-0", (0, 0), (2, 140))
    ledger.settle(2)
    assert book(ledger.totals()[0]) == {"overhead": 70, "idle": 70}


def test_dropped_results_are_waste() -> None:
    """A waste row is booked as waste, on the request and in the account."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 90))
    accounts = [Account.WASTE, Account.DECODE, Account.RECOMPUTE]
    ledger.observe_steps([step_of(0, 1, "a", "b", "c", accounts=accounts)])
    for name in "abc":
        ledger.close(end_of(name, 1))
    a, b, c = ledger.settle(1)
    assert (a.waste_joules, b.decode_joules, c.recompute_joules) == close_to((30, 30, 30))
    assert a.joules == close_to(30)
    assert book(ledger.totals()[0]) == close_to({"decode": 30, "recompute": 30, "waste": 30})


def test_a_figure_waits_for_its_last_tick() -> None:
    """Half settled, a request's provisional figure is filled from the model at the recent scale."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 224))
    ledger.observe_steps([step_of(0, 2, "a")])
    ledger.settle(1)
    provisional = ledger.close(end_of("a", 2))
    assert provisional.status is Status.PROVISIONAL
    # 448 W were expected and half of that was counted.
    assert provisional.joules == pytest.approx(224 + 0.5 * 448)
    assert ledger.settle(2) == []
    assert ledger.num_closed == 1
    read(ledger, "gpu-0", (2, 1000))
    (final,) = ledger.settle(2)
    assert final.joules == pytest.approx(1000)
    assert final.status is Status.FINAL


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
    assert record.joules == pytest.approx(20 * 448 / (448 + 70))


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


def test_an_id_that_comes_again_opens_a_new_account() -> None:
    """Even before the first one is final, its successor starts at nothing."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0))
    ledger.observe_steps([step_of(0, 1, "a")])
    ledger.close(end_of("a", 1))
    ledger.observe_steps([step_of(1, 2, "a"), step_of(2, 3, "a")])
    ledger.close(end_of("a", 3))
    read(ledger, "gpu-0", (1, 100), (3, 110))
    first, second = ledger.settle(3)
    assert (first.joules, first.num_steps, first.last_step_s) == (100, 1, 1)
    assert (second.joules, second.num_steps, second.first_step_s) == (10, 2, 1)


def test_a_reused_place_starts_clean() -> None:
    """Joules, steps and damage of a finished request do not pass to the next."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 100), (1, 5))
    ledger.observe_steps([step_of(0, 1, "damaged")])
    ledger.close(end_of("damaged", 1))
    (damaged,) = ledger.settle(1)
    assert damaged.quality is Quality.RESET
    ledger.observe_steps([step_of(1, 2, "clean")])
    ledger.close(end_of("clean", 2))
    read(ledger, "gpu-0", (2, 6))
    (clean,) = ledger.settle(2)
    assert (clean.quality, clean.joules, clean.num_steps) == (Quality.COUNTER, 1, 1)


def test_ten_thousand_requests_keep_the_book_small() -> None:
    """Places and steps are reused: ten thousand requests leave no more behind than a hundred."""
    ledger = ledger_of(idle_by_time=True)
    read(ledger, "gpu-0", (0, 0))

    def serve(numbers: range) -> float:
        joules = 0.0
        for first in numbers[::10]:
            ten = {f"r{at_s}": at_s for at_s in range(first, first + 10)}
            ledger.observe_steps([step_of(at_s, at_s + 0.5, name) for name, at_s in ten.items()])
            for name, at_s in ten.items():
                ledger.close(end_of(name, at_s + 0.5))
            read(ledger, "gpu-0", (first + 10, (first + 10) * 10))
            records = ledger.settle(first + 10)
            assert [record.request_id for record in records] == list(ten)
            joules += sum(record.joules for record in records)
        return joules

    tracemalloc.start()
    try:
        serve(range(100))
        before = tracemalloc.get_traced_memory()[0]
        joules = serve(range(100, 10_000))
        # Python itself keeps up to 2000 dead tuples of a size for reuse.
        assert tracemalloc.get_traced_memory()[0] - before < 400_000
    finally:
        tracemalloc.stop()
    assert joules == pytest.approx(99_000)
    assert ledger.num_open == ledger.num_closed == 0


def test_many_open_requests_fit() -> None:
    """The book grows with the requests that are open, and each keeps its own figure."""
    ledger = ledger_of()
    names = [f"r{number}" for number in range(1000)]
    read(ledger, "gpu-0", (0, 0))
    for number, name in enumerate(names):
        ledger.observe_steps([step_of(number, number + 1, name)])
        read(ledger, "gpu-0", (number + 1, (number + 1) * (number + 2) / 2))
        ledger.settle(number + 1)
    assert ledger.num_open == 1000
    assert ledger.open_requests() == names
    records = [ledger.close(end_of(name, 1000)) for name in names]
    assert [record.joules for record in records] == close_to([n + 1.0 for n in range(1000)])
    assert len(ledger.settle(1000)) == 1000


def test_ticks_of_a_hanging_step_are_bounded() -> None:
    """While nothing can be settled, late ticks grow into one and no joule is lost."""
    ledger = ledger_of()
    for number in range(MAX_WAITING_TICKS + 500):
        read(ledger, "gpu-0", (number * 0.05, number * 2.0))
    ledger.observe_steps([step_of(0, 200, "a")])
    ledger.close(end_of("a", 200))
    assert len(ledger._gpus["gpu-0"].ticks) == MAX_WAITING_TICKS
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


def test_idle_by_time_divides_by_presence() -> None:
    """Two requests in the system share the idle joules by the seconds that each was there."""
    ledger = ledger_of(idle_by_time=True)
    read(ledger, "gpu-0", (0, 0), (4, 400))
    ledger.observe_steps([step_of(0, 0, "a"), step_of(1, 1, "b")])
    ledger.close(end_of("a", 3))
    ledger.close(end_of("b", 2))
    figures = {record.request_id: record.idle_joules for record in ledger.settle(4)}
    assert figures == close_to({"a": 300, "b": 100})
    assert book(ledger.totals()[0]) == {"idle": 400}


def test_idle_with_nobody_there_stays_idle() -> None:
    """An empty system spreads nothing."""
    ledger = ledger_of(idle_by_time=True)
    ledger.observe_steps([step_of(0, 1, "a")])
    ledger.close(end_of("a", 1))
    read(ledger, "gpu-0", (0, 0), (1, 100), (2, 170))
    (record,) = ledger.settle(2)
    assert (record.joules, record.idle_joules) == (100, 0)
    assert book(ledger.totals()[0]) == {"decode": 100, "idle": 70}


def test_the_intensity_of_the_moment_counts() -> None:
    """Grams of a tick follow the intensity at which it was settled, as do provisional ones."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 448))
    ledger.observe_steps([step_of(0, 2, "a")])
    ledger.grams_per_joule = 1.0
    ledger.settle(1)
    ledger.grams_per_joule = 3.0
    assert ledger.close(end_of("a", 2)).operational_grams == pytest.approx(448 + 3 * 448)
    read(ledger, "gpu-0", (2, 458))
    (record,) = ledger.settle(2)
    assert record.operational_grams == pytest.approx(448 + 3 * 10)
    assert ledger.account_grams[Account.DECODE] == pytest.approx(478)


def test_steps_and_tokens_are_counted_by_phase() -> None:
    """A step with prefill and decode is mixed; tokens go to their own account."""
    ledger = ledger_of()
    fill, go_on, again, waste = Account.PREFILL, Account.DECODE, Account.RECOMPUTE, Account.WASTE
    ledger.observe_steps(
        [
            step_of(0, 1, "a", "b", accounts=[fill, fill], new=[5, 7]),
            step_of(1, 2, "a", "b", accounts=[go_on, fill], new=[1, 2]),
            step_of(2, 3, "a", "b", accounts=[again, waste], new=[9, 1]),
            step_of(3, 4, "a", "b", accounts=[go_on, go_on]),
            overhead(4, 5),
        ]
    )
    assert ledger.step_counts == {"prefill": 1, "decode": 1, "mixed": 2}
    assert ledger.token_counts == {"prefill": 14, "decode": 3, "recompute": 9, "waste": 1}


def test_a_record_says_how_its_request_ran() -> None:
    """Steps, company, times, lengths and engine are in the record."""
    ledger = ledger_of(engine=3)
    read(ledger, "gpu-0", (0, 0), (6, 60))
    ledger.observe_steps([step_of(1, 2, "a"), step_of(2, 3, "a", "b", "c"), step_of(4, 5, "b")])
    record = ledger.close(end_of("a", 4, Outcome.ABORTED))
    assert (record.engine, record.source, record.outcome) == (3, Source.MEASURED, Outcome.ABORTED)
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (7, 2, 5)
    assert (record.num_steps, record.mean_running) == (2, 2.0)
    assert (record.first_step_s, record.last_step_s) == (1, 3)


def test_before_the_first_reading_nothing_is_counted() -> None:
    """Totals are zero, and a figure is filled from the model."""
    ledger = ledger_of(GPUS)
    ledger.observe_steps([step_of(0, 1, "a")])
    assert ledger.close(end_of("a", 1)).joules == pytest.approx(2 * 448)
    assert ledger.settle(1) == []
    assert [(g.counter_joules, sum(g.account_joules)) for g in ledger.totals()] == [(0, 0)] * 2


@pytest.mark.parametrize("policy", ["shapley", "tokens", "flops", "equal"])
def test_every_policy_gives_the_same_total(policy: str) -> None:
    """A policy moves joules between requests, never in or out."""
    ledger = ledger_of(model=MODEL, policy=policy)
    read(ledger, "gpu-0", (0, 0), (1, 100))
    ledger.observe_steps([step_of(0, 1, "a", "b", new=[300, 1], accounts=[0, 1])])
    ledger.close(end_of("a", 1))
    ledger.close(end_of("b", 1))
    a, b = ledger.settle(1)
    assert a.joules + b.joules == pytest.approx(100)
    assert (a.joules == pytest.approx(50)) is (policy == "equal")


# Labels


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


def test_joules_that_are_missing_are_said_of_any_source() -> None:
    """Also where the source is worse than a reset: they are missing from what was modelled."""
    ledger = EnergyLedger(("gpu-0",), UNKNOWN, Source.MODELLED, Quality.MODELLED)
    ledger.observe_steps([step_of(0, 1, "lost"), step_of(1, 2, "kept")])
    read(ledger, "gpu-0", (0.0, 50.0), (1.0, 20.0), (2.0, 30.0))
    for name in ("lost", "kept"):
        ledger.close(end_of(name, 2.0))
    final = {record.request_id: record.quality for record in ledger.settle(2.0)}
    assert final == {"lost": Quality.RESET, "kept": Quality.MODELLED}


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


def test_exchanges_are_a_part_of_the_books_by_gpu() -> None:
    """Each step's joules x its share of time on the link; None without tensor parallelism."""
    model = CostModel(H100, step_costs(built_in_model("Llama-3.1-8B"), 2))
    ledger = ledger_of(GPUS, model=model)
    step = step_of(0.0, 0.01, "a")
    ledger.observe_steps([step])
    read(ledger, "gpu-0", (0.0, 0.0), (0.02, 8.0))
    read(ledger, "gpu-1", (0.0, 0.0), (0.02, 4.0))
    ledger.settle(0.02)
    assert model.costs is not None
    sent = model.costs.network_per_token + model.costs.network_per_sample
    share = sent / H100.link_bytes_per_s / 0.01
    for gpu in ledger.totals():
        decode = gpu.account_joules[Account.DECODE]
        assert gpu.allreduce_modelled_joules == pytest.approx(share * decode)
        assert sum(gpu.account_joules) == pytest.approx(gpu.counter_joules)
    assert ledger_of().totals()[0].allreduce_modelled_joules is None
