"""The shipped predictor: a step law whose rates the network corrects, served in numpy.

The network sees the deployment: its kernels as a graph, at some reference loads. A request's own
lengths and company enter through the law, so that no correction can make a longer request cheaper.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from llm_carbon_meter.physics.model_specs import in_16_bits
from llm_carbon_meter.physics.phases import PLAIN, SUMS, Serving, mean_steps, num_steps
from llm_carbon_meter.predictor.energy_model import Deployment, Numbers, PhaseEnergy
from llm_carbon_meter.predictor.features import SHARES, DeploymentGraph, ReferenceGraph, neighbours
from llm_carbon_meter.predictor.fitted_physics import (
    FORMAT_SPREAD,
    FittedPhysics,
    Prior,
    by_factor,
    limit_spread,
)
from llm_carbon_meter.predictor.measured_engines import engine_key, is_measured
from llm_carbon_meter.predictor.posterior import ENERGY_NOISE, NUDGE, SECONDS_NOISE
from llm_carbon_meter.predictor.step_law import (
    FACTORS,
    Constants,
    Spent,
    constants_of,
    spent,
    term_matrix,
)
from llm_carbon_meter.records import DeploymentFactors, MeterError

Floats = NDArray[np.float64]

WEIGHTS: Final = "gnn.safetensors"
CARD: Final = "card.json"
LARGEST: Final = 2.0
"""Bound of the network's output: it corrects a factor by no more than so many of these units."""
CORRECTION: Final = by_factor(
    {
        **{"weights": 0.22, "products": 0.3, "static": 0.22, "dynamic": 0.22},
        **dict.fromkeys(("cache", "launches", "steps", "sequence_steps"), 0.45),
    }
)
"""Unit of each factor's logarithm."""
Z_80: Final = 1.2816
"""Standard deviations that hold 80 % of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Network:
    """Weights of `network.RateNetwork`."""

    neighbour_1: Floats
    """Shape (inputs, width), as all matrices here."""
    own_1: Floats
    bias_1: Floats
    neighbour_2: Floats
    own_2: Floats
    bias_2: Floats
    linear_1: Floats
    linear_bias_1: Floats
    linear_2: Floats
    linear_bias_2: Floats
    nodes_middle: Floats
    """By which features are moved before they are divided by their scale."""
    nodes_scale: Floats
    described_middle: Floats
    described_scale: Floats

    @classmethod
    def of(cls, state: Mapping[str, Any], member: int) -> "Network":
        """One of an ensemble, from the state of the torch module."""
        prefix = f"members.{member}."
        arrays = {
            name.removeprefix(prefix): np.asarray(value, np.float64)
            for name, value in state.items()
            if name.startswith(prefix)
        }
        return cls(
            arrays["sage_1.lin_rel.weight"].T,
            arrays["sage_1.lin_root.weight"].T,
            arrays["sage_1.lin_root.bias"],
            arrays["sage_2.lin_rel.weight"].T,
            arrays["sage_2.lin_root.weight"].T,
            arrays["sage_2.lin_root.bias"],
            arrays["linear_1.weight"].T,
            arrays["linear_1.bias"],
            arrays["linear_2.weight"].T,
            arrays["linear_2.bias"],
            arrays["nodes_middle"],
            arrays["nodes_scale"],
            arrays["described_middle"],
            arrays["described_scale"],
        )

    def corrections(self, graph: ReferenceGraph, linked: Floats) -> Floats:
        """Logarithms by which the network moves a deployment's `FACTORS`, shape (factors,)."""
        hidden = (graph.nodes - self.nodes_middle) / self.nodes_scale
        for neighbour, own, bias in (
            (self.neighbour_1, self.own_1, self.bias_1),
            (self.neighbour_2, self.own_2, self.bias_2),
        ):
            hidden = np.maximum(linked @ hidden @ neighbour + hidden @ own + bias, 0.0)
        pooled = graph.nodes[:, SHARES].mean(1) @ hidden
        around = (graph.described - self.described_middle) / self.described_scale
        joined = np.concatenate((pooled, around))
        dense = np.maximum(joined @ self.linear_1 + self.linear_bias_1, 0.0)
        output = dense @ self.linear_2 + self.linear_bias_2
        return np.asarray(LARGEST * np.tanh(output / LARGEST) * CORRECTION)


@dataclass(frozen=True, slots=True)
class Gates:
    """Share of the network's correction that inner cross-validation found best."""

    measured: float
    """On GPUs and engines that were measured."""
    elsewhere: float


@dataclass(frozen=True, slots=True)
class Widths:
    """How much wider measurements spread around the law than the priors of its factors say."""

    measured: float
    """Multiple of the prior's standard deviation that held-out architectures have."""
    engine: float
    """Likewise, of held-out engines."""
    gpu: float

    def of(self, *, engine: bool, gpu: bool) -> float:
        """The multiple for a deployment of which these are new."""
        news = [self.gpu] * gpu + [self.engine] * engine
        return max(news) if news else self.measured


