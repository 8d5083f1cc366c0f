"""Plays a simulated run into the shipped ledger, turn by turn as the meter's thread does."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.ledger.coefficient_learner import CoefficientLearner, LearnerState
from llm_carbon_meter.ledger.lag_learner import LagLearner
from llm_carbon_meter.ledger.ledger import EnergyLedger, Window
from llm_carbon_meter.meter import TICK_S
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.power.nvml.architectures import architecture
from llm_carbon_meter.records import (
    Account,
    EnergyReading,
    GpuTotals,
    Quality,
    RequestEnergy,
    Source,
    StepEvent,
)

from .engine import Served, TrueStep, serve
from .gpus import true_gpu
from .loads import Load
from .ranges import World
from .sensor import POLL_S, Drawn, drawn, readings

Floats = npt.NDArray[np.float64]
Event = TypeVar("Event")

ARCHITECTURES: Final = {"A100": 7, "L4": 8, "L40S": 8, "H100": 9, "H200": 9, "B200": 10}
"""NVML's numbers of the GPUs in `ranges`."""


@dataclass(frozen=True)
class Run:
    """A world under one load: what happened, what it cost and what the sensors showed."""

    world: World
    load: Load
    served: Served
    curves: Mapping[str, Drawn]
    """Per GPU."""
    seen: Mapping[str, Sequence[EnergyReading]]
    causes: Mapping[str, Floats]
    """True joules of each request on all GPUs, indexed by Account as far as WASTE."""
    sampling_error: Mapping[str, float]
    """Standard error of a request's true joules."""
    over_s: float


def simulate(world: World, load: Load, until_s: float) -> Run:
    """Serve, draw power, and look at it through sensors."""
    gpu, served = true_gpu(world), serve(world, load, until_s)
    group = world.tensor_parallel
    scales = 1 + world.values["imbalance"] * np.linspace(-0.5, 0.5, group) * (group > 1)
    names = [f"gpu-{index}" for index in range(group)]
    # A moment more: the sensor shows the last step late.
    over_s = max(until_s, served.steps[-1].event.done_s) + 2.0
    curves = {
        name: drawn(world, gpu, served.steps, float(scale), over_s)
        for name, scale in zip(names, scales, strict=True)
    }
    seen = {name: readings(world, name, curve, over_s) for name, curve in curves.items()}
    causes, errors = _causes(served, float(scales.sum()))
    return Run(world, load, served, curves, seen, causes, errors, over_s)


def _causes(served: Served, scale: float) -> tuple[dict[str, Floats], dict[str, float]]:
    causes: dict[str, Floats] = {}
    errors: dict[str, float] = {}
    for step in served.steps:
        columns = (step.event.request_ids, step.event.accounts, step.causes, step.halves)
        for name, account, joules, half in zip(*columns, strict=True):
            causes.setdefault(name, np.zeros(4))[account] += joules * scale
            errors[name] = errors.get(name, 0.0) + half * half * scale * scale
    return causes, {name: error**0.5 for name, error in errors.items()}


@dataclass(frozen=True)
class Book:
    """What the ledger made of a run."""

    records: Mapping[str, RequestEnergy]
    totals: Sequence[GpuTotals]

    @property
    def conservation_error(self) -> float:
        """Relative: final figures and the accounts of no request, against the counters."""
        booked = sum(record.joules for record in self.records.values())
        booked += sum(
            gpu.account_joules[account]
            for gpu in self.totals
            for account in (Account.OVERHEAD, Account.IDLE, Account.UNATTRIBUTED)
        )
        counted = sum(gpu.counter_joules for gpu in self.totals)
        return abs(booked / counted - 1)


def play(run: Run, ledger: EnergyLedger) -> Book:
    """Feed steps, ends and readings in the order in which a meter learns of them."""
    steps, ends = deque(step.event for step in run.served.steps), deque(run.served.ends)
    readings = deque(sorted(chain(*run.seen.values()), key=attrgetter("monotonic_s")))
    records: list[RequestEnergy] = []
    for now_s in np.arange(0.0, run.over_s + POLL_S, POLL_S).tolist():
        ledger.observe_steps(_until(steps, now_s, attrgetter("done_s")))
        for end in _until(ends, now_s, attrgetter("monotonic_s")):
            ledger.close(end)
        for reading in _until(readings, now_s, attrgetter("monotonic_s")):
            ledger.observe_reading(reading)
        in_flight_s = steps[0].dispatched_s if steps else now_s
        records += ledger.settle(min(now_s, in_flight_s))
    records += ledger.give_up(run.over_s)
    return Book({record.request_id: record for record in records}, ledger.totals())


def _until(events: deque[Event], now_s: float, time_of: Callable[[Event], float]) -> list[Event]:
    """Take the events that have happened."""
    happened = []
    while events and time_of(events[0]) <= now_s:
        happened.append(events.popleft())
    return happened


def model_of(world: World) -> CostModel:
    """What a meter knows of a world: the names of GPU and model, and nothing else."""
    costs = step_costs(built_in_model(world.model), world.tensor_parallel)
    return CostModel(gpu_spec(world.gpu), costs)


def learner_of(world: World, state: LearnerState | None = None) -> CoefficientLearner:
    """Of a meter that has just started, or goes on from what it had kept."""
    return CoefficientLearner(model_of(world).gpu, state)


def ledger_of(
    run: Run,
    policy: str,
    learner: CoefficientLearner | None = None,
    kind: type[EnergyLedger] = EnergyLedger,
    lags: LagLearner | None = None,
) -> EnergyLedger:
    """The book of a meter; without a learner the data sheet holds, and no lag is learnt."""
    counts = run.world.sensor != "averaged_power"
    return kind(
        list(run.seen),
        model_of(run.world),
        Source.MEASURED,
        Quality.COUNTER if counts else Quality.POWER,
        policy=policy,
        lag_s=_delay_s(run.world),
        tick_s=TICK_S,
        learner=learner,
        lags=lags or LagLearner({}) if learner and counts else None,
    )


def _delay_s(world: World) -> float:
    """What NvmlMeter takes off a reading's time: how late such GPUs show an average of power."""
    if world.sensor != "averaged_power":
        return 0.0
    return architecture(ARCHITECTURES[world.gpu], world.gpu).usage_delay_s


class _Told(EnergyLedger):
    truth: Mapping[int, TrueStep]

    def observe_steps(self, events: Sequence[StepEvent]) -> list[Window]:
        windows = super().observe_steps(events)
        if events:
            true, steps = [self.truth[event.step_id] for event in events], self._steps
            seconds = (steps.end - steps.start)[-len(true) :]
            steps.watts[-len(true) :] = [step.joules for step in true] / np.maximum(seconds, 1e-9)
            shares = np.concatenate([step.causes / step.causes.sum() for step in true])
            steps.row_share[-len(shares) :] = shares
        return windows


def told_ledger(
    run: Run, learner: CoefficientLearner, lags: LagLearner | None = None
) -> EnergyLedger:
    """The same book, told what every step drew and who caused it: the errors that are left come
    from the sensors, the engine's times and neighbours, not from the division."""
    ledger = ledger_of(run, "shapley", learner, _Told, lags)
    assert isinstance(ledger, _Told)
    ledger.truth = {step.event.step_id: step for step in run.served.steps}
    return ledger
