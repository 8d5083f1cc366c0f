"""The book itself: a million requests through ledger and registry, and steps settled per second."""

import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from llm_carbon_meter.frontend.exchanges import Exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.ledger.coefficient_learner import CoefficientLearner
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.meter import TICK_S
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.progress import progress
from llm_carbon_meter.records import (
    Account,
    EnergyReading,
    Outcome,
    Quality,
    RequestEnd,
    Source,
    StepEvent,
)
from tests.support.servers.front_ends import front_end

MILLION = 1_000_000
TOGETHER = 64
STEP_S = 0.005
STEPS_A_TICK = 10
SETTLED_STEPS = 40_000


def measure(model: Path) -> Mapping[str, float]:
    """Steps in time."""
    return {
        "steps_per_s": _steps_per_s([1] * TOGETHER),
        "mixed_steps_per_s": _steps_per_s([1500, 300, *[1] * (TOGETHER - 2)]),
    }


def measure_memory(model: Path) -> Mapping[str, float]:
    """Megabytes that a million requests leave behind."""
    return {"memory_mb": _memory_mb()}


def _ledger() -> EnergyLedger:
    physics = CostModel(gpu_spec("H100"), step_costs(built_in_model("Llama-3.1-8B")))
    learner = CoefficientLearner(physics.gpu)
    return EnergyLedger(
        ["gpu"], physics, Source.MEASURED, Quality.COUNTER, tick_s=TICK_S, learner=learner
    )


def _steps_per_s(tokens: Sequence[int]) -> float:
    """Of requests with these numbers of tokens in every step."""
    ledger = _ledger()
    names = [f"chatcmpl-{index:032x}" for index in range(TOGETHER)]
    cached, sampled = list(range(TOGETHER)), [1] * TOGETHER
    columns = ([Account.DECODE] * TOGETHER, list(tokens), cached, sampled)
    ledger.observe_reading(EnergyReading(0.0, "gpu", 0.0))
    start = time.process_time()
    for step in range(0, SETTLED_STEPS, STEPS_A_TICK):
        events = [
            StepEvent(n, n * STEP_S, (n + 1) * STEP_S, names, *columns)
            for n in range(step, step + STEPS_A_TICK)
        ]
        ledger.observe_steps(events)
        now_s = events[-1].done_s
        ledger.observe_reading(EnergyReading(now_s, "gpu", 500.0 * now_s))
        ledger.settle(now_s)
    return SETTLED_STEPS / (time.process_time() - start)


def _memory_mb() -> float:
    """Resident growth after the first tenth, in which every buffer reaches its size."""
    ledger, process = _ledger(), psutil.Process()
    frontend = front_end()
    ledger.observe_reading(EnergyReading(0.0, "gpu", 0.0))
    warm = 0
    for done in progress(range(0, MILLION, TOGETHER), desc="requests", unit="batch"):
        _serve(ledger, frontend, done)
        if not warm and done >= MILLION // 10:
            gc.collect()
            warm = process.memory_info().rss
    gc.collect()
    return (process.memory_info().rss - warm) / 1e6


def _serve(ledger: EnergyLedger, frontend: FrontendMeter, first: int) -> None:
    """64 requests, one step each, from their estimate to their record."""
    names = [f"chatcmpl-{index:08x}" for index in range(first, first + TOGETHER)]
    exchanges = [Exchange() for _ in names]
    for name, exchange in zip(names, exchanges, strict=True):
        frontend.begin(exchange, name, name, Prompt(100), max_tokens=10)
    start_s = first * STEP_S
    end_s = start_s + STEP_S * TOGETHER
    columns = ([Account.PREFILL] * TOGETHER, [100] * TOGETHER, [0] * TOGETHER, [1] * TOGETHER)
    ledger.observe_steps([StepEvent(first, start_s, end_s, names, *columns)])
    for name, exchange in zip(names, exchanges, strict=True):
        end = RequestEnd(name, Outcome.FINISHED, 100, 0, 1, end_s)
        frontend.receive_energies([ledger.close(end)])
        frontend.end(exchange, answered=True)
    ledger.observe_reading(EnergyReading(end_s, "gpu", 500.0 * end_s))
    for record in ledger.settle(end_s):
        frontend.receive_energies([record])
