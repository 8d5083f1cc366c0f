"""The seam between energy models and whoever asks for an estimate.

A new energy model is a class with `bind` in a file of its own, and a name in `ENERGY_MODELS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, hypot, log
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.carbon.emissions import operational_grams
from llm_carbon_meter.predictor.lengths import LengthForecast
from llm_carbon_meter.records import CarbonIntensity, EnergyEstimate, EstimateQuery, MeterError
from llm_carbon_meter.specs import GpuSpec, ModelSpec

Floats = NDArray[np.float64]
Numbers = float | Floats
"""Of one request, or of many: shape (requests,)."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything a request's energy depends on beside itself and its company."""

    model: ModelSpec
    """Its number formats included."""
    gpu: GpuSpec
    num_gpus: int
    """Of the tensor-parallel group."""
    engine: str = ""
    """vllm, transformers, tensorrt-llm, …; empty where unknown."""
    engine_version: str = ""


class PhaseEnergy(NamedTuple):
    """Joules per request, all GPUs of the group together."""

    prefill_joules: Any
    """A number, or shape (requests,), as was asked."""
    decode_joules: Any
    gpu_seconds: Any = None
    """Of all GPUs together; None where the model knows no time."""


class BoundModel(Protocol):
    """An energy model that has prepared itself for one deployment."""

    @property
    def out_of_domain(self) -> str:
        """Why the deployment is outside what the model was made for; empty inside."""
        ...

    @property
    def interval(self) -> tuple[float, float]:
        """Factors that 10 % and 90 % of measured / estimated stay below, given the lengths."""
        ...

    def phases(
        self, concurrency: Numbers, prompt_tokens: Numbers, output_tokens: Numbers
    ) -> PhaseEnergy:
        """Energy of requests that each share the GPUs with ``concurrency`` like themselves.

        Args:
            concurrency: requests at once, itself included, at least 1.
            prompt_tokens: at least 1.
            output_tokens: at least 1, an expectation or a whole number.
        """
        ...


class EnergyModel(Protocol):
    """A way to predict energy, for any deployment."""

    name: str
    """flop, gnn"""
    facility: bool
    """Its figures already contain the data centre's overhead."""

    def bind(self, deployment: Deployment) -> BoundModel:
        """Prepare for one deployment.

        Raises:
            SpecError: the model cannot run there at all.
        """
        ...


class DeploymentEstimator:
    """Estimates of one deployment's requests while their length is not known.

    Two things are uncertain: how long the answer gets, and the energy of a given length. Either
    gives a distance from the estimate as a factor; both are independent, so that their logarithms
    add in quadrature:  ln(high / E) = hypot(ln(E(long) / E), ln(E_90% / E)),  low likewise. For
    E(long) decode grows with its tokens.

    Args:
        model: predicts the energy.
        deployment: what it is bound to.
        intensity: of the grid, for the grams.
        pue: on top of figures that do not contain it.
        remark: joins the model's own ``out_of_domain``.
        embodied_grams_per_gpu_s: of the hardware's making; None to leave it out.

    Raises:
        SpecError: the model cannot run on that deployment.
    """

    def __init__(
        self,
        model: EnergyModel,
        deployment: Deployment,
        intensity: CarbonIntensity,
        pue: float = 1.0,
        remark: str = "",
        embodied_grams_per_gpu_s: float | None = None,
    ) -> None:
        self.deployment = deployment
        self.method = model.name
        self.facility = model.facility
        self._bound = model.bind(deployment)
        self._out_of_domain = "; ".join(filter(None, (remark, self._bound.out_of_domain)))
        self.intensity = intensity
        self._pue = 1.0 if model.facility else pue
        self._embodied_rate = embodied_grams_per_gpu_s

    def estimate(self, query: EstimateQuery, lengths: LengthForecast) -> EnergyEstimate:
        """Estimate a request of known prompt and expected output length.

        Each of ``num_sequences`` answers is charged its own prefill.

        Raises:
            MeterError: the query makes no sense.
        """
        _check(query)
        # A request without an answer (an embedding) is a prefill: one token, its decode left out.
        mean, short, long = map(max, lengths, (1.0, 1.0, 1.0))
        asked = float(query.concurrency), float(query.prompt_tokens), mean
        prefill, decode, gpu_seconds = self._bound.phases(*asked)
        point, (low, high) = prefill + decode, self._bound.interval
        below = _distance(point / (prefill + decode * short / mean), 1.0 / low)
        above = _distance((prefill + decode * long / mean) / point, high)
        sequences = query.num_sequences
        decode_joules = decode * sequences if lengths.mean > 0 else 0.0
        joules = prefill * sequences + decode_joules
        return EnergyEstimate(
            method=self.method,
            prefill_joules=prefill * sequences,
            decode_joules=decode_joules,
            low_joules=joules * exp(-below),
            high_joules=joules * exp(above),
            output_tokens=lengths.mean * sequences,
            facility=self.facility,
            operational_grams=operational_grams(joules, self.intensity, self._pue),
            embodied_grams=None
            if gpu_seconds is None or self._embodied_rate is None
            else gpu_seconds * sequences * self._embodied_rate,
            out_of_domain=self._out_of_domain,
        )


def _distance(one: float, other: float) -> float:
    """Independent factors as one distance in logarithms; none reaches across its point."""
    return hypot(log(max(1.0, one)), log(max(1.0, other)))


def _check(query: EstimateQuery) -> None:
    if min(query.prompt_tokens, query.num_sequences, query.concurrency) < 1:
        raise MeterError(
            f"prompt_tokens is {query.prompt_tokens}, n is {query.num_sequences} and concurrency "
            f"is {query.concurrency}; each must be at least 1"
        )


def _flop() -> EnergyModel:
    from llm_carbon_meter.predictor.flop import FlopModel

    return FlopModel()


# A model's file is imported when it is asked for: not every one needs what another one needs.
def _gnn() -> EnergyModel:
    from llm_carbon_meter.predictor.gnn import GnnModel

    return GnnModel()


ENERGY_MODELS: Mapping[str, Callable[[], EnergyModel]] = {"gnn": _gnn, "flop": _flop}


def energy_model(name: str) -> EnergyModel:
    """An energy model by its name.

    Raises:
        MeterError: there is none of that name.
    """
    if name not in ENERGY_MODELS:
        raise MeterError(f"no energy model {name!r}; known: {', '.join(ENERGY_MODELS)}")
    return ENERGY_MODELS[name]()
