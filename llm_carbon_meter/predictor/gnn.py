"""The shipped predictor: fitted physics times the network's correction, served in numpy."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import e, exp
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from llm_carbon_meter.predictor.energy_model import Deployment, Numbers, PhaseEnergy
from llm_carbon_meter.predictor.features import (
    EXPAND,
    DeploymentGraph,
    Inputs,
    neighbours,
    static_nodes,
)
from llm_carbon_meter.predictor.fitted_physics import FittedPhysics, seconds_and_energy, throttled
from llm_carbon_meter.predictor.measured_engines import engine_key
from llm_carbon_meter.records import MeterError

Floats = NDArray[np.float64]
Array = NDArray[Any]
"""Single precision inside the network, as it was trained."""

WEIGHTS: Final = "gnn.safetensors"
CARD: Final = "card.json"
ZERO: Final = np.zeros((), np.float32)
"""A third quicker in `np.maximum` than a plain 0."""


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
        constants = weights.physics.constants(
            deployment.engine, deployment.engine_version, deployment.gpu.name
        )
        self._rates, self._static = constants.rates, float(constants.static[0])
        self._num_gpus = deployment.num_gpus
        self._board_watts = deployment.gpu.board_watts * deployment.num_gpus
        network, model = weights.network, deployment.model
        linked = neighbours(model, deployment.num_gpus)
        fixed = static_nodes(model, deployment.num_gpus)
        kinds = fixed.shape[1]
        first = linked @ fixed @ network.neighbour_1[:kinds] + fixed @ network.own_1[:kinds]
        self._linked = linked.astype(np.float32)
        self._fixed = (first + network.bias_1)[:, None].astype(np.float32)
        changing = (EXPAND @ one[kinds:] for one in (network.neighbour_1, network.own_1))
        self._layer_1 = np.concatenate(tuple(changing)).astype(np.float32)
        self._layer_2 = np.concatenate((network.neighbour_2, network.own_2))
        self._linear_1, same = np.split(
            network.linear_1, [network.linear_1.shape[0] - self._graph.constants.shape[1]]
        )
        self._bias_1 = self._graph.constants @ same + network.linear_bias_1
        self.out_of_domain = _outside(weights, deployment)
        widening = weights.wider if self.out_of_domain else 1.0
        self.interval = exp(weights.low * widening), exp(weights.high * widening)

    def phases(
        self, concurrency: Numbers, prompt_tokens: Numbers, output_tokens: Numbers
    ) -> PhaseEnergy:
        """See `estimator.BoundModel`."""
        inputs = self._graph.inputs(concurrency, prompt_tokens, output_tokens)
        parts, residual = self._parts(inputs), self.residual(inputs)
        if isinstance(concurrency, float):  # plain numbers, ten times as quick as arrays of one
            (prefill, decode), (first, following) = parts[0].tolist(), residual[0].tolist()
        else:
            (prefill, decode), (first, following) = parts.transpose(1, 2, 0), residual.T
        steps, gate = output_tokens - 1.0, self._weights.gate
        prefill_s, prefill_energy = seconds_and_energy(self._static, *prefill)
        step_s, step_energy = seconds_and_energy(self._static, *decode)
        prefill_energy = prefill_energy * throttled(prefill_s, prefill_energy)
        step_energy = step_energy * throttled(step_s, step_energy)
        joules = self._board_watts / concurrency
        return PhaseEnergy(
            joules * prefill_energy * e ** (gate * first),
            joules * steps * step_energy * e ** (gate * following),
            (prefill_s + steps * step_s) * self._num_gpus / concurrency,
        )

    def _parts(self, inputs: Inputs) -> Floats:
        """What `fitted_physics.seconds_and_energy` takes of a step, shape (batches, 2, 4)."""
        return np.asarray((inputs.terms[..., None, :] @ self._rates)[..., 0, :])

    def residual(self, inputs: Inputs) -> Floats:
        """The network's correction, a logarithm; `network.PhaseNetwork` is the same in torch."""
        network, shape = self._weights.network, inputs.basis.shape
        basis = inputs.basis.reshape(shape[0], -1, shape[-1])
        hidden = self._sage(basis, self._layer_1, self._fixed)
        hidden = self._sage(hidden, self._layer_2, network.bias_2)
        pooled = np.einsum("kg,kgw->gw", basis[..., -1], hidden)
        joined = np.concatenate((pooled, inputs.described.reshape(len(pooled), -1)), 1)
        dense = joined.dot(self._linear_1).reshape(-1, *self._bias_1.shape)
        dense += self._bias_1
        output = np.maximum(dense, ZERO, out=dense).dot(network.linear_2)
        output += network.linear_bias_2
        return np.asarray(network.largest * np.tanh(output / network.largest))

    def _sage(self, nodes: Array, layer: Array, added: Array) -> Array:
        """Of the mean of the neighbours and the node itself: (kernels, graphs, width)."""
        kernels, graphs, inputs = nodes.shape
        both = np.empty((kernels, graphs, 2 * inputs), np.float32)
        both[..., :inputs] = self._linked.dot(nodes.reshape(kernels, -1)).reshape(nodes.shape)
        both[..., inputs:] = nodes
        hidden: Array = both.reshape(-1, 2 * inputs).dot(layer).reshape(kernels, graphs, -1)
        hidden += added
        np.maximum(hidden, ZERO, out=hidden)
        return hidden


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
