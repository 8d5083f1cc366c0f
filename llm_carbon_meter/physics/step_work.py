"""What the requests of a step do, in seconds at the peaks of the GPU's data sheet.

Columns over many steps at once, one row per scheduled request. How fast a GPU really is, and what
power it draws meanwhile, comes from `attribution.StepCoefficients`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.kernels import StepCosts, context_sum, windowed_sum
from llm_carbon_meter.physics.linear_kernels import (
    GRID,
    KNOTS,
    LinearKernels,
    knot_shares,
    linear_kernels,
)
from llm_carbon_meter.physics.phases import SUMS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

LAUNCH_S: Final = 1e-3
"""Unit of the time that a step takes whatever it does."""
SEQUENCE_S: Final = 1e-5
"""Unit of the time that each of its requests takes."""
HEAD, ATTENTION, CACHE = (2 + len(KNOTS) + place for place in range(3))
"""Places in `Work.basis`, behind launch, requests and the `KNOTS` of the linear kernels."""
PARTS: Final = CACHE + 1


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

    def of_steps(self, chosen: npt.NDArray[np.bool_]) -> "StepRows":
        """The requests of some of the steps."""
        kept = np.repeat(chosen, self.counts)
        columns = (self.new_tokens, self.cached_tokens, self.sampled)
        return StepRows(self.counts[chosen], *(column[kept] for column in columns))

    def per_row(self, values: Floats | Ints) -> Floats:
        """A value of each step, repeated for its rows."""
        return np.repeat(np.asarray(values, np.float64), self.counts)


@dataclass(frozen=True)
class CostModel:
    """The physics behind the proportions: a GPU's data sheet and a model's kernel table."""

    gpu: GpuSpec
    costs: StepCosts | None
    """None where the architecture is not known: steps are then divided by tokens."""

    @cached_property
    def by_tokens(self) -> LinearKernels:
        """Linear kernels at the points of `GRID`, of a model whose architecture is known."""
        assert self.costs is not None
        return linear_kernels(GRID, self.costs, self.gpu)

    @property
    def exchanges(self) -> bool:
        """Whether the GPUs of a step exchange results (tensor parallelism)."""
        return self.costs is not None and self.costs.network_per_token > 0


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds at the data sheet's peaks."""

    own_s: Floats
    """Of each request, shape (2, rows): attention, and reading and writing the KV cache."""
    basis: Floats
    """What the time of a step is made of, shape (`PARTS`, steps): `LAUNCH_S`, `SEQUENCE_S` of each
    request, linear kernels by their `KNOTS`, LM head, and the sums of ``own_s``."""
    activities: Floats
    """Of the linear kernels, as `linear_kernels` has them, shape (3, steps)."""
    model: CostModel


def step_work(rows: StepRows, model: CostModel) -> Work | None:
    """The work of many steps on one GPU of the group; None where the model is not known."""
    gpu, costs = model.gpu, model.costs
    if costs is None:
        return None
    new, cached = rows.new_tokens, rows.cached_tokens
    own_s = np.empty((2, len(new)))
    own_s[0] = costs.attention_operations(new, cached) / gpu.compute_ops_per_s
    own_s[1] = costs.kv_bytes(new, cached) / gpu.bandwidth_bytes_per_s
    tokens, sampled = rows.per_step(new), rows.per_step(rows.sampled)
    linear = linear_kernels(tokens, costs, gpu)
    basis = np.empty((PARTS, len(rows.counts)))
    basis[0] = LAUNCH_S
    basis[1] = SEQUENCE_S * rows.counts
    basis[2:HEAD] = linear.seconds * knot_shares(tokens)
    basis[HEAD] = _head_seconds(sampled, costs, gpu)
    np.add.reduceat(own_s, rows.starts, axis=1, out=basis[ATTENTION:])
    return Work(own_s, basis, linear.activities, model)


def _head_seconds(sampled: Floats, costs: StepCosts, gpu: GpuSpec) -> Floats:
    """Of the LM head, for the positions that steps sample."""
    moved = costs.head_bytes * (sampled > 0) + costs.bytes_per_sample * sampled
    computed = costs.ops_per_sample * sampled
    return np.maximum(moved / gpu.bandwidth_bytes_per_s, computed / gpu.compute_ops_per_s)


def step_sums(rows: StepRows, costs: StepCosts) -> Floats:
    """`phases.SUMS` of steps of mixed requests, shape (steps, sums)."""
    new, cached, window = rows.new_tokens, rows.cached_tokens, costs.sliding_window
    sums = np.zeros((len(SUMS), len(rows.counts)))
    sums[0] = 1.0
    sums[1] = rows.per_step(new)
    sums[2] = rows.per_step(context_sum(new, cached))
    sums[4] = sums[1] + rows.per_step(cached)
    if window:
        sums[3] = rows.per_step(windowed_sum(new, cached, window))
        sums[5] = rows.per_step(np.minimum(cached, window - 1.0)) + sums[1]
    sums[6] = rows.per_step(rows.sampled)
    sums[7] = costs.touched_experts(sums[1])
    return sums.T
