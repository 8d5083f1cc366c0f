"""``with meter_generate(model) as meter: model.generate(…)``: the energy of each call.

A prompt's beams are rows of a step each, and `num_steps` counts them all.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.sums import sum_energies
from llm_carbon_meter.meter import EngineMeter, cost_model, open_host, open_power
from llm_carbon_meter.physics.deployed_gpu import gpu_of
from llm_carbon_meter.records import (
    Account,
    EngineLoad,
    EngineTotals,
    EventBatch,
    MeterError,
    Outcome,
    RequestEnd,
    RequestEnergy,
    Status,
    StepEvent,
)
from llm_carbon_meter.servers.shared.gpu_fields import gpu_fields
from llm_carbon_meter.servers.shared.settings import checked_settings
from llm_carbon_meter.servers.transformers.calls import Call, watch
from llm_carbon_meter.servers.transformers.model import gpu_name, gpus_of, spec_of, visible_gpus

SETTLED_S: Final = 10.0
"""A call's last tick takes a second; longer than this nobody waits."""
NEEDED: Final = ("config", "parameters", "generate", "prepare_inputs_for_generation")
"""What the meter asks of a model."""


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
        self._faults = faults
        self._steps = _Steps()
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._names: dict[int, Sequence[str]] = {}
        self._energies: dict[str, RequestEnergy] = {}
        gpus = gpus_of(model)
        seen = gpu_fields(config, lambda: visible_gpus(gpus), gpu_name(gpus))
        gpu = gpu_of(config, seen, faults).spec
        spec = spec_of(model, type(model).__name__, faults)
        count, begun_s = max(len(gpus), 1), time.monotonic()
        power = open_power(
            config, lambda: visible_gpus(gpus), count, gpu, begun_s, faults, on_cpu=not gpus
        )
        self._meter = EngineMeter(
            config,
            power,
            self._steps,
            cost_model(gpu, spec, 1),
            0,
            self._receive,
            faults,
            os.getpid(),
            host=open_host(config, power, count, 1, faults),
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
        energies = [self._energies.get(name) for name in names]
        return all(energy is not None and energy.status is Status.FINAL for energy in energies)

    def _receive(self, messages: Sequence[RequestEnergy | EngineTotals | EngineLoad]) -> None:
        with self._changed:
            for message in messages:
                match message:
                    case EngineTotals():
                        self.totals = message
                    case RequestEnergy():
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

    def open(self, prompts: int, prompt_tokens: int) -> Call:
        """A call begins (`transformers_calls.CallSink`)."""
        number = next(self._numbers)
        names = [f"generate-{number}-{place}" for place in range(prompts)]
        return Call(names, prompt_tokens, number)

    def begin(self, call: Call, rows: int, tokens: int, *, cached: bool) -> None:
        """A forward pass begins."""
        self._steps.begin(call, rows, tokens, cached=cached)

    def end(self, call: Call, outcome: Outcome, output_tokens: int) -> None:
        """A call is over."""
        self._steps.end(call, outcome, output_tokens)
        with self._changed:
            self._names[call.number] = call.names

    def failed(self, error: Exception) -> None:
        """Something of ours raised."""
        self._faults.note("generate", error, "This call's figures are incomplete.")


@contextmanager
def meter_generate(model: Any, config: Config | None = None) -> Iterator[GenerateMeter]:
    """Meter every ``model.generate`` inside the block, on any thread.

    Args:
        model: of transformers; it is as before after the block.
        config: settings; those of the environment unless given.

    Raises:
        MeterError: that is no such model, or the power source cannot be opened.
    """
    lacking = [name for name in NEEDED if not hasattr(model, name)]
    if lacking:
        raise MeterError(
            f"meter_generate got a {type(model).__name__}, which has no {', no '.join(lacking)}; "
            "give a model of transformers that generates, such as an AutoModelForCausalLM"
        )
    faults = Faults()
    meter = GenerateMeter(model, config or checked_settings(faults), faults)
    meter.start()
    leave = watch(model, meter)
    try:
        yield meter
    finally:
        leave()
        meter.stop()


class _Steps:
    """The meter's event source: steps of all threads, each entered when it is over."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self._lock = threading.Lock()
        self._steps: list[StepEvent] = []
        self._ends: list[RequestEnd] = []
        self._under_way: dict[int, StepEvent] = {}
        """The step that each call is in."""
        self._number = 0

    def begin(self, call: Call, rows: int, tokens: int, *, cached: bool) -> None:
        """A forward pass of so many rows and tokens in each begins; the one before it is over."""
        now_s = time.monotonic()
        prefill, before, sampled = call.advance(tokens, cached=cached)
        # Rows of a prompt stand together: its beams, or what it shall return.
        owners = [call.names[row * len(call.names) // rows] for row in range(rows)]
        account = Account.PREFILL if prefill else Account.DECODE
        with self._lock:
            self._close(call, now_s)
            self._under_way[id(call)] = StepEvent(
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

    def end(self, call: Call, outcome: Outcome, output_tokens: int) -> None:
        """A call is over, and with it its last step."""
        now_s = time.monotonic()
        with self._lock:
            self._close(call, now_s)
            self._ends += [
                RequestEnd(name, outcome, call.prompt_tokens, 0, output_tokens, now_s)
                for name in call.names
            ]
        self.wake.set()

    def _close(self, call: Call, now_s: float) -> None:
        step = self._under_way.pop(id(call), None)
        if step is not None:
            self._steps.append(replace(step, done_s=now_s))

    def drain(self, max_rows: int) -> EventBatch:
        """Everything that is over, steps in the order of their ends."""
        with self._lock:
            begun = [step.dispatched_s for step in self._under_way.values()]
            until_s = min(begun, default=time.monotonic())
            steps, self._steps = self._steps, []
            ends, self._ends = self._ends, []
        return EventBatch(steps, ends, until_s, more=False)
