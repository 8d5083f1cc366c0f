"""How one step's joules are divided among its requests, and what power a step is expected to draw.

Pure functions over columns: many steps at once, one row per scheduled request. Only proportions
come from here; the joules themselves are the counter's.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from llm_carbon_meter.ledger.token_shares import LinearJoules, token_shares
from llm_carbon_meter.physics.linear_kernels import ACTIVITIES
from llm_carbon_meter.physics.step_coefficients import LOADS, StepCoefficients
from llm_carbon_meter.physics.step_work import ATTENTION, HEAD, CostModel, Floats, StepRows, Work

TINY: Final = 1e-300
LINEAR: Final = len(ACTIVITIES)
"""The first of the `LOADS` are those of linear kernels, the others of attention and cache."""
HELD_UP: Final = 1.25
"""A step that takes longer than so many times the expected was held up, and by nobody in it. What
is less is taken for an error of the expectation, which may be of any part."""


def step_loads(rows: StepRows, work: Work | None, coefficients: StepCoefficients) -> Floats:
    """Shares of each step's expected time under each of the `LOADS`, shape (steps, loads)."""
    if work is None:
        middling = np.eye(len(LOADS))[:1]
        return np.repeat(middling, len(rows.counts), axis=0)
    parts_s = coefficients.seconds[:, None] * work.basis
    loads_s = np.empty((len(LOADS), len(rows.counts)))
    loads_s[:LINEAR] = parts_s[2:HEAD].sum(axis=0) * work.activities
    loads_s[0] += parts_s[HEAD]
    loads_s[LINEAR:] = parts_s[ATTENTION:]
    return np.asarray((loads_s / parts_s.sum(axis=0)).T)


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
    dynamic = loads @ coefficients.load_watts
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
    if work is None or work.model.costs is None:
        return rows.new_tokens
    return work.model.costs.operations(rows.new_tokens, rows.cached_tokens, rows.sampled)


def shapley_weights(
    rows: StepRows, work: Work | None, durations: Floats, coefficients: StepCoefficients
) -> Floats:
    """The Shapley value of what a set of requests would cost in a step of their own.

    Launches, and time in which the step was held up, are shared equally, linear kernels by what
    each request's tokens add to them (`token_shares`), the LM head by sampled positions. Attention
    and KV cache are each request's own.
    """
    if work is None:
        return rows.new_tokens
    seconds, static = coefficients.seconds, coefficients.static_watts
    parts_s = seconds[:, None] * work.basis
    held_s = np.maximum(durations - HELD_UP * parts_s.sum(axis=0), 0.0)
    rest_s = parts_s[:2].sum(axis=0) + held_s
    weights = rows.per_row(static * rest_s / rows.counts)
    weights += token_shares(rows, LinearJoules.of(work.model, coefficients))
    head = (static + coefficients.load_watts[0]) * parts_s[HEAD]
    weights += rows.sampled * rows.per_row(head / np.maximum(rows.per_step(rows.sampled), 1.0))
    # Term by term: a product of matrices adds up twins in different orders.
    for place, own_s in enumerate(work.own_s):
        watts = static + coefficients.load_watts[LINEAR + place]
        weights += watts * seconds[ATTENTION + place] * own_s
    return weights


SHAPLEY: Final = "shapley"
Policy = Callable[[StepRows, Work | None, Floats, StepCoefficients], Floats]

POLICIES: Mapping[str, Policy] = {
    SHAPLEY: shapley_weights,
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
