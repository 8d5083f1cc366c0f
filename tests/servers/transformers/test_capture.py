"""Batches of transformers' real states as steps: phases, resets, batches in flight, ends."""

import gc
import queue
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Account, MeterError, Outcome, RequestEnd, StepEvent
from llm_carbon_meter.servers.shared.steps import StepDecoder
from llm_carbon_meter.servers.transformers.batching import BatchingHooks
from llm_carbon_meter.servers.transformers.capture import BatchCapture
from llm_carbon_meter.servers.transformers.lifecycle import ServedModel
from tests.bench import batching

pytestmark = pytest.mark.engine

CONFIG = SimpleNamespace()


class World:
    """A capture, and what the meter's process makes of it."""

    def __init__(self, capture: BatchCapture | None = None) -> None:
        self.faults = Faults()
        self.capture = capture or BatchCapture(self.faults)
        self.decoder = StepDecoder(self.faults)

    def step(self, *parts: tuple[RequestState, int]) -> list[FutureRequestState]:
        """A batch of so many tokens of each state; it is in flight."""
        batch = []
        for state, tokens in parts:
            state.position_offset += tokens
            batch.append(FutureRequestState(state, True, {}, tokens))
        self.capture.scheduled(batch)
        return batch

    def drained(self) -> tuple[list[StepEvent], list[RequestEnd]]:
        for event in self.capture.take():
            self.decoder.feed(event)
        batch = self.decoder.drain(1000)
        return batch.steps, batch.ends

    def phases(self) -> list[list[tuple[str, Account, int, int]]]:
        """Name, account, tokens and cached tokens of every row of every finished step."""
        return [
            [
                (name, Account(account), tokens, cached)
                for name, account, tokens, cached in zip(
                    step.request_ids,
                    step.accounts,
                    step.num_scheduled_tokens,
                    step.num_computed_tokens,
                    strict=True,
                )
            ]
            for step in self.drained()[0]
        ]


def state_of(name: str, prompt: int = 10) -> RequestState:
    """A request that waits."""
    return RequestState(name, list(range(prompt)))


def test_chunks_a_last_chunk_and_decode() -> None:
    """Prefill until the prompt is in, whatever the state's own status says."""
    world, state = World(), state_of("a")
    world.capture.done(world.step((state, 6)))
    world.capture.done(world.step((state, 4)))
    state.generated_tokens.append(1)
    world.capture.done(world.step((state, 1)))
    assert world.phases() == [
        [("a", Account.PREFILL, 6, 0)],
        [("a", Account.PREFILL, 4, 6)],
        [("a", Account.DECODE, 1, 10)],
    ]


def test_a_token_in_flight_is_known_by_the_cache() -> None:
    """The next batch is planned before the first token has come: it is decode all the same."""
    world, state = World(), state_of("a")
    first = world.step((state, 10))
    second = world.step((state, 1))
    world.capture.done(first)
    world.capture.done(second)
    assert [row[0][1] for row in world.phases()] == [Account.PREFILL, Account.DECODE]


def test_a_reset_request_is_computed_again() -> None:
    """Its answer so far stands behind its prompt; what it had is recompute, what follows decode."""
    world, state = World(), state_of("a")
    world.capture.done(world.step((state, 10)))
    state.generated_tokens += [1, 2]
    again = state.create_equivalent_initial_request()
    world.capture.done(world.step((again, 12)))
    again.generated_tokens.append(3)
    world.capture.done(world.step((again, 1)))
    world.capture.finished(again, cancelled=False)
    steps, (end,) = world.drained()
    accounts = [Account(step.accounts[0]) for step in steps]
    assert accounts == [Account.PREFILL, Account.RECOMPUTE, Account.DECODE]
    assert (end.prompt_tokens, end.output_tokens) == (10, 3)


def test_a_shared_prefix_is_cached() -> None:
    """What the first step finds in the cache is nobody's work."""
    world, state = World(), state_of("a")
    state.position_offset = 8
    world.capture.done(world.step((state, 2)))
    world.capture.finished(state, cancelled=False)
    (step,), (end,) = world.drained()
    assert list(step.num_computed_tokens) == [8]
    assert end.cached_tokens == 8


@pytest.mark.parametrize(
    ("error", "cancelled", "outcome"),
    [
        (None, False, Outcome.FINISHED),
        (None, True, Outcome.ABORTED),
        ("out of memory", False, Outcome.FAILED),
    ],
)
def test_how_a_request_ended(error: str | None, cancelled: bool, outcome: Outcome) -> None:
    """An error is worse than a client that left."""
    world, state = World(), state_of("a")
    state.error = error
    world.capture.done(world.step((state, 10)))
    world.capture.finished(state, cancelled=cancelled)
    assert world.drained()[1][0].outcome is outcome


def test_results_nobody_waits_for_are_left_out() -> None:
    """Settled when the server went idle, a batch's own update says nothing new."""
    world, state = World(), state_of("a")
    batch = world.step((state, 10))
    world.capture.done(batch)
    world.capture.done(batch)
    assert len(world.drained()[0]) == 1
    assert not world.faults.counts


class Hooked:
    """Our hooks on a processor of stand-ins with two batches that take turns."""

    def __init__(self) -> None:
        served = ServedModel(Config(), Faults())
        served.text_config = CONFIG
        self.hooks = BatchingHooks(served)
        self.world = World(served.capture)
        self.waited: list[int] = []
        pairs = [self._pair(number) for number in (0, 1)]
        self.outputs = SimpleNamespace(io_pairs=pairs, current_pair=0)
        self.scheduler = SimpleNamespace(active_requests={})
        self.processor = SimpleNamespace(
            config=CONFIG, inputs_and_outputs=self.outputs, scheduler=self.scheduler
        )

    def _pair(self, number: int) -> Any:
        event = SimpleNamespace(synchronize=lambda: self.waited.append(number))
        return SimpleNamespace(d2h_over=event, host_io=SimpleNamespace(requests_in_batch=[]))

    def prepare(self, has_batch: bool) -> None:
        self.hooks.before_prepare(self.processor)
        self.hooks.after_prepare(self.processor, has_batch)


