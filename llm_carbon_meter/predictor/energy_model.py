"""The protocol of energy models: what a deployment is, and what a model says of its requests.

A new energy model is a class with `EnergyModel.bind` in a file of its own, and a name in models.py.
"""

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.phases import PLAIN, Serving
from llm_carbon_meter.records import DeploymentFactors

Floats = NDArray[np.float64]
Numbers = float | Floats
"""Of one request, or of many: shape (requests,)."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything a request's energy depends on beside its own length and the concurrency."""

    model: ModelSpec
    """Shape, number formats included."""
    gpu: GpuSpec
    num_gpus: int
    """Of the tensor-parallel group."""
    engine: str = ""
    """vllm, transformers, tensorrt-llm, …; empty where unknown."""
    engine_version: str = ""
    max_num_batched_tokens: float = inf
    """That the engine takes in a step; infinite where nobody knows."""


class PhaseEnergy(NamedTuple):
    """Joules per request, all GPUs of the group together."""

    prefill_joules: Any
    """A number, or shape (requests,), as was asked."""
    decode_joules: Any
    gpu_seconds: Any = None
    """Of all GPUs together; None where the model knows no time."""
    width: Any = 0.0
    """ln(energy that 90 % of measurements stay below / this), given the lengths; 10 % likewise."""
    calibration: Any = 1.0
    """Energy here / as the model had it before the deployment was seen at work."""


class BoundModel(Protocol):
    """An energy model that has prepared itself for one deployment."""

    @property
    def out_of_domain(self) -> str:
        """Why the deployment is outside what the model was made for; empty inside."""
        ...

    @property
    def measured(self) -> bool:
        """Whether requests were measured on such a GPU and engine, and the model made of them."""
        ...

    def adopt(self, factors: DeploymentFactors) -> None:
        """From now on estimate with what the deployment has shown; nothing where no law is."""
        ...

    def phases(
        self,
        concurrency: Numbers,
        prompt_tokens: Numbers,
        output_tokens: Numbers,
        serving: Serving = PLAIN,
    ) -> PhaseEnergy:
        """Energy of requests that each share the GPUs with ``concurrency`` like themselves.

        Args:
            concurrency: requests at once, itself included, at least 1.
            prompt_tokens: at least 1.
            output_tokens: an expectation or a whole number; below 1 there is no decode, and at 0
                (an embedding) nothing is sampled.
            serving: what the prefix cache holds, and drafts; its budget is the deployment's.
        """
        ...


class EnergyModel(Protocol):
    """A way to predict energy, for any deployment."""

    name: str
    """flop, gnn"""
    facility: bool
    """Whether the model's figures contain the data centre's overhead already."""

    def bind(self, deployment: Deployment) -> BoundModel:
        """Prepare for one deployment.

        Raises:
            SpecError: the model cannot run there at all.
        """
        ...