@dataclass(frozen=True, slots=True)
class Weights:
    """Everything that training leaves behind."""

    physics: FittedPhysics
    networks: tuple[Network, ...]
    """Whose mean counts."""
    gates: Gates
    widths: Widths
    formats: frozenset[str]
    """`ModelSpec.number_format` of all that was measured."""
    checksum: str = ""
    """Of the file; empty for weights that are in none."""

    def knows_engine(self, deployment: Deployment) -> bool:
        """Whether the deployment's engine was measured."""
        engines = tuple(self.physics.engines)
        return is_measured(deployment.engine, deployment.engine_version, engines)

    def knows_gpu(self, deployment: Deployment) -> bool:
        """Whether requests were measured on the deployment's GPU."""
        return deployment.gpu.name in self.physics.gpus

    def saw_gpu(self, deployment: Deployment) -> bool:
        """Whether it was measured at the power limit that it has there."""
        return self.knows_gpu(deployment) and not deployment.gpu.is_limited

    def prior(self, deployment: Deployment) -> Prior:
        """What is expected of a deployment's factors: kin, and what the network sees in it.

        Where the network's correction is not trusted, it may still be right: the spread says so.
        """
        kin = self.physics.prior(deployment.engine, deployment.engine_version, deployment.gpu.name)
        new_engine, new_gpu = not self.knows_engine(deployment), not self.knows_gpu(deployment)
        gate = self.gates.elsewhere if new_engine or new_gpu else self.gates.measured
        correction = self._correction(deployment)
        wider = self.widths.of(engine=new_engine, gpu=new_gpu)
        untrusted = (self.gates.measured - gate) * correction
        covariance = wider**2 * kin.covariance + np.outer(untrusted, untrusted)
        if deployment.model.number_format not in self.formats:
            covariance = covariance + np.diag(FORMAT_SPREAD**2)
        covariance = covariance + np.diag(limit_spread(deployment.gpu) ** 2)
        return Prior(kin.mean + gate * correction, covariance)

    def _correction(self, deployment: Deployment) -> Floats:
        """The networks' mean; they see a number format that they do not know as 16 bits."""
        if deployment.model.number_format not in self.formats:
            deployment = replace(deployment, model=in_16_bits(deployment.model))
        graph = DeploymentGraph.of(deployment).reference()
        linked = neighbours(deployment.model, deployment.num_gpus)
        said = [one.corrections(graph, linked) for one in self.networks]
        return np.asarray(np.mean(said, axis=0))


class Batches(NamedTuple):
    """Time and energy of batches of equal requests that share the GPUs, shapes (batches,)."""

    prefill_s: Floats
    """Of all prompts of the batch together."""
    decode_s: Floats
    """Of all decode steps, one after the other."""
    decode_step_s: Floats
    """Of the mean decode step."""
    joules: Floats
    """Of the batch, all GPUs of the group together."""
    time_width: Floats
    """ln(seconds that 90 % of measurements stay below / these); 10 % likewise."""
    energy_width: Floats
    """Likewise of the joules."""


class GnnModel:
    """`energy_model.EnergyModel` of trained weights.

    Args:
        weights: of the package, unless given.
    """

    name = "gnn"
    facility = False

    def __init__(self, weights: Weights | None = None) -> None:
        self.weights = weights or shipped_weights()

    def bind(self, deployment: Deployment) -> "BoundGnn":
        """Prepare everything that depends on the deployment alone.

        Raises:
            SpecError: heads that cannot be divided among the GPUs.
        """
        return BoundGnn(self.weights, deployment)


