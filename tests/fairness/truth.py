"""What a step truly costs, and what each of its requests truly caused: not the attributor's model.

Time is a smooth maximum of compute and memory time, block by block, plus launch gaps; power
saturates at the board's limit. The cause is the Shapley value of that cost, by permutations.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.physics.gpu_specs import GpuSpec, gpu_spec
from llm_carbon_meter.physics.kernels import StepCosts, context_sum, step_costs, windowed_sum
from llm_carbon_meter.physics.model_list import built_in_model

from .ranges import World

Floats = npt.NDArray[np.float64]

ORDERS: Final = 32
"""In which the requests of a step join, at least, in each half of the sample: see `orders`."""
TURNS: Final = 4
"""Of each permutation."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(80)
NODES, WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
"""Exact for polynomials of degree 159."""


class RooflineWork(NamedTuple):
    """What requests bring to a step; every column adds up over them, shapes alike."""

    requests: Floats
    tokens: Floats
    attention_ops: Floats
    kv_bytes: Floats
    sampled: Floats

    def total(self) -> "RooflineWork":
        """Of all requests together."""
        return RooflineWork(*(column.sum(axis=-1) for column in self))


@dataclass(frozen=True)
class RooflineGpu:
    """One GPU of the group as it really is."""

    sheet: GpuSpec
    costs: StepCosts
    world: World

    @classmethod
    def of(cls, world: World) -> "RooflineGpu":
        """The GPU of a world of `ranges.RANGES`."""
        costs = step_costs(built_in_model(world.model), world.tensor_parallel)
        return cls(gpu_spec(world.gpu), costs, world)

    @property
    def idle_watts(self) -> float:
        """Without any work."""
        return self.sheet.idle_watts * self.world.values["idle_ratio"]

    @property
    def awake_watts(self) -> float:
        """Drawn by a step on top of idle, whatever it does."""
        dynamic = self.sheet.board_watts - self.sheet.idle_watts
        return dynamic * self.world.values["awake_share"]

    def work(self, new: Floats, cached: Floats, sampled: Floats) -> RooflineWork:
        """One column entry per request [q_r, k_r, n_s]."""
        costs = self.costs
        attention = costs.ops_per_context * context_sum(new, cached)
        kv = costs.bytes_per_kv * (cached + new)
        if costs.sliding_window:
            window = costs.sliding_window
            attention += costs.ops_per_windowed_context * windowed_sum(new, cached, window)
            kv += costs.bytes_per_windowed_kv * np.minimum(cached + new, window + new - 1)
        return RooflineWork(np.ones_like(new), new, attention, kv, sampled)

    def cost(self, work: RooflineWork) -> tuple[Floats, Floats]:
        """Seconds and joules of steps in which exactly this work is done; nothing costs nothing."""
        values, costs = self.world.values, self.costs
        compute = self.sheet.compute_ops_per_s
        memory = self.sheet.bandwidth_bytes_per_s * values["bandwidth_efficiency"]
        runs, samples = work.requests > 0, work.sampled > 0
        moved = costs.weight_bytes * runs + costs.bytes_per_token * work.tokens
        if costs.num_experts:
            moved = moved + costs.expert_bytes * costs.touched_experts(work.tokens)
        head = costs.head_bytes * samples + costs.bytes_per_sample * work.sampled
        linear_s = costs.ops_per_token * work.tokens / (compute * values["compute_efficiency"])
        attention_s = work.attention_ops / (compute * values["attention_efficiency"])
        head_s = costs.ops_per_sample * work.sampled / (compute * values["compute_efficiency"])
        kv_s = work.kv_bytes / (memory * values["kv_bandwidth_efficiency"])
        exponent = self.world.sharpness
        busy_s = (
            either(linear_s, moved / memory, exponent)
            + either(attention_s, kv_s, exponent)
            + either(head_s, head / memory, exponent)
        )
        launch_s = values["launch_s"] * runs + values["launch_per_request_s"] * work.requests
        seconds = busy_s + launch_s
        joules = (self.idle_watts + self.awake_watts) * seconds
        room_watts = max(self.sheet.board_watts - self.idle_watts - self.awake_watts, 0.0)
        spent = values["compute_power_share"] * (linear_s + attention_s + head_s)
        spent = spent + values["memory_power_share"] * ((moved + head) / memory + kv_s)
        bent = below(spent / np.maximum(busy_s, 1e-12), self.world.saturation)
        return seconds, joules + room_watts * bent * busy_s

    def causes(self, work: RooflineWork, random: np.random.Generator) -> tuple[Floats, Floats]:
        """Joules that each request causes, in two independent halves of the sample.

        What any request brings about by being there, by sampling, and by touching experts has an
        exact Shapley value. Only the rest of the marginal costs is sampled.
        """
        players, fixed = len(work.tokens), self._fixed_joules()
        samples = work.sampled > 0
        exact = fixed.step / players + fixed.head * samples / max(samples.sum(), 1)
        exact = exact + fixed.expert * expert_shares(self.costs, work.tokens)

        def rest(sums: RooflineWork) -> Floats:
            cost = self.cost(sums)[1] - fixed.step - fixed.head * (sums.sampled > 0)
            return np.asarray(cost - fixed.expert * self.costs.touched_experts(sums.tokens))

        return sampled_causes(work, exact, rest, random)

    def _fixed_joules(self) -> "Fixed":
        """What streaming weights costs in a step that does nothing else."""
        ones, twos = np.array([1e-9, 1e-9, 1e-9]), np.array([0.0, 1e-9, 0.0])
        tokens = np.array([0.0, 0.0, 1e9])  # touches every expert, and costs no operations below
        idle = replace(self.costs, ops_per_token=0.0, bytes_per_token=0.0)
        work = RooflineWork(ones, tokens, 0 * ones, 0 * ones, twos)
        plain, head, experts = replace(self, costs=idle).cost(work)[1].tolist()
        return Fixed(plain, head - plain, (experts - plain) / max(self.costs.num_experts, 1))


