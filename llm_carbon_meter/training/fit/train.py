"""Fits the step law, then the network that corrects its rates, and how far that is trusted.

Everything is chosen on the training rows alone: the network's share of the correction is what inner
cross-validation over architectures finds best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_carbon_meter.predictor.fitted_physics import (
    ENGINE_SPREAD,
    GPU_SPREAD,
    KERNEL_SPREAD,
    FittedPhysics,
    Prior,
    by_factor,
)
from llm_carbon_meter.predictor.gnn import CORRECTION
from llm_carbon_meter.predictor.measured_engines import expected_factors
from llm_carbon_meter.predictor.posterior import NUDGE
from llm_carbon_meter.predictor.step_law import (
    COUNTS,
    FACTORS,
    TERMS,
    Constants,
    Spent,
    constants_of,
    spent,
)
from llm_carbon_meter.training.data.splits import dealt
from llm_carbon_meter.training.fit.examples import Examples
from llm_carbon_meter.training.fit.kernel_rates import NO_RATES, KernelRates
from llm_carbon_meter.training.fit.network import Ensemble, RateNetwork

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

SEED: Final = 0
PHYSICS_STEPS: Final = 300
PHYSICS_RATE: Final = 0.1
NOISE: Final = 0.2
"""Expected error of the law on a row; rows of a deployment err together, so that it is large."""
TIME_WEIGHT: Final = 0.3
"""Of an error in time against one in energy."""
EPOCHS: Final = 150
MEMBERS: Final = 3
"""Networks of an ensemble."""
RATE: Final = 3e-3
DECAY: Final = 1e-2
SHRINKAGE: Final = 2e-3
"""Weight of the correction's own square: without evidence there is none."""
GATES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
INNER_FOLDS: Final = 3

# Priors of the logarithms: mean and standard deviation, per second at the data sheet's rates or per
# count. Kernel tables, where there are some, give the means of the terms that they tell.
TIME_PRIOR: Final[Mapping[str, tuple[float, float]]] = {
    "weights": (1.1, 0.08),
    "expert_weights": (1.1, 0.15),
    "packed_weights": (0.5, 1.0),
    "fp8_weights": (0.3, 1.0),
    "fp8_expert_weights": (0.3, 1.0),
    "cache": (1.2, 0.15),
    "repeated_cache": (1.2, 0.3),
    "activations": (1.5, 0.25),
    "products": (1.2, 0.1),
    "expert_products": (2.4, 0.3),
    "attention": (1.8, 0.2),
    "vector": (1.5, 0.7),
    "network": (1.2, 0.3),
    "logits": (4.0, 0.7),
    "allreduces": (8.0, 1.0),
    "expert_layers": (50.0, 0.5),
    "block_scaled_layers": (50.0, 1.0),
    "launches": (8.0, 0.5),
    "int8_layers": (20.0, 1.0),
    "nf4_layers": (20.0, 1.0),
    "steps": (1000.0, 0.7),
    "sequence_steps": (20.0, 0.4),
}
ENERGY_PRIOR: Final[Mapping[str, tuple[float, float]]] = {
    "weights": (0.6, 0.3),
    "expert_weights": (0.6, 0.4),
    "packed_weights": (0.3, 1.0),
    "fp8_weights": (0.1, 1.0),
    "fp8_expert_weights": (0.1, 1.0),
    "cache": (0.6, 0.3),
    "repeated_cache": (0.6, 0.3),
    "activations": (0.6, 0.5),
    "products": (0.8, 0.2),
    "expert_products": (0.8, 0.25),
    "attention": (0.8, 0.5),
    "vector": (0.5, 0.7),
    "network": (0.1, 1.0),
    "logits": (1.0, 0.5),
}
"""Per board watt, beyond static and active power."""
NO_ENERGY: Final = (1e-6, 1e-3)
"""Counts take time; what they draw is static or active power."""
STATIC_PRIOR: Final = (0.2, 0.3)
ACTIVE_PRIOR: Final = (0.25, 0.5)


@dataclass(frozen=True, slots=True)
class Trained:
    """A predictor."""

    physics: FittedPhysics
    network: Ensemble
    gate: float

    def predict(self, data: Examples) -> Floats:
        """Joules per request, shape (n,)."""
        return joules(data, self.physics, self.factors(data))

    def factors(self, data: Examples) -> Floats:
        """Logarithms of each example's factors, shape (n, factors)."""
        moved = self.gate * corrections(self.network, data) if self.gate else 0.0
        return np.asarray(prior_factors(data, self.physics) + moved)


def joules(data: Examples, physics: FittedPhysics, factors: Floats) -> Floats:
    """Joules per request, shape (n,), of logarithms of factors, shape (n, factors)."""
    return np.asarray(phases(data, physics, factors).boards.sum(-1) * data.board_joules)


def phases(data: Examples, physics: FittedPhysics, factors: Floats) -> Spent:
    """Seconds and board-seconds of a batch's prefill and decode, shapes (n, 2)."""
    return spent(constants_of(physics, factors, np), data.terms)


