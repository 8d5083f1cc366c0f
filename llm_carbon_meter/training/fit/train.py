"""Fits the physics, then the network to what it leaves, and decides how far the network is trusted.

Everything is chosen on the training rows alone: the network's share of the prediction is what inner
cross-validation over architectures finds best.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_carbon_meter.predictor.fitted_physics import (
    ENGINE_FACTORS,
    GPU_FACTORS,
    TERMS,
    Constants,
    FittedPhysics,
    board_seconds,
    constants_of,
    phase_seconds,
)
from llm_carbon_meter.training.data.splits import dealt
from llm_carbon_meter.training.fit.examples import Examples
from llm_carbon_meter.training.fit.network import LARGEST, PhaseNetwork

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

SEED: Final = 0
PHYSICS_STEPS: Final = 250
PHYSICS_RATE: Final = 0.1
NOISE: Final = 0.13
"""Expected error of the physics, which sets how much the priors weigh."""
TIME_WEIGHT: Final = 0.3
"""Of an error in time against one in energy."""
EPOCHS: Final = 160
BATCH: Final = 128
RATE: Final = 3e-3
DECAY: Final = 1e-3
SHRINKAGE: Final = 0.1
"""Weight of the correction's own square: without evidence there is none."""
GATES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
INNER_FOLDS: Final = 3

# Priors of the logarithms: mean and standard deviation. From data sheets and common sense: nine
# tenths of the bandwidth, half of the peak, a static draw of a quarter of the board power. Those of
# products are narrow: whole requests hardly tell how fast or how hungry their prefill was, and free
# ones went beyond the peak and board power.
TIME_PRIOR: Final = {
    "weights": (1.3, 0.15),
    "expert_weights": (1.6, 0.3),
    "packed_weights": (0.5, 1.0),
    "fp8_weights": (0.3, 1.5),
    "fp8_expert_weights": (0.3, 1.5),
    "cache": (1.6, 0.4),
    "activations": (0.5, 1.0),
    "products": (1.6, 0.1),
    "expert_products": (2.0, 0.13),
    "attention": (3.0, 0.8),
    "vector": (1.0, 1.0),
    "network": (1.2, 0.3),
    "logits": (10.0, 1.0),
    "allreduces": (8.0, 1.0),
    "expert_layers": (20.0, 1.0),
    "fp8_expert_layers": (50.0, 1.5),
    "launches": (8.0, 1.0),
    "steps": (2000.0, 1.0),
    "sequence_steps": (20.0, 1.0),
}
ENERGY_PRIOR: Final = {
    "weights": (0.35, 0.4),
    "expert_weights": (0.4, 0.5),
    "packed_weights": (0.3, 1.0),
    "fp8_weights": (0.1, 1.5),
    "fp8_expert_weights": (0.1, 1.5),
    "cache": (0.5, 0.5),
    "activations": (0.3, 1.0),
    "products": (1.1, 0.1),
    "expert_products": (1.1, 0.13),
    "attention": (1.5, 0.8),
    "vector": (0.3, 1.0),
    "network": (0.1, 1.0),
    "logits": (3.0, 1.0),
}
NO_ENERGY: Final = 1e-6
"""Counts take time; what they draw is static."""
FACTOR_PRIOR: Final = {
    "weights": 0.2,
    "products": 0.1,
    "cache": 0.5,
    "launches": 0.7,
    "steps": 0.7,
    "sequence_steps": 0.7,
    "static": 0.2,
    "dynamic": 0.2,
}
GPU_PRIOR: Final = 0.15
STATIC_PRIOR: Final = (0.25, 0.4)
DECODE_PRIOR: Final = 0.5


@dataclass(frozen=True, slots=True)
class Trained:
    """A predictor."""

    physics: FittedPhysics
    network: PhaseNetwork
    gate: float

    def predict(self, data: Examples) -> Floats:
        """Joules per request, shape (n,)."""
        return np.exp(log_joules(data, self.physics, residuals(self.network, data) * self.gate))

    def without_network(self, data: Examples) -> Floats:
        """Joules per request by the physics alone."""
        return np.exp(log_joules(data, self.physics, np.zeros((len(data), 2))))


