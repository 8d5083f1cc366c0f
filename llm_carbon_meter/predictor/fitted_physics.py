"""Fitted physics: the step law's rates, and how engines and GPUs differ from them.

A GPU has its own efficiency and power (`GPU_SPREAD`), an engine its own host code and decode
attention (`ENGINE_SPREAD`). Both are factors of the law; a deployment multiplies its engine's and
its GPU's, and may differ from the product by `DEPLOYMENT_SPREAD`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.predictor.measured_engines import (
    expected_factors,
    nearest_engines,
    unlikeness,
)
from llm_carbon_meter.predictor.step_law import FACTORS

Floats = NDArray[np.float64]


def by_factor(values: Mapping[str, float]) -> Floats:
    """Numbers of some `FACTORS` in their order, 0 for the others."""
    return np.array([values.get(name, 0.0) for name in FACTORS])


GPU_SPREAD: Final = by_factor({"weights": 0.15, "products": 0.2, "static": 0.2, "dynamic": 0.15})
"""Standard deviations of the logarithms: how far GPUs lie from their data sheets."""
HOST_SPREAD: Final = by_factor(dict.fromkeys(("launches", "steps", "sequence_steps"), 0.4))
"""Of an engine's host code as a whole."""
ENGINE_SPREAD: Final = by_factor(
    {
        **dict.fromkeys(("cache", "launches", "steps", "sequence_steps"), 0.5),
        "static": 0.05,
        "dynamic": 0.1,
    }
)
"""Of an engine's parts, one by one."""
KERNEL_SPREAD: Final = by_factor({"weights": 0.07, "products": 0.1, "static": 0.2, "dynamic": 0.15})
"""Of a GPU whose kernels were measured, but no whole requests."""
DEPLOYMENT_SPREAD: Final = by_factor(
    {
        **{"weights": 0.08, "products": 0.12, "cache": 0.2, "launches": 0.15},
        **{"steps": 0.3, "sequence_steps": 0.2, "static": 0.08, "dynamic": 0.08},
    }
)
"""Of one model on a GPU and an engine that are both measured."""


FORMAT_SPREAD: Final = by_factor({"weights": 0.25, "products": 0.2, "launches": 0.2})
"""Of a number format that was not measured, besides."""
LIMIT_SPREAD: Final = by_factor({"weights": 0.2, "products": 0.5, "static": 0.3, "dynamic": 0.3})
"""Of a power limit that is e times lower than the board power, besides. None was measured: the law
has one slope of time against power for all steps (`step_law.SLOWED`)."""


def limit_spread(gpu: GpuSpec) -> Floats:
    """Standard deviations that a GPU's power limit adds; 0 where that is its board power."""
    return np.asarray(LIMIT_SPREAD * np.log(gpu.board_watts / gpu.limit_watts))


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected of a deployment's `FACTORS` before it was seen at work, as logarithms."""

    mean: Floats
    """Shape (factors,)."""
    covariance: Floats
    """Shape (factors, factors)."""


@dataclass(frozen=True, slots=True)
class FittedPhysics:
    """The law's rates and the factors of all that was measured, as logarithms."""

    time: Floats
    """Shape (terms,)."""
    energy: Floats
    static: float
    active: float
    engines: Mapping[str, Floats]
    """``engine version`` -> each of `FACTORS`."""
    gpus: Mapping[str, Floats]
    """GPU -> each of `FACTORS`, against what its data sheet says."""
    kernels: Mapping[str, Floats] = field(default_factory=dict)
    """GPU whose kernels were measured -> likewise, from these alone."""

    def at_limit(self, gpu: GpuSpec) -> "FittedPhysics":
        """The same law with energies in units of the GPU's power limit instead of its board power.

        So a step draws what it drew, and the law's limit is the one that is enforced.
        """
        more = np.log(gpu.board_watts / gpu.limit_watts)
        return replace(
            self, energy=self.energy + more, static=self.static + more, active=self.active + more
        )

    def prior(self, engine: str, version: str, gpu: str) -> Prior:
        """Of a deployment; an engine that was not measured is like its nearest kin."""
        measured = tuple(self.engines)
        unlike = unlikeness(engine, version, measured)
        variance = DEPLOYMENT_SPREAD**2 + unlike**2 * ENGINE_SPREAD**2
        mean = self._engine(engine, version)
        if gpu in self.gpus:
            mean = mean + self.gpus[gpu]
        elif gpu in self.kernels:
            mean, variance = mean + self.kernels[gpu], variance + KERNEL_SPREAD**2
        else:
            variance = variance + GPU_SPREAD**2
        host = unlike * HOST_SPREAD
        return Prior(mean, np.diag(variance) + np.outer(host, host))

    def _engine(self, engine: str, version: str) -> Floats:
        """What engines differ by from what is expected of them, kin share."""
        factors = by_factor(expected_factors(engine, version))
        for key, weight in nearest_engines(engine, version, tuple(self.engines)).items():
            name, _, release = key.partition(" ")
            own = self.engines[key] - by_factor(expected_factors(name, release))
            factors = factors + weight * own
        return factors