def test_an_idle_server_settles_the_batch_in_flight() -> None:
    """Its update would come with the next request only."""
    hooked, state = Hooked(), state_of("a")
    state.position_offset = 10
    hooked.outputs.io_pairs[0].host_io.requests_in_batch = [FutureRequestState(state, True, {}, 10)]
    hooked.prepare(has_batch=True)
    assert hooked.world.drained()[0] == []
    hooked.prepare(has_batch=False)
    assert hooked.waited == [0, 1]
    assert len(hooked.world.drained()[0]) == 1


def test_making_room_ends_no_request() -> None:
    """What is finished while a batch is prepared comes again; later it is over."""
    hooked, state = Hooked(), state_of("a")
    hooked.scheduler.active_requests["a"] = state
    hooked.hooks.before_prepare(hooked.processor)
    hooked.hooks.before_finish(hooked.scheduler, "a")
    hooked.hooks.after_prepare(hooked.processor, has_batch=False)
    assert hooked.world.drained()[1] == []
    hooked.hooks.before_finish(hooked.scheduler, "a")
    assert [end.request_id for end in hooked.world.drained()[1]] == ["a"]


@pytest.mark.parametrize("told", [True, False])
def test_a_cancelled_request_ends_though_its_scheduler_may_not_say_so(told: bool) -> None:
    """Old schedulers return nothing: who was to be cancelled is seen before, and not kept."""
    hooked, states = Hooked(), {name: state_of(name) for name in ("runs", "waits", "stays")}
    hooked.prepare(has_batch=False)
    hooked.scheduler.active_requests = {name: states[name] for name in ("runs", "stays")}
    hooked.scheduler.waiting_requests = {"waits": states["waits"]}
    hooked.scheduler._requests_to_cancel = {"runs", "waits", "gone"}
    hooked.hooks.before_cancel(hooked.scheduler)
    cancelled = [states["runs"], states["waits"]] if told else None
    hooked.hooks.after_cancel(hooked.scheduler, cancelled)
    ends = hooked.world.drained()[1]
    assert [(end.request_id, end.outcome) for end in ends] == [
        ("runs", Outcome.ABORTED),
        ("waits", Outcome.ABORTED),
    ]
    alive = weakref.ref(states.pop("runs"))
    hooked.scheduler.active_requests, cancelled = {}, None
    gc.collect()
    assert alive() is None


def test_what_the_batching_holds_is_counted() -> None:
    """In its queue, before and after its thread has begun; of a manager that is gone, nothing."""

    class Manager:
        """Of stand-ins."""

        def __init__(self) -> None:
            self.input_queue: queue.Queue[str] = queue.Queue()
            self.batch_processor: Any = None

    served, manager = ServedModel(Config(), Faults()), Manager()
    assert served.held() == 0
    served.batched_by(manager)
    manager.input_queue.put("comes")
    assert served.held() == 1
    scheduler = SimpleNamespace(active_requests={"a": 1, "b": 2}, waiting_requests={"c": 3})
    manager.batch_processor = SimpleNamespace(scheduler=scheduler)
    assert served.held() == 4
    del manager
    gc.collect()
    assert served.held() == 0


def test_another_model_is_not_metered() -> None:
    """Neither its batches nor the ends of its requests are of concern here."""
    hooked = Hooked()
    hooked.processor.config = SimpleNamespace()
    hooked.prepare(has_batch=True)
    other = SimpleNamespace(active_requests={"b": state_of("b")})
    hooked.hooks.before_finish(other, "b")
    hooked.hooks.before_cancel(other)
    hooked.hooks.after_cancel(other, [state_of("b")])
    assert hooked.world.drained() == ([], [])


def test_a_model_that_is_loaded_again_is_metered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing keeps it while it is not; another one is a fault and no more."""

    class Model:
        config = SimpleNamespace(get_text_config=lambda: CONFIG)

        def generate(self) -> None: ...
        def prepare_inputs_for_generation(self) -> None: ...

    served = ServedModel(Config(), faults := Faults())
    monkeypatch.setattr(served, "_start", lambda *_: setattr(served, "meter", object()))
    first = Model()
    served.after_load(None, (first, None), "tiny@main")
    reference = weakref.ref(first)
    del first
    gc.collect()
    assert reference() is None
    second = Model()
    served.after_load(None, (second, None), "tiny@main")
    assert served.is_metered(second)
    assert not faults.counts
    served.after_load(None, (Model(), None), "other@main")
    assert served.is_metered(second)
    assert faults.counts == {"model": 1}


def test_a_meter_that_did_not_start_is_not_started_again() -> None:
    """The model is asked for at every request; its power source failed once and for all."""
    served, starts = ServedModel(Config(), Faults()), []

    def fail(*_: Any) -> None:
        starts.append(1)
        raise MeterError("no power")

    served._start = fail  # type: ignore[method-assign]
    model = object()
    with pytest.raises(MeterError):
        served.after_load(None, (model, None), "tiny@main")
    served.after_load(None, (model, None), "tiny@main")
    assert (len(starts), served.is_metered(model)) == (1, False)


def test_the_benchmark_of_the_hook_fits_the_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wraps what the server's start wraps; its figure is for a quiet machine."""
    monkeypatch.setattr(batching, "STEPS", 20)
    assert batching.measure(Path()).keys() == {"batching_hook_us"}
