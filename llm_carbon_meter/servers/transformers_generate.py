"""``with meter_generate(model) as meter: model.generate(…)``: the energy of each call.

A step is what happens from one `prepare_inputs_for_generation` to the next, or to the end of the
call: every forward pass, in every mode of generation, is prepared by it, and it is never compiled.
An assistant's passes are within the step of the drafts that it makes; drafts that are rejected
count as cached. A prompt's beams are rows of a step each, and `num_steps` counts them all.
"""

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from llm_carbon_meter.config import Config, cuda_visible_devices
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.meter import EngineMeter, assumed_gpu, cost_model, open_power, physics_gpu
from llm_carbon_meter.power.nvml_devices import visible_devices
from llm_carbon_meter.records import (
    Account,
    EngineTotals,
    EventBatch,
    MeterError,
    Outcome,
    RequestEnd,
    RequestEnergy,
    Status,
    StepEvent,
)
from llm_carbon_meter.registry import sum_energies
from llm_carbon_meter.servers.transformers_model import gpu_name, gpus_of, spec_of

SETTLED_S: Final = 10.0
"""A call's last tick takes a second; longer than this nobody waits."""


@dataclass(frozen=True, slots=True)
class GeneratedEnergy:
    """What one call of ``generate`` used."""

    sequences: Sequence[RequestEnergy]
    """One per prompt of the batch; beams and returned sequences of a prompt together."""

    @property
    def total(self) -> RequestEnergy:
        """Of the whole call."""
        return sum_energies(self.sequences)


