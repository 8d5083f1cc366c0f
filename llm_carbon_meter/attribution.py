"""How one step's joules are divided among its requests, and what power a step is expected to draw.

Pure functions over columns: many steps at once, one row per scheduled request. Only proportions
come from here; the joules themselves are the counter's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from llm_carbon_meter.specs import GpuSpec
from llm_carbon_meter.work import EFFICIENCIES, CostModel, Floats, StepRows, Work

TINY: Final = 1e-300
MEMORY_BOUND_LOAD: Final = 0.6
"""Share of the dynamic power that a step draws while it waits for memory: decode at 180 to 200 W
against prefill at 270 to 300 W on a 300 W card (as a vLLM user saw on V100)."""
ROOFLINE: Final = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0)
"""`Prices.seconds` of a GPU that reaches its peaks: computing hides behind streaming, or outlasts
it."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What the work of a step costs in time and power."""

    seconds: Floats
    """Real seconds per second of `Work.basis`, in its order."""
    static_watts: float
    """Drawn by a step whatever it does."""
    memory_watts: float
    """More, while it moves bytes."""
    compute_watts: float
    """More, while it computes."""
    idle_watts: float
    """Without a step."""
    board_watts: float
    """Never more than this."""

    @property
    def compute_seconds(self) -> float:
        """Real seconds per second of computing, hidden or not."""
        return float(self.seconds[2] + (self.seconds[5:] / EFFICIENCIES[:, 0]).sum())

    @property
    def own_watts(self) -> Floats:
        """Dynamic power times real seconds, per second of each row of `Work.own_s`."""
        stream, _, attention, memory = self.seconds[1:5]
        real_seconds = np.array((stream, self.compute_seconds, attention, memory))
        return real_seconds * (
            self.memory_watts,
            self.compute_watts,
            self.compute_watts,
            self.memory_watts,
        )


def sheet_prices(gpu: GpuSpec) -> Prices:
    """What the data sheet promises."""
    dynamic = gpu.board_watts - gpu.idle_watts
    return Prices(
        np.array(ROOFLINE),
        gpu.idle_watts,
        MEMORY_BOUND_LOAD * dynamic,
        dynamic,
        gpu.idle_watts,
        gpu.board_watts,
    )


def step_loads(rows: StepRows, work: Work | None, prices: Prices) -> Floats:
    """Shares of each step's time in which it moves bytes and computes, shape (steps, 2).

    Both at once is possible: they may add up to more than 1.
    """
    if work is None:
        return np.repeat([[1.0, 0.0]], len(rows.counts), axis=0)
    _, stream, _, attention, memory = prices.seconds[:5]
    moves = (stream, 0.0, 0.0, memory)
    computes = (0.0, prices.compute_seconds, attention, 0.0)
    loads_s: Floats = np.array((moves, computes)) @ work.basis[1:5]
    return (loads_s / (prices.seconds @ work.basis)).T


def allreduce_shares(rows: StepRows, durations: Floats, model: CostModel) -> Floats:
    """Share of each step's time in which GPUs exchange results, at their link's full speed.

    Args:
        durations: seconds that each step occupied the GPUs, shape (steps,).

    Returns:
        Shape (steps,); 0 without tensor parallelism.
    """
    if model.costs is None:
        return np.zeros(len(rows.counts))
    sent = model.costs.network_per_token * rows.per_step(rows.new_tokens)
    sent += model.costs.network_per_sample * rows.per_step(rows.sampled)
    exchange_s = sent / model.gpu.link_bytes_per_s
    found: Floats = exchange_s / np.maximum(np.maximum(durations, exchange_s), TINY)
    return found


def step_watts(loads: Floats, prices: Prices) -> Floats:
    """Expected board power of steps, per GPU, shape (steps,)."""
    dynamic = loads @ np.array((prices.memory_watts, prices.compute_watts))
    return np.asarray(np.minimum(prices.static_watts + dynamic, prices.board_watts))


def equal_weights(rows: StepRows, work: Work | None, durations: Floats, prices: Prices) -> Floats:
    """Every request of a step the same."""
    return np.ones_like(rows.new_tokens)


def token_weights(rows: StepRows, work: Work | None, durations: Floats, prices: Prices) -> Floats:
    """By scheduled tokens."""
    return rows.new_tokens


def flop_weights(rows: StepRows, work: Work | None, durations: Floats, prices: Prices) -> Floats:
    """By operations."""
    return rows.new_tokens if work is None else work.own_s[1] + work.own_s[2]


def shapley_weights(rows: StepRows, work: Work | None, durations: Floats, prices: Prices) -> Floats:
    """The Shapley value of "fixed cost F if anybody runs, plus what each adds": F / |S| + m_r.

    m_r is static power times the time that the request adds, and the dynamic power of its own
    computing, reading and streaming. F is the same for what nobody adds: the rest of the step's
    time, and streaming the weights once. Time that computing takes beyond the streaming of the
    weights is shared per token; experts' weights by who touches them.
    """
    if work is None:
        return rows.new_tokens
    added = prices.seconds[1:5] * (1, 0, 1, 1)
    outlast = prices.seconds[2] + prices.seconds[5:] @ work.basis[5:] / (work.basis[2] + TINY)
    sums_s = work.basis[1:5] - np.array([[work.shared_s], [0], [0], [0]])
    shared_s = np.maximum(durations - added @ sums_s - outlast * work.basis[2], 0.0)
    streamed = prices.memory_watts * prices.seconds[1] * work.shared_s
    fixed = (prices.static_watts * shared_s + streamed) / rows.counts
    own = rows.per_row(fixed)
    own += rows.per_row(prices.static_watts * outlast) * work.own_s[1]
    # Term by term: a product of matrices adds up twins in different orders.
    for watts, seconds in zip(
        prices.static_watts * added + prices.own_watts, work.own_s, strict=True
    ):
        own += watts * seconds
    return own


Policy = Callable[[StepRows, Work | None, Floats, Prices], Floats]

POLICIES: Mapping[str, Policy] = {
    "shapley": shapley_weights,
    "tokens": token_weights,
    "flops": flop_weights,
    "equal": equal_weights,
}


def shares(
    policy: str, rows: StepRows, work: Work | None, durations: Floats, prices: Prices
) -> Floats:
    """Each row's share of its step; the shares of a step add up to 1, shape (rows,).

    Args:
        policy: a key of `POLICIES`.
        rows: the requests of the steps.
        work: what they do; None where the architecture is not known.
        durations: seconds that each step occupied the GPUs, shape (steps,).
        prices: what the work costs.
    """
    # Not 0: a step whose requests weigh nothing is divided equally.
    weights = np.maximum(POLICIES[policy](rows, work, durations, prices), TINY)
    return weights / rows.per_row(rows.per_step(weights))