class BoundGnn:
    """The predictor on one deployment: its step law, with the factors that are expected of it."""

    def __init__(self, weights: Weights, deployment: Deployment) -> None:
        self._physics = weights.physics.at_limit(deployment.gpu)
        self._model, self._num_gpus = deployment.model, deployment.num_gpus
        self._budget = deployment.max_num_batched_tokens
        self._limit_watts = deployment.gpu.limit_watts * deployment.num_gpus
        matrix = term_matrix(
            deployment.model, deployment.gpu, deployment.num_gpus, deployment.engine
        )
        self._terms = np.ascontiguousarray(matrix.T)
        self.prior = weights.prior(deployment)
        self.out_of_domain = _outside(weights, deployment)
        self.measured = weights.knows_engine(deployment) and weights.saw_gpu(deployment)
        self._take(self.prior)

    def adopt(self, factors: DeploymentFactors) -> None:
        """See `energy_model.BoundModel`."""
        self._take(Prior(np.array(factors.mean), np.array(factors.covariance)))

    def _take(self, factors: Prior) -> None:
        nudged = factors.mean + NUDGE * np.eye(len(FACTORS))
        sets = np.stack((factors.mean, self.prior.mean, *nudged))
        laws = constants_of(self._physics, sets, np)
        self._laws = Constants(*(part[:, None] for part in laws))
        self._covariance = factors.covariance

    def phases(
        self,
        concurrency: Numbers,
        prompt_tokens: Numbers,
        output_tokens: Numbers,
        serving: Serving = PLAIN,
    ) -> PhaseEnergy:
        """See `energy_model.BoundModel`."""
        step, steps = self._steps(concurrency, prompt_tokens, output_tokens, serving)
        seconds, boards = (step.seconds[0] * steps).sum(-1), step.boards * steps
        totals = boards.sum(-1)
        joules = self._limit_watts / concurrency
        figures = (
            joules * boards[0, :, 0],
            joules * boards[0, :, 1],
            seconds * self._num_gpus / concurrency,
            self._width(totals, ENERGY_NOISE),
            totals[0] / totals[1],
        )
        if isinstance(concurrency, float):
            return PhaseEnergy(*(float(column[0]) for column in figures))
        return PhaseEnergy(*figures)

    def batches(self, concurrency: Floats, prompt_tokens: Floats, output_tokens: Floats) -> Batches:
        """Time and energy of whole batches; arguments as of `phases`, each of shape (batches,)."""
        step, steps = self._steps(concurrency, prompt_tokens, output_tokens, PLAIN)
        seconds, boards = step.seconds * steps, (step.boards * steps).sum(-1)
        return Batches(
            seconds[0, :, 0],
            seconds[0, :, 1],
            step.seconds[0, :, 1],
            self._limit_watts * boards[0],
            self._width(seconds.sum(-1), SECONDS_NOISE),
            self._width(boards, ENERGY_NOISE),
        )

    def _steps(
        self, concurrency: Numbers, prompt: Numbers, output: Numbers, serving: Serving
    ) -> tuple[Spent, Floats]:
        """The mean step of each phase by each law, shapes (laws, batches, phases), and how many."""
        batch = (concurrency, prompt, output, serving._replace(budget=self._budget))
        sums, steps = np.array(mean_steps(self._model, *batch)), np.array(num_steps(*batch)).T
        # (phases, sums, batches) -> (batches, phases, terms)
        terms = sums.reshape(2, len(SUMS), -1).transpose(2, 0, 1) @ self._terms
        return spent(self._laws, terms), steps

    def _width(self, totals: Floats, noise: float) -> Floats:
        """ln(90 % quantile / figure) of what each law gives, shape (laws, batches)."""
        slopes = np.log(totals[2:] / totals[0]) / NUDGE
        variance = (self._covariance @ slopes * slopes).sum(0)
        return np.asarray(Z_80 * np.sqrt(variance + noise**2))


def _outside(weights: Weights, deployment: Deployment) -> str:
    """What of a deployment was not among the measurements; empty where all was."""
    engine = engine_key(deployment.engine, deployment.engine_version) or "unknown"
    reasons = [
        deployment.model.approximation,
        deployment.gpu.approximation,
        "" if weights.saw_gpu(deployment) else f"GPU {deployment.gpu.label} not measured",
        "" if weights.knows_engine(deployment) else f"engine {engine} not measured",
        f"{deployment.model.number_format} not measured"
        if deployment.model.number_format not in weights.formats
        else "",
    ]
    return "; ".join(filter(None, reasons))


def weights_of(tensors: Mapping[str, Any], card: Mapping[str, Any]) -> Weights:
    """From the tensors of the file and its card."""
    physics = {
        name.removeprefix("physics."): np.asarray(value, np.float64)
        for name, value in tensors.items()
        if name.startswith("physics.")
    }
    static, active = physics["power"].tolist()
    fitted = FittedPhysics(
        time=physics["time"],
        energy=physics["energy"],
        static=static,
        active=active,
        engines=dict(zip(card["engines"], physics["engines"], strict=True)),
        gpus=dict(zip(card["gpus"], physics["gpus"], strict=True)),
        kernels=dict(zip(card["kernels"], physics["kernels"], strict=True)),
    )
    return Weights(
        physics=fitted,
        networks=tuple(Network.of(tensors, member) for member in range(_members(tensors))),
        gates=Gates(**card["gates"]),
        widths=Widths(**card["widths"]),
        formats=frozenset(card["formats"]),
        checksum=card["sha256"],
    )


def _members(tensors: Mapping[str, Any]) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith("members.")})


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
        checksum = hashlib.sha256(data).hexdigest()
        if checksum != card["sha256"]:
            raise ValueError(
                f"its checksum is {checksum[:12]}…, the card says {card['sha256'][:12]}…"
            )
        return weights_of(load(data), card)
    except (ValueError, KeyError, TypeError) as error:
        raise MeterError(f"{WEIGHTS} cannot be used: {error}; install the package again") from error