class Fixed(NamedTuple):
    """Joules of streaming weights."""

    step: float
    """In every step."""
    head: float
    """More, in one that samples."""
    expert: float
    """More, for every expert that a layer touches."""


Columns = TypeVar("Columns", bound=tuple[Any, ...])


def sampled_causes(
    work: Columns,
    exact: Floats,
    rest: Callable[[Columns], Floats],
    random: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Shapley values in two independent halves of a sample of orders.

    Args:
        work: columns of the players; they add up.
        exact: the part of each player's value that is known.
        rest: of the cost of sums of players' work.
        random: draws the orders.
    """
    players, halves = len(exact), []
    for _ in range(2):
        order = orders(players, random)
        sums = type(work)(*(np.cumsum(column[order], axis=1) for column in work))
        marginal = np.diff(rest(sums), axis=1, prepend=0.0)
        sampled = np.bincount(order.ravel(), marginal.ravel(), players) / len(order)
        halves.append(exact + sampled)
    return halves[0], halves[1]


def expert_shares(costs: StepCosts, tokens: Floats) -> Floats:
    """Shapley value of X(T) = E (1 - prod a_i), a_i = (1 - k/E)^q_i, exactly.

    The multilinear extension of the product is a polynomial, which the quadrature integrates.
    """
    if not costs.num_experts:
        return np.zeros_like(tokens)
    own = 1 - (1 - costs.experts_per_token / costs.num_experts) ** tokens
    missed = 1 - NODES[:, None] * own
    others = missed.prod(axis=1, keepdims=True) / missed
    return np.asarray(costs.num_experts * own * (WEIGHTS @ others))


def either(a: Floats, b: Floats, exponent: int) -> Floats:
    """A smooth maximum: (a^p + b^p)^(1/p)."""
    return _root(_power(a, exponent) + _power(b, exponent), exponent)


def below(x: Floats, exponent: int) -> Floats:
    """Linear for small loads, 1 for large ones: x / (1 + x^p)^(1/p)."""
    return x / _root(1.0 + _power(x, exponent), exponent)


def _power(x: Floats, exponent: int) -> Floats:
    while exponent > 1:  # powers of two by squaring: numpy's own take ten times as long
        x, exponent = x * x, exponent // 2
    return x


def _root(x: Floats, exponent: int) -> Floats:
    while exponent > 1:
        x, exponent = np.sqrt(x), exponent // 2
    return x


def orders(players: int, random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Orders in which requests could join, shape (orders, players).

    Each permutation is turned by equal parts of its length and taken backwards too, so that
    every request comes early and late equally often.
    """
    turns = min(players, TURNS)
    offsets = np.arange(turns) * players // turns
    places = (np.arange(players) + offsets[:, None]) % players
    count = -(-ORDERS // (2 * turns))
    drawn = np.concatenate([random.permutation(players)[places] for _ in range(count)])
    return np.concatenate([drawn, drawn[:, ::-1]])