def log_joules(data: Examples, physics: FittedPhysics, residual: Floats) -> Floats:
    """Logarithm of joules per request, shape (n,), of residuals (n, 2)."""
    boards = board_seconds(_constants(physics, data), data.terms) * np.exp(residual)
    return np.asarray(np.log(boards.sum(-1) * data.board_joules))


def _constants(physics: FittedPhysics, data: Examples) -> Constants:
    """Each example's constants."""
    where = np.stack((data.engines, data.gpus), axis=1)
    pairs, places = np.unique(where, axis=0, return_inverse=True)
    constants = [physics.constants(*_split(str(engine)), str(gpu)) for engine, gpu in pairs]
    return Constants(*(np.stack(column)[places] for column in zip(*constants, strict=True)))


def _split(engine: str) -> tuple[str, str]:
    name, _, version = engine.partition(" ")
    return name, version


def residuals(network: PhaseNetwork, data: Examples) -> Floats:
    """The network's output, shape (n, phases)."""
    network.eval()
    with torch.no_grad():
        return np.asarray(network(*_inputs(data)).double().numpy())


def _inputs(data: Examples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = (data.nodes, data.linked, data.mask, data.described)
    nodes, linked, mask, described = (torch.from_numpy(array).float() for array in arrays)
    return nodes, linked, mask, described


# Physics


def fit_physics(data: Examples, steps: int = PHYSICS_STEPS) -> FittedPhysics:
    """The most probable constants: errors of energy and time, and the priors."""
    engines, engine = np.unique(data.engines, return_inverse=True)
    gpus, gpu = np.unique(data.gpus, return_inverse=True)
    deviates = torch.from_numpy(GPU_FACTORS)
    prior = _prior(len(engines), len(gpus))
    free = {name: mean.clone().requires_grad_() for name, (mean, _) in prior.items()}
    optimizer = torch.optim.Adam(list(free.values()), lr=PHYSICS_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PHYSICS_RATE, total_steps=steps)
    terms, weights = torch.from_numpy(data.terms), torch.from_numpy(data.weights)
    target = torch.from_numpy(np.log(data.joules / data.board_joules))
    timed = torch.from_numpy(~np.isnan(data.batch_seconds))
    seconds = torch.log(torch.from_numpy(data.batch_seconds)[timed])
    for _ in range(steps):
        optimizer.zero_grad()
        factors = free["engines"][engine] + free["gpus"][gpu][:, None] * deviates
        constants = constants_of(_Free(free), factors, torch)
        energy = torch.log(board_seconds(constants, terms).sum(-1)) - target
        time = torch.log(phase_seconds(constants, terms).sum(-1)[timed]) - seconds
        loss = (weights * _huber(energy)).sum() / NOISE**2
        loss = loss + TIME_WEIGHT * (weights[timed] * _huber(time)).sum() / NOISE**2
        for name, (mean, deviation) in prior.items():
            loss = loss + 0.5 * (((free[name] - mean) / deviation) ** 2).sum()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    fitted = {name: value.detach().numpy() for name, value in free.items()}
    return FittedPhysics(
        time=fitted["time"],
        energy=fitted["energy"],
        decode_time=float(fitted["decode"][0]),
        decode_energy=float(fitted["decode"][1]),
        static=float(fitted["decode"][2]),
        engines=dict(zip(engines.tolist(), fitted["engines"], strict=True)),
        gpus=dict(zip(gpus.tolist(), fitted["gpus"].tolist(), strict=True)),
    )


class _Free:
    """The free tensors under the names of `FittedPhysics`."""

    def __init__(self, free: dict[str, Tensor]) -> None:
        self.time, self.energy = free["time"], free["energy"]
        self.decode_time, self.decode_energy, self.static = free["decode"].unbind()


def _prior(engines: int, gpus: int) -> dict[str, tuple[Tensor, Tensor]]:
    time = np.array([TIME_PRIOR[term] for term in TERMS])
    energy = np.array([ENERGY_PRIOR.get(term, (NO_ENERGY, 1.0)) for term in TERMS])
    factors = np.array([FACTOR_PRIOR[name] for name in ENGINE_FACTORS])
    decode = np.array([(1.0, DECODE_PRIOR), (1.0, DECODE_PRIOR), STATIC_PRIOR])
    return {
        "time": _logarithm(time),
        "energy": _logarithm(energy),
        "decode": _logarithm(decode),
        "engines": (
            torch.zeros(engines, len(factors), dtype=torch.float64),
            torch.from_numpy(factors).expand(engines, -1),
        ),
        "gpus": (torch.zeros(gpus, dtype=torch.float64), torch.tensor(GPU_PRIOR)),
    }


def _logarithm(prior: Floats) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.log(prior[:, 0])), torch.from_numpy(prior[:, 1].copy())