def prior_factors(data: Examples, physics: FittedPhysics) -> Floats:
    """What engines and GPUs say of each example's factors, shape (n, factors)."""
    priors, places = priors_of(data, physics)
    return np.stack([prior.mean for prior in priors])[places]


def priors_of(data: Examples, physics: FittedPhysics) -> tuple[Sequence[Prior], Places]:
    """The priors of all engines on GPUs, and that of each example."""
    where = np.stack((data.engines, data.gpus), axis=1)
    pairs, places = np.unique(where, axis=0, return_inverse=True)
    priors = [physics.prior(*_split(str(engine)), str(gpu)) for engine, gpu in pairs]
    return priors, places.reshape(-1)


def prior_variance(data: Examples, physics: FittedPhysics, factors: Floats) -> Floats:
    """Variance of each example's ln(joules) that the spread of its factors gives, shape (n,)."""
    priors, places = priors_of(data, physics)
    logs = np.log(joules(data, physics, factors))
    nudged = [joules(data, physics, factors + step) for step in NUDGE * np.eye(len(FACTORS))]
    slopes = (np.log(nudged) - logs) / NUDGE
    covariances = np.stack([prior.covariance for prior in priors])[places]
    return np.asarray(np.einsum("fn,nfg,gn->n", slopes, covariances, slopes))


def _split(engine: str) -> tuple[str, str]:
    name, _, version = engine.partition(" ")
    return name, version


# Physics


def fit_physics(
    data: Examples, rates: KernelRates = NO_RATES, steps: int = PHYSICS_STEPS
) -> FittedPhysics:
    """The most probable constants: errors of energy and time, and the priors."""
    engines, engine = np.unique(data.engines, return_inverse=True)
    gpus, gpu = np.unique(data.gpus, return_inverse=True)
    priors = _priors(engines.tolist(), gpus.tolist(), rates)
    spread = {name: torch.from_numpy(deviation) for name, (_, deviation) in priors.items()}
    mean = {name: torch.from_numpy(middle) for name, (middle, _) in priors.items()}
    away = {name: torch.zeros_like(middle, requires_grad=True) for name, middle in mean.items()}
    optimizer = torch.optim.Adam(list(away.values()), lr=PHYSICS_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PHYSICS_RATE, total_steps=steps)
    measured = _Measured(data)
    for _ in range(steps):
        optimizer.zero_grad()
        free = {name: mean[name] + away[name] * spread[name] for name in mean}
        factors = free["engines"][engine] + free["gpus"][gpu]
        loss = measured.loss(constants_of(_Free(free), factors, torch), bend=0.15) / NOISE**2
        loss = loss + sum(0.5 * (place**2).sum() for place in away.values())
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    fitted = {name: (mean[name] + away[name] * spread[name]).detach().numpy() for name in mean}
    static, active = fitted["power"].tolist()
    return FittedPhysics(
        time=fitted["time"],
        energy=fitted["energy"],
        static=static,
        active=active,
        engines=dict(zip(engines.tolist(), fitted["engines"], strict=True)),
        gpus=dict(zip(gpus.tolist(), fitted["gpus"], strict=True)),
        kernels={name: _kernel_factors(name, rates) for name in rates.gpus},
    )


class _Measured:
    """What the law is held against."""

    def __init__(self, data: Examples) -> None:
        self._terms, self._weights = torch.from_numpy(data.terms), torch.from_numpy(data.weights)
        self._boards = torch.from_numpy(np.log(data.joules / data.board_joules))
        self._timed = torch.from_numpy(~np.isnan(data.batch_seconds))
        self._seconds = torch.log(torch.from_numpy(data.batch_seconds))

    @property
    def weight(self) -> float:
        """Of all rows."""
        return float(self._weights.sum())

    def loss(self, constants: Constants, bend: float) -> Tensor:
        """Weighted sum of the rows' errors in energy and, where it was measured, in time."""
        seconds, boards = spent(constants, self._terms)
        energy = _huber(torch.log(boards.sum(-1)) - self._boards, bend)
        time = _huber((torch.log(seconds.sum(-1)) - self._seconds)[self._timed], bend)
        weights = self._weights
        return Tensor((weights * energy).sum() + TIME_WEIGHT * (weights[self._timed] * time).sum())


class _Free:
    """The free tensors under the names of `FittedPhysics`."""

    def __init__(self, free: dict[str, Tensor]) -> None:
        self.time, self.energy = free["time"], free["energy"]
        self.static, self.active = free["power"].unbind()


def _priors(
    engines: Sequence[str], gpus: Sequence[str], rates: KernelRates
) -> dict[str, tuple[Floats, Floats]]:
    """Mean and standard deviation of everything that is fitted."""
    time = np.array([TIME_PRIOR[term] for term in TERMS])
    time[:, 0] = [rates.mean(term) or TIME_PRIOR[term][0] for term in TERMS]
    energy = np.array([NO_ENERGY if term in COUNTS else ENERGY_PRIOR[term] for term in TERMS])
    power = np.array([STATIC_PRIOR, ACTIVE_PRIOR])
    expected = np.array([by_factor(expected_factors(*_split(engine))) for engine in engines])
    tables = np.array([_kernel_factors(gpu, rates) for gpu in gpus])
    spreads = [KERNEL_SPREAD if table.any() else GPU_SPREAD for table in tables]
    return {
        "time": (np.log(time[:, 0]), time[:, 1]),
        "energy": (np.log(energy[:, 0]), energy[:, 1]),
        "power": (np.log(power[:, 0]), power[:, 1]),
        "engines": (expected, np.tile(ENGINE_SPREAD, (len(engines), 1))),
        "gpus": (tables, np.array(spreads)),
    }


