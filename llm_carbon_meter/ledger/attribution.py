"""How one step's joules are divided among its requests, and what power a step is expected to draw.

Pure functions over columns: many steps at once, one row per scheduled request. Only proportions
come from here; the joules themselves are the counter's.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from llm_carbon_meter.physics.step_coefficients import StepCoefficients
from llm_carbon_meter.physics.step_work import CostModel, Floats, StepRows, Work

TINY: Final = 1e-300


def step_loads(rows: StepRows, work: Work | None, coefficients: StepCoefficients) -> Floats:
    """Shares of each step's time in which it moves bytes and computes, shape (steps, 2).

    Both at once is possible: they may add up to more than 1.
    """
    if work is None:
        return np.repeat([[1.0, 0.0]], len(rows.counts), axis=0)
    _, stream, _, attention, memory = coefficients.seconds[:5]
    moves = (stream, 0.0, 0.0, memory)
    computes = (0.0, coefficients.compute_seconds, attention, 0.0)
    loads_s: Floats = np.array((moves, computes)) @ work.basis[1:5]
    return (loads_s / (coefficients.seconds @ work.basis)).T


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
    shares_of_time: Floats = exchange_s / np.maximum(np.maximum(durations, exchange_s), TINY)
    return shares_of_time


def step_watts(loads: Floats, coefficients: StepCoefficients) -> Floats:
    """Expected power of steps, per GPU, shape (steps,)."""
    dynamic = loads @ np.array((coefficients.memory_watts, coefficients.compute_watts))
    return np.asarray(np.minimum(coefficients.static_watts + dynamic, coefficients.limit_watts))


def equal_weights(
    rows: StepRows, work: Work | None, durations: Floats, coefficients: StepCoefficients
) -> Floats:
    """Every request of a step the same."""
    return np.ones_like(rows.new_tokens)


def token_weights(
    rows: StepRows, work: Work | None, durations: Floats, coefficients: StepCoefficients
) -> Floats:
    """By scheduled tokens."""
    return rows.new_tokens


def flop_weights(
    rows: StepRows, work: Work | None, durations: Floats, coefficients: StepCoefficients
) -> Floats:
    """By operations."""
    return rows.new_tokens if work is None else work.own_s[1] + work.own_s[2]


def shapley_weights(
    rows: StepRows, work: Work | None, durations: Floats, coefficients: StepCoefficients
) -> Floats:
    """The Shapley value of "fixed cost F if anybody runs, plus what each adds": F / |S| + m_r.

    m_r is static power times the time that the request adds, and the dynamic power of its own
    computing, reading and streaming. F is the same for what nobody adds: the rest of the step's
    time, and streaming the weights once. Time that computing takes beyond the streaming of the
    weights is shared per token; experts' weights by who touches them.
    """
    if work is None:
        return rows.new_tokens
    added = coefficients.seconds[1:5] * (1, 0, 1, 1)
    outlast = coefficients.seconds[2] + coefficients.seconds[5:] @ work.basis[5:] / (
        work.basis[2] + TINY
    )
    sums_s = work.basis[1:5] - np.array([[work.shared_s], [0], [0], [0]])
    shared_s = np.maximum(durations - added @ sums_s - outlast * work.basis[2], 0.0)
    streamed = coefficients.memory_watts * coefficients.seconds[1] * work.shared_s
    fixed = (coefficients.static_watts * shared_s + streamed) / rows.counts
    own = rows.per_row(fixed)
    own += rows.per_row(coefficients.static_watts * outlast) * work.own_s[1]
    # Term by term: a product of matrices adds up twins in different orders.
    for watts, seconds in zip(
        coefficients.static_watts * added + coefficients.own_watts, work.own_s, strict=True
    ):
        own += watts * seconds
    return own


Policy = Callable[[StepRows, Work | None, Floats, StepCoefficients], Floats]

POLICIES: Mapping[str, Policy] = {
    "shapley": shapley_weights,
    "tokens": token_weights,
    "flops": flop_weights,
    "equal": equal_weights,
}


def shares(
    policy: str,
    rows: StepRows,
    work: Work | None,
    durations: Floats,
    coefficients: StepCoefficients,
) -> Floats:
    """Each row's share of its step; the shares of a step add up to 1, shape (rows,).

    Args:
        policy: a key of `POLICIES`.
        rows: the requests of the steps.
        work: what they do; None where the architecture is not known.
        durations: seconds that each step occupied the GPUs, shape (steps,).
        coefficients: what the work costs.
    """
    # Not 0: a step whose requests weigh nothing is divided equally.
    weights = np.maximum(POLICIES[policy](rows, work, durations, coefficients), TINY)
    return weights / rows.per_row(rows.per_step(weights))