class GenerateMeter:
    """Meters the calls of one model's ``generate`` in this process; made by `meter_generate`."""

    def __init__(self, model: Any, config: Config, faults: Faults) -> None:
        self._steps = _Steps()
        self._local = threading.local()
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._names: dict[int, list[str]] = {}
        self._energies: dict[str, RequestEnergy] = {}
        gpus = gpus_of(model)
        assumed, count = assumed_gpu(config, faults), max(len(gpus), 1)
        spec = spec_of(model, type(model).__name__, faults)
        self._meter = EngineMeter(
            config,
            open_power(
                config,
                lambda: visible_devices(cuda_visible_devices(), min(gpus, default=0), count),
                count,
                assumed,
                time.monotonic(),
                faults,
            ),
            self._steps,
            cost_model(physics_gpu(gpu_name(gpus), assumed), spec, 1),
            0,
            self._receive,
            faults,
            os.getpid(),
        )
        self.totals: EngineTotals | None = None
        """The accounts of all GPUs so far; None before the first tick."""

    def energy(self, call: int = -1) -> GeneratedEnergy:
        """What a call used, settled; the last one that ended unless another is asked for.

        Args:
            call: index of the call in the order of their begins, as of a list.

        Raises:
            MeterError: there is no such call, or its last tick did not come in time.
        """
        with self._changed:
            if not -len(self._names) <= call < len(self._names):
                raise MeterError(f"there was no call {call}; so far {len(self._names)} have ended")
            names = self._names[sorted(self._names)[call]]
            if not self._changed.wait_for(lambda: self._settled(names), SETTLED_S):
                raise MeterError(f"call {call} was not settled within {SETTLED_S:g} s")
            return GeneratedEnergy([self._energies[name] for name in names])

    def _settled(self, names: Sequence[str]) -> bool:
        known = [self._energies.get(name) for name in names]
        return all(one is not None and one.status is Status.FINAL for one in known)

    def _receive(self, message: RequestEnergy | EngineTotals) -> None:
        with self._changed:
            if isinstance(message, EngineTotals):
                self.totals = message
            else:
                self._energies[message.request_id] = message
            self._changed.notify_all()

    def start(self) -> None:
        """Begin to meter.

        Raises:
            MeterError: a GPU does not answer.
        """
        self._meter.start()

    def stop(self) -> None:
        """Settle the last call, and end."""
        self._meter.stop()

    # Around the model's own methods, on the caller's thread.

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The model's ``generate``, with a beginning and an end."""

        @functools.wraps(original)
        def generate(*arguments: Any, **named: Any) -> Any:
            if getattr(self._local, "call", None) is not None:  # a call inside a call is its step
                return original(*arguments, **named)
            number = next(self._numbers)
            call = self._local.call = _Call(number, *_prompt_shape(arguments, named))
            outcome = Outcome.FAILED
            length = call.prompt_tokens
            try:
                answer = original(*arguments, **named)
                outcome, length = Outcome.FINISHED, _length(answer)
                return answer
            finally:
                self._local.call = None
                self._steps.end(call, outcome, max(length - call.prompt_tokens, 0))
                with self._changed:
                    self._names[number] = call.names

        return generate

    def prepare(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The model's ``prepare_inputs_for_generation``, which begins a step."""

        @functools.wraps(original)
        def prepare(*arguments: Any, **named: Any) -> Any:
            inputs = original(*arguments, **named)
            call = getattr(self._local, "call", None)
            if call is not None:
                cached = inputs.get("past_key_values") is not None
                self._steps.begin(call, *_input_shape(inputs), cached=cached)
            return inputs

        return prepare


@contextmanager
def meter_generate(model: Any, config: Config | None = None) -> Iterator[GenerateMeter]:
    """Meter every ``model.generate`` inside the block, on any thread.

    Args:
        model: of transformers; it is as before after the block.
        config: settings; those of the environment unless given.

    Raises:
        MeterError: the power source cannot be opened.
    """
    meter = GenerateMeter(model, config or Config.from_environment()[0], Faults())
    meter.start()
    shadows = {
        "generate": meter.generate(model.generate),
        "prepare_inputs_for_generation": meter.prepare(model.prepare_inputs_for_generation),
    }
    before = {name: vars(model)[name] for name in shadows if name in vars(model)}
    try:
        for name, shadow in shadows.items():
            setattr(model, name, shadow)
        yield meter
    finally:
        for name in shadows:
            delattr(model, name)
        for name, value in before.items():
            setattr(model, name, value)
        meter.stop()


class _Call:
    """One call under way."""

    def __init__(self, number: int, prompts: int, prompt_tokens: int) -> None:
        self.names = [f"generate-{number}-{place}" for place in range(prompts)]
        self.prompt_tokens = prompt_tokens
        self.computed = 0
        """Tokens of a row that went through the model."""
        self.open: StepEvent | None = None


class _Steps:
    """The meter's event source: steps of all threads, each entered when it is over."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self._lock = threading.Lock()
        self._steps: list[StepEvent] = []
        self._ends: list[RequestEnd] = []
        self._open: dict[int, float] = {}
        """Begin of the step that each call is in."""
        self._number = 0

    def begin(self, call: _Call, rows: int, tokens: int, *, cached: bool) -> None:
        """A forward pass of so many rows and tokens in each begins; the one before it is over."""
        now_s = time.monotonic()
        prefill, before = call.computed < call.prompt_tokens, call.computed if cached else 0
        call.computed = before + tokens
        # Drafts are verified position by position.
        drafts = cached and not prefill
        sampled = tokens if drafts else int(call.computed >= call.prompt_tokens)
        # Rows of a prompt stand together: its beams, or what it shall return.
        owners = [call.names[row * len(call.names) // rows] for row in range(rows)]
        account = Account.PREFILL if prefill else Account.DECODE
        with self._lock:
            self._close(call, now_s)
            call.open = StepEvent(
                step_id=self._number,
                dispatched_s=now_s,
                done_s=now_s,
                request_ids=owners,
                accounts=[account] * rows,
                num_scheduled_tokens=[tokens] * rows,
                num_computed_tokens=[before] * rows,
                num_sampled=[sampled] * rows,
            )
            self._number += 1
            self._open[id(call)] = now_s

    def end(self, call: _Call, outcome: Outcome, output_tokens: int) -> None:
        """A call is over, and with it its last step."""
        now_s = time.monotonic()
        with self._lock:
            self._close(call, now_s)
            self._open.pop(id(call), None)
            self._ends += [
                RequestEnd(name, outcome, call.prompt_tokens, 0, output_tokens, now_s)
                for name in call.names
            ]
        self.wake.set()

    def _close(self, call: _Call, now_s: float) -> None:
        if call.open is not None:
            step, call.open = call.open, None
            self._steps.append(replace(step, done_s=now_s))

    def drain(self, max_rows: int) -> EventBatch:
        """Everything that is over, steps in the order of their ends."""
        with self._lock:
            until_s = min(self._open.values(), default=time.monotonic())
            steps, self._steps = self._steps, []
            ends, self._ends = self._ends, []
        return EventBatch(steps, ends, until_s, more=False)


def _prompt_shape(arguments: Sequence[Any], named: dict[str, Any]) -> tuple[int, int]:
    """Prompts of a call and their length with padding; an empty call begins with one token."""
    names = ("input_ids", "inputs", "inputs_embeds")
    given = [*arguments[:1], *(named[name] for name in names if named.get(name) is not None)]
    shape = tuple(given[-1].shape) if given and given[-1] is not None else (1, 1)
    return int(shape[0]), int(shape[1])


def _input_shape(inputs: dict[str, Any]) -> tuple[int, int]:
    """Rows and tokens of what goes into the model."""
    ids = inputs.get("input_ids")
    shape = (ids if ids is not None else inputs["inputs_embeds"]).shape
    return int(shape[0]), int(shape[1])


def _length(answer: Any) -> int:
    """Tokens of the longest sequence that came out, its prompt included."""
    return int(getattr(answer, "sequences", answer).shape[1])
