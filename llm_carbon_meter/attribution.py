"""How one step's joules are divided among its requests, and what power a step is expected to draw.

Pure functions over columns: many steps at once, one row per scheduled request. Only proportions
come from here; the joules themselves are the counter's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.kernels import StepCosts
from llm_carbon_meter.specs import GpuSpec

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

TINY: Final = 1e-300
MEMORY_BOUND_LOAD: Final = 0.6
"""Share of the dynamic power that a step draws while it waits for memory: decode at 180 to 200 W
against prefill at 270 to 300 W on a 300 W card (as a vLLM user saw on V100)."""


@dataclass(frozen=True)
class StepRows:
    """Requests of many steps, one after the other; every step has at least one."""

    counts: Ints
    """Rows of each step, shape (steps,)."""
    new_tokens: Floats
    """Scheduled in the step, shape (rows,)."""
    cached_tokens: Floats
    """In the KV cache before it, shape (rows,)."""
    sampled: Floats
    """Positions whose logits are computed, shape (rows,)."""

    @cached_property
    def starts(self) -> Ints:
        """First row of each step."""
        return np.cumsum(self.counts) - self.counts

    def per_step(self, values: Floats) -> Floats:
        """Sum of a column over the rows of each step."""
        return np.add.reduceat(values, self.starts)

    def per_row(self, values: Floats) -> Floats:
        """A value of each step, repeated for its rows."""
        return np.repeat(values, self.counts)


@dataclass(frozen=True, slots=True)
class CostModel:
    """The physics behind the proportions: a GPU's data sheet and a model's kernel table."""

    gpu: GpuSpec
    costs: StepCosts | None
    """None where the architecture is not known: steps are then divided by tokens."""

    @property
    def exchanges(self) -> bool:
        """Whether the GPUs of a step exchange results (tensor parallelism)."""
        return self.costs is not None and self.costs.network_per_token > 0

    @property
    def dynamic_watts(self) -> float:
        """Board power above idle."""
        return self.gpu.board_watts - self.gpu.idle_watts

    @property
    def joules_per_operation(self) -> float:
        """Dynamic power at the compute peak / the peak."""
        return self.dynamic_watts / self.gpu.compute_ops_per_s

    @property
    def joules_per_byte(self) -> float:
        """Dynamic power at full bandwidth / the bandwidth."""
        return MEMORY_BOUND_LOAD * self.dynamic_watts / self.gpu.bandwidth_bytes_per_s


def step_watts(rows: StepRows, model: CostModel) -> Floats:
    """Expected board power of each step, per GPU: load x data sheet, shape (steps,).

    Load is 1 while a step computes and `MEMORY_BOUND_LOAD` while it waits for memory; the two
    times are those of the roofline.
    """
    idle, dynamic = model.gpu.idle_watts, model.dynamic_watts
    if model.costs is None:
        return np.full(len(rows.counts), idle + MEMORY_BOUND_LOAD * dynamic)
    operations, moved = _step_work(rows, model.costs)
    compute_s = operations / model.gpu.compute_ops_per_s
    memory_s = moved / model.gpu.bandwidth_bytes_per_s
    load = (compute_s + MEMORY_BOUND_LOAD * memory_s) / (compute_s + memory_s)
    return idle + dynamic * load


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


def _step_work(rows: StepRows, costs: StepCosts) -> tuple[Floats, Floats]:
    """Operations and bytes of each step, weights included."""
    columns = (rows.new_tokens, rows.cached_tokens, rows.sampled)
    moved = rows.per_step(costs.own_bytes(*columns)) + costs.weight_bytes
    moved += costs.head_bytes * (rows.per_step(rows.sampled) > 0)
    moved += costs.expert_bytes * costs.touched_experts(rows.per_step(rows.new_tokens))
    return rows.per_step(costs.operations(*columns)), moved


def equal_weights(rows: StepRows, durations: Floats, model: CostModel) -> Floats:
    """Every request of a step the same."""
    return np.ones_like(rows.new_tokens)


def token_weights(rows: StepRows, durations: Floats, model: CostModel) -> Floats:
    """By scheduled tokens."""
    return rows.new_tokens


def flop_weights(rows: StepRows, durations: Floats, model: CostModel) -> Floats:
    """By operations."""
    if model.costs is None:
        return rows.new_tokens
    return model.costs.operations(rows.new_tokens, rows.cached_tokens, rows.sampled)


def shapley_weights(rows: StepRows, durations: Floats, model: CostModel) -> Floats:
    """The Shapley value of "fixed cost F if anybody runs, plus what each adds": F / |S| + m_r.

    F is static power times the step's time plus streaming the weights once; m_r is the request's
    own operations and bytes. Experts' weights are shared per token, the LM head among the
    requests that sample.
    """
    if model.costs is None:
        return rows.new_tokens
    costs, columns = model.costs, (rows.new_tokens, rows.cached_tokens, rows.sampled)
    own_bytes = costs.own_bytes(*columns)
    if costs.num_experts:
        tokens = rows.per_step(rows.new_tokens)
        streamed = costs.expert_bytes * costs.touched_experts(tokens) / tokens
        own_bytes = own_bytes + rows.per_row(streamed) * rows.new_tokens
    samples = (rows.sampled > 0).astype(np.float64)
    sampling = np.maximum(rows.per_step(samples), 1.0)
    own_bytes = own_bytes + rows.per_row(costs.head_bytes / sampling) * samples
    own = model.joules_per_operation * costs.operations(*columns)
    own += model.joules_per_byte * own_bytes
    fixed = model.gpu.idle_watts * durations + model.joules_per_byte * costs.weight_bytes
    return rows.per_row(fixed / rows.counts) + own


Policy = Callable[[StepRows, Floats, CostModel], Floats]

POLICIES: Mapping[str, Policy] = {
    "shapley": shapley_weights,
    "tokens": token_weights,
    "flops": flop_weights,
    "equal": equal_weights,
}


def shares(policy: str, rows: StepRows, durations: Floats, model: CostModel) -> Floats:
    """Each row's share of its step; the shares of a step add up to 1, shape (rows,).

    Args:
        policy: a key of `POLICIES`.
        durations: seconds that each step occupied the GPUs, shape (steps,).
    """
    # Not 0: a step whose requests weigh nothing is divided equally.
    weights = np.maximum(POLICIES[policy](rows, durations, model), TINY)
    return weights / rows.per_row(rows.per_step(weights))