def _kernel_factors(gpu: str, rates: KernelRates) -> Floats:
    """What a GPU's measured kernels say of its factors; 0 where there are none."""
    deviations = {term: rates.deviation(gpu, term) for term in ("weights", "products")}
    return by_factor({term: value for term, value in deviations.items() if value is not None})


def _huber(error: Tensor, bend: float) -> Tensor:
    """Half the square near 0, a straight line beyond."""
    size = error.abs()
    return torch.where(size < bend, size**2 / 2, bend * (size - bend / 2))


# Network


def fit_network(
    data: Examples,
    physics: FittedPhysics,
    seed: int = SEED,
    epochs: int = EPOCHS,
    members: int = MEMBERS,
) -> Ensemble:
    """Train the corrections of the deployments' factors, all rows at once.

    Args:
        data: the examples.
        physics: that the network corrects.
        seed: of the weights.
        epochs: passes over the examples.
        members: networks, each from weights of its own.
    """
    seeds = range(seed * members, (seed + 1) * members)
    return Ensemble([_fit_member(data, physics, one, epochs) for one in seeds])


def _fit_member(data: Examples, physics: FittedPhysics, seed: int, epochs: int) -> RateNetwork:
    torch.manual_seed(seed)
    network = RateNetwork().double()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs)
    inputs, deployment = _deployments(data)
    expected = torch.from_numpy(prior_factors(data, physics))
    fixed, unit = _Fixed(physics), torch.from_numpy(CORRECTION)
    measured = _Measured(data)
    network.standardise(inputs[0], inputs[2], inputs[3])
    network.train()
    for _ in range(epochs):
        output = network(*inputs)
        constants = constants_of(fixed, expected + (output * unit)[deployment], torch)
        loss = measured.loss(constants, bend=0.1) / measured.weight
        loss = loss + SHRINKAGE * (output**2).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return network


class _Fixed:
    """Fitted physics as tensors."""

    def __init__(self, physics: FittedPhysics) -> None:
        self.time, self.energy = torch.from_numpy(physics.time), torch.from_numpy(physics.energy)
        self.static, self.active = physics.static, physics.active


def _deployments(data: Examples) -> tuple[tuple[Tensor, ...], Places]:
    """The network's inputs of every deployment once, and the deployment of each example."""
    _, first, deployment = np.unique(data.deployments, return_index=True, return_inverse=True)
    arrays = (data.reference_nodes, data.linked, data.mask, data.reference_described)
    return tuple(torch.from_numpy(array[first]) for array in arrays), deployment


def corrections(network: Ensemble, data: Examples) -> Floats:
    """By how much the network moves the logarithm of each factor, shape (n, factors)."""
    inputs, deployment = _deployments(data)
    network.eval()
    with torch.no_grad():
        return np.asarray(network(*inputs).numpy()[deployment] * CORRECTION)


# Both


def fit(data: Examples, gate: float, seed: int = SEED, rates: KernelRates = NO_RATES) -> Trained:
    """Physics, and the network on what it leaves, of which a share counts.

    Args:
        data: the training examples.
        gate: the network's share.
        seed: of the network.
        rates: of measured kernels.
    """
    physics = fit_physics(data, rates)
    return Trained(physics, fit_network(data, physics, seed), gate)


def choose_gate(
    data: Examples, groups: Sequence[str], seed: int = SEED, rates: KernelRates = NO_RATES
) -> float:
    """The share of the network's correction with the least error on groups held out.

    Args:
        data: the training examples.
        groups: architecture of each, or what else a test will hold out.
        seed: of the networks.
        rates: of measured kernels.
    """
    return GATES[int(gate_errors(data, groups, seed, rates).argmin())]


def gate_errors(data: Examples, groups: Sequence[str], seed: int, rates: KernelRates) -> Floats:
    """Summed errors of the groups held out in turn, shape (gates,); arguments as `choose_gate`."""
    errors = np.zeros(len(GATES))
    for inside, outside in group_folds(groups, data.weights, INNER_FOLDS):
        whole, rest = fit(data.of(inside), 1.0, seed, rates), data.of(outside)
        for place, gate in enumerate(GATES):
            error = replace(whole, gate=gate).predict(rest) / rest.joules - 1
            errors[place] += (rest.weights * abs(error)).sum()
    return errors


def group_folds(groups: Sequence[str], weights: Floats, folds: int) -> list[tuple[Places, Places]]:
    """Inside and outside of each fold of whole groups."""
    fold = dealt(groups, weights.tolist(), folds)
    return [
        (np.flatnonzero(fold != number), np.flatnonzero(fold == number))
        for number in np.unique(fold)
    ]