def _huber(error: Tensor, bend: float = 0.15) -> Tensor:
    """Half the square near 0, a straight line beyond."""
    size = error.abs()
    return torch.where(size < bend, size**2 / 2, bend * (size - bend / 2))


# Network


def fit_network(
    data: Examples,
    base: Floats,
    seed: int = SEED,
    largest: float = LARGEST,
    shrinkage: float = SHRINKAGE,
    epochs: int = EPOCHS,
) -> PhaseNetwork:
    """Train on the logarithm of measured / base.

    Args:
        data: the examples.
        base: joules per request that the network corrects, by phase; shape (n, phases).
        seed: of weights and order.
        largest: bound of the correction.
        shrinkage: weight of the correction's own square.
        epochs: passes over the examples.
    """
    torch.manual_seed(seed)
    network = PhaseNetwork(largest=largest)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    rounds = epochs * -(-len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=rounds)
    inputs, weights = _inputs(data), torch.from_numpy(data.weights).float()
    start, target = torch.from_numpy(base).float(), torch.from_numpy(np.log(data.joules)).float()
    network.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(data)), BATCH):
            output = network(*(tensor[batch] for tensor in inputs))
            error = torch.log((start[batch] * torch.exp(output)).sum(-1)) - target[batch]
            loss = (weights[batch] * _huber(error, 0.1)).sum() / weights[batch].sum()
            loss = loss + shrinkage * (output**2).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network


def phase_joules(data: Examples, physics: FittedPhysics) -> Floats:
    """Joules per request and phase by the physics, shape (n, 2)."""
    boards = board_seconds(_constants(physics, data), data.terms)
    return np.asarray(boards * data.board_joules[:, None])


# Both


def fit(data: Examples, gate: float, seed: int = SEED) -> Trained:
    """Physics, and the network on what it leaves, of which a share counts.

    Args:
        data: the training examples.
        gate: the network's share.
        seed: of the network.
    """
    physics = fit_physics(data)
    return Trained(physics, fit_network(data, phase_joules(data, physics), seed), gate)


def choose_gate(data: Examples, groups: Sequence[str], seed: int = SEED) -> float:
    """The share of the network's correction with the least error on architectures held out.

    Args:
        data: the training examples.
        groups: architecture of each.
        seed: of the networks.
    """
    errors = np.zeros(len(GATES))
    for inside, outside in group_folds(groups, data.weights, INNER_FOLDS):
        whole, rest = fit(data.of(inside), 1.0, seed), data.of(outside)
        for place, gate in enumerate(GATES):
            error = replace(whole, gate=gate).predict(rest) / rest.joules - 1
            errors[place] += (rest.weights * abs(error)).sum()
    return GATES[int(errors.argmin())]


def group_folds(groups: Sequence[str], weights: Floats, folds: int) -> list[tuple[Places, Places]]:
    """Inside and outside of each fold of whole groups."""
    fold = dealt(groups, weights.tolist(), folds)
    return [
        (np.flatnonzero(fold != number), np.flatnonzero(fold == number))
        for number in np.unique(fold)
    ]
