"""Corrects the shipped energy model for this deployment, by what the meter measures: one factor.

Only measured joules of finished requests teach it, each against the estimate for its true length
and company. A facility figure (the FLOP formula) is not calibrated: it counts what no GPU sensor
sees, so that a factor on it would mean nothing.
"""

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llm_carbon_meter import kept_state
from llm_carbon_meter.kept_state import Identity
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.records import Outcome, Quality, RequestRecord, Source

MEMORY: Final = 256
"""Requests remembered."""
MIN_REQUESTS: Final = 10
"""With fewer there is no correction."""
PRIOR_REQUESTS: Final = 1
"""The shipped model counts as so many requests that it estimated exactly."""
MAX_LOG_FACTOR: Final = math.log(3.0)
MAX_LOG_STEP: Final = 0.1
"""How far the logarithm of the factor moves at a time: some 10 %."""
RENEWAL: Final = 16
"""After the first requests the factor is renewed only so often: it costs some 100 µs."""
EAGER_REQUESTS: Final = 64

HUBER_K: Final = 1.345
"""Standard deviations beyond which a request counts less: 95 % efficient without outliers."""
MIN_SCALE: Final = 0.02
HUBER_ITERATIONS: Final = 8

TRUSTED: Final = frozenset({Quality.COUNTER, Quality.POWER})


def huber_centre(log_ratios: Sequence[float], prior: int = PRIOR_REQUESTS) -> float:
    """Robust mean of at least one logarithm, with ``prior`` more at 0.

    Huber's M-estimate of location by iterated weights, its scale from the median deviation.
    """
    seen = np.array(log_ratios, np.float64)
    centre = float(np.median(seen))
    scale = max(1.4826 * float(np.median(np.abs(seen - centre))), MIN_SCALE)
    values = np.append(seen, np.zeros(prior))
    for _ in range(HUBER_ITERATIONS):
        far = np.maximum(np.abs(values - centre) / (HUBER_K * scale), 1.0)
        centre = float((values / far).sum() / (1 / far).sum())
    return centre


def teachable_joules(record: Mapping[str, Any]) -> float | None:
    """Measured joules of a finished record's JSON; None where it must teach and judge nothing.

    Idle joules that the settings spread over requests are in no estimate.
    """
    estimate = record.get("conditional")
    if (
        estimate is None
        or estimate["facility"]
        or record.get("source") != Source.MEASURED
        or record.get("status") != "final"
        or record.get("quality") not in TRUSTED
        or record.get("outcome") != Outcome.FINISHED
    ):
        return None
    measured: float = record["energy_joules"] - record["idle_joules"]
    return measured if measured > 0 else None


def learnable_log_ratio(record: Mapping[str, Any]) -> float | None:
    """ln(measured / estimated) of a finished record's JSON; None where it must teach nothing."""
    measured = teachable_joules(record)
    if measured is None:
        return None
    estimated = record["conditional"]["energy_joules"]
    return math.log(measured / estimated) if estimated > 0 else None


def identity(deployment: Deployment, method: str) -> Identity:
    """What a correction holds for: another model, GPU or engine version needs its own."""
    return {
        "method": method,
        "model": deployment.model.name,
        "weight_bytes": str(deployment.model.weight_bytes),
        "gpu": deployment.gpu.name,
        "num_gpus": deployment.num_gpus,
        "engine": deployment.engine,
        "engine_version": deployment.engine_version,
    }


@dataclass(frozen=True, slots=True)
class State:
    """What is kept over a restart."""

    log_ratios: Sequence[float]
    log_factor: float


class Calibration:
    """The factor of one deployment; safe from any thread.

    Every API server keeps one and feeds it the records that it answered and those that the others
    share for look-ups: all see the same requests, so that no factor has to travel, and none stands
    still when a server is gone. Order and start differ a little between them, as do their factors.
    All begin with the same file, one alone (the first) writes it.

    Args:
        state: from before.
    """

    def __init__(self, state: State | None = None) -> None:
        state = state or State((), 0.0)
        self._log_ratios = deque(state.log_ratios, maxlen=MEMORY)
        self._log_factor = state.log_factor
        self._count = len(self._log_ratios)
        self._lock = threading.Lock()

    @property
    def factor(self) -> float:
        """What to multiply an estimate by; from a third to three, 1.0 while little is known."""
        return math.exp(self._log_factor)

    @property
    def state(self) -> State:
        """To be kept over a restart."""
        with self._lock:
            return State(tuple(self._log_ratios), self._log_factor)

    def observe(self, log_ratio: float) -> None:
        """Learn from ln(measured / estimated) of a request, the estimate not calibrated."""
        with self._lock:
            self._log_ratios.append(log_ratio)
            self._count += 1
            eager = self._count <= EAGER_REQUESTS
            if self._count >= MIN_REQUESTS and (eager or self._count % RENEWAL == 0):
                self._renew()

    def _renew(self) -> None:
        centre = huber_centre(self._log_ratios)
        wanted = min(max(centre, -MAX_LOG_FACTOR), MAX_LOG_FACTOR)
        step = wanted - self._log_factor
        self._log_factor += min(max(step, -MAX_LOG_STEP), MAX_LOG_STEP)


def load_state(path: Path, holds_for: Identity) -> State | None:
    """A correction from before; None where there is none, or it is of another deployment.

    Raises:
        MeterError: the file is damaged or cannot be read.
    """
    return kept_state.load(path, holds_for, _state)


def _state(kept: Mapping[str, Any]) -> State:
    state = State([float(ratio) for ratio in kept["log_ratios"]], float(kept["log_factor"]))
    if not all(map(math.isfinite, state.log_ratios)) or not abs(state.log_factor) <= MAX_LOG_FACTOR:
        raise ValueError(
            f"its factor is exp({state.log_factor}), or one of its ratios is no number"
        )
    return state


def save_state(path: Path, holds_for: Identity, state: State) -> None:
    """Keep a correction.

    Raises:
        MeterError: it cannot be written.
    """
    kept_state.save(
        path, holds_for, {"log_factor": state.log_factor, "log_ratios": list(state.log_ratios)}
    )


def error_ratios(record: RequestRecord) -> Mapping[tuple[str, str], float]:
    """(estimated - measured) / measured by stage and basis; empty unless it was really measured.

    ``conditional`` is given the true length and company, ``end_to_end`` is what was told before.
    """
    energy = record.energy
    if (
        energy is None
        or energy.source is not Source.MEASURED
        or energy.outcome not in (Outcome.FINISHED, Outcome.STOPPED)
    ):
        return {}
    measured = energy.accounts.busy
    bases = {"conditional": record.conditional, "end_to_end": record.estimate}
    return {
        (stage, basis): shown.joules / measured - 1
        for basis, estimate in bases.items()
        if estimate is not None and measured > 0
        for stage, shown in (("raw", estimate), ("calibrated", estimate.calibrated))
    }
