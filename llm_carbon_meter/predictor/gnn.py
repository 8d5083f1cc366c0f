"""The shipped predictor: fitted physics times the network's correction, served in numpy."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from llm_carbon_meter.predictor.engines import engine_key
from llm_carbon_meter.predictor.estimator import Deployment, PhaseEnergy
from llm_carbon_meter.predictor.graph import (
    EXPAND,
    DeploymentGraph,
    Inputs,
    neighbours,
    static_nodes,
)
from llm_carbon_meter.predictor.physics import FittedPhysics, board_seconds
from llm_carbon_meter.records import MeterError

Floats = NDArray[np.float64]
Array = NDArray[Any]
"""Single precision inside the network, as it was trained."""

WEIGHTS: Final = "gnn.safetensors"
CARD: Final = "card.json"


@dataclass(frozen=True, slots=True)
class Network:
    """Weights of `network.PhaseNetwork`."""

    neighbour_1: Array
    """Shape (inputs, width), as all matrices here."""
    own_1: Array
    bias_1: Array
    neighbour_2: Array
    own_2: Array
    bias_2: Array
    linear_1: Array
    linear_bias_1: Array
    linear_2: Array
    linear_bias_2: float
    largest: float

    @classmethod
    def of(cls, state: Mapping[str, Any], largest: float) -> "Network":
        """From the state of the torch module."""
        one = {name: np.asarray(value, np.float32) for name, value in state.items()}
        return cls(
            one["sage_1.lin_rel.weight"].T,
            one["sage_1.lin_root.weight"].T,
            one["sage_1.lin_root.bias"],
            one["sage_2.lin_rel.weight"].T,
            one["sage_2.lin_root.weight"].T,
            one["sage_2.lin_root.bias"],
            one["linear_1.weight"].T,
            one["linear_1.bias"],
            one["linear_2.weight"][0],
            float(one["linear_2.bias"][0]),
            largest,
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """Everything that training leaves behind."""

    physics: FittedPhysics
    network: Network
    gate: float
    """Share of the network's correction that inner cross-validation found best."""
    low: float
    """Logarithm of measured / predicted that 10 % of held-out architectures stay below."""
    high: float
    """And 90 %."""
    wider: float
    """Factor of that interval outside the domain."""


class GnnModel:
    """`estimator.EnergyModel` of trained weights.

    Args:
        weights: of the package, unless given.
    """

    name = "gnn"
    facility = False

    def __init__(self, weights: Weights | None = None) -> None:
        self._weights = weights or shipped_weights()

    def bind(self, deployment: Deployment) -> "BoundGnn":
        """Prepare everything that depends on the deployment alone.

        Raises:
            SpecError: heads that cannot be divided among the GPUs.
        """
        return BoundGnn(self._weights, deployment)


class BoundGnn:
    """The predictor on one deployment."""

    def __init__(self, weights: Weights, deployment: Deployment) -> None:
        self._weights = weights
        self._graph = DeploymentGraph.of(deployment)
        self._constants = weights.physics.constants(
            deployment.engine, deployment.engine_version, deployment.gpu.name
        )
        self._board_watts = deployment.gpu.board_watts * deployment.num_gpus
        network, model = weights.network, deployment.model
        linked = neighbours(model, deployment.num_gpus)
        fixed = static_nodes(model, deployment.num_gpus)
        kinds = fixed.shape[1]
        first = linked @ fixed @ network.neighbour_1[:kinds] + fixed @ network.own_1[:kinds]
        self._linked = linked.astype(np.float32)
        self._fixed = (first + network.bias_1)[:, None].astype(np.float32)
        self._neighbour_1 = (EXPAND @ network.neighbour_1[kinds:]).astype(np.float32)
        self._own_1 = (EXPAND @ network.own_1[kinds:]).astype(np.float32)
        self.out_of_domain = _outside(weights, deployment)
        widening = weights.wider if self.out_of_domain else 1.0
        self._low, self._high = np.exp(weights.low * widening), np.exp(weights.high * widening)

    def phases(
        self, concurrency: Floats, prompt_tokens: Floats, output_tokens: Floats
    ) -> PhaseEnergy:
        """See `estimator.BoundModel`."""
        inputs = self._graph.inputs(concurrency, prompt_tokens, output_tokens)
        energy = self.physics(inputs) * np.exp(self._weights.gate * self.residual(inputs))
        joules = energy * (self._board_watts / concurrency)[:, None]
        total = joules[:, 0] + joules[:, 1]
        return PhaseEnergy(joules[:, 0], joules[:, 1], total * self._low, total * self._high)

    def physics(self, inputs: Inputs) -> Floats:
        """Both phases in seconds of board power per GPU, shape (batches, 2)."""
        return np.asarray(board_seconds(self._constants, inputs.terms))

    def residual(self, inputs: Inputs) -> Floats:
        """The network's correction, a logarithm; `network.PhaseNetwork` is the same in torch."""
        network, kernels = self._weights.network, len(self._linked)
        basis = inputs.basis.reshape(kernels, -1, inputs.basis.shape[-1]).astype(np.float32)
        hidden = self._sage(basis, self._neighbour_1, self._own_1)
        hidden += self._fixed
        np.maximum(hidden, 0, out=hidden)
        hidden = self._sage(hidden, network.neighbour_2, network.own_2)
        hidden += network.bias_2
        np.maximum(hidden, 0, out=hidden)
        pooled = np.einsum("kg,kgh->gh", basis[..., -1], hidden)
        described = inputs.described.reshape(len(pooled), -1).astype(np.float32)
        joined = np.concatenate((pooled, described), axis=1)
        dense = np.maximum(joined @ network.linear_1 + network.linear_bias_1, 0)
        output = dense @ network.linear_2 + network.linear_bias_2
        return np.asarray(network.largest * np.tanh(output / network.largest).reshape(-1, 2))

    def _sage(
        self, nodes: NDArray[Any], neighbour: NDArray[Any], own: NDArray[Any]
    ) -> NDArray[Any]:
        """The mean of the neighbours and the node itself: (kernels, graphs, width)."""
        kernels, graphs, inputs = nodes.shape
        flat = nodes.reshape(-1, inputs)
        given = (flat @ neighbour).reshape(kernels, -1)
        summed = (self._linked @ given).reshape(kernels * graphs, -1)
        summed += flat @ own
        return np.asarray(summed.reshape(kernels, graphs, -1))


def _outside(weights: Weights, deployment: Deployment) -> str:
    """What of a deployment was not among the measurements; empty where all was."""
    known = weights.physics.engines
    engine = engine_key(deployment.engine, deployment.engine_version)
    reasons = [
        deployment.model.approximation,
        f"GPU {deployment.gpu.name} not measured"
        if deployment.gpu.name not in weights.physics.gpus
        else "",
        f"engine {engine or 'unknown'} not measured" if engine not in known else "",
    ]
    return "; ".join(filter(None, reasons))


def weights_of(tensors: Mapping[str, Any], card: Mapping[str, Any]) -> Weights:
    """From the tensors of the file and the numbers of its card."""
    physics = {
        name.removeprefix("physics."): np.asarray(value, np.float64)
        for name, value in tensors.items()
        if name.startswith("physics.")
    }
    engines = dict(zip(card["engines"], physics["engines"], strict=True))
    fitted = FittedPhysics(
        time=physics["time"],
        energy=physics["energy"],
        decode_time=float(physics["decode"][0]),
        decode_energy=float(physics["decode"][1]),
        static=float(physics["decode"][2]),
        engines=engines,
        gpus=dict(zip(card["gpus"], physics["gpus"].tolist(), strict=True)),
    )
    interval = card["interval"]
    return Weights(
        physics=fitted,
        network=Network.of(tensors, card["largest"]),
        gate=card["gate"],
        low=interval["low"],
        high=interval["high"],
        wider=interval["wider_outside"],
    )


@cache
def shipped_weights() -> Weights:
    """The weights of the package.

    Raises:
        MeterError: they are missing, damaged, or not the ones of their card.
    """
    folder = resources.files("llm_carbon_meter.predictor.weights")
    try:
        data = folder.joinpath(WEIGHTS).read_bytes()
        card = folder.joinpath(CARD).read_text("utf-8")
    except OSError as error:
        raise MeterError(f"the predictor's weights: {error}; install the package again") from error
    return read_weights(data, card)


def read_weights(data: bytes, card_text: str) -> Weights:
    """Check a weights file against its card and read it.

    Raises:
        MeterError: one of them is damaged, or they do not belong together.
    """
    try:
        card = json.loads(card_text)
        found = hashlib.sha256(data).hexdigest()
        if found != card["sha256"]:
            raise ValueError(f"its checksum is {found[:12]}…, the card says {card['sha256'][:12]}…")
        return weights_of(load(data), card)
    except (ValueError, KeyError, TypeError) as error:
        raise MeterError(f"{WEIGHTS} cannot be used: {error}; install the package again") from error
