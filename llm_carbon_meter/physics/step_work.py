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
from llm_carbon_meter.physics.phases import SUMS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

LAUNCH_S: Final = 1e-3
"""Unit of the time that a step takes whatever it does."""
EFFICIENCIES: Final = np.array([[1.0], [0.5], [0.25]])
"""Shares of the compute peak at which computing may outlast the streaming of the weights."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
CHANCES: Final = (_NODES + 1) / 2
CHANCE_WEIGHTS: Final = _WEIGHTS / 2


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


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds at the data sheet's peaks."""

    own_s: Floats
    """Of each request, shape (4, rows): streaming its activations and its part of the weights that
    not everybody needs (experts by who touches them, the LM head among the requests that sample),
    computing (linear kernels and LM head), attention, and reading and writing the KV cache."""
    shared_s: float
    """Streaming the weights that every step needs once."""
    basis: Floats
    """What the time of a step is made of, shape (5 + efficiencies, steps): `LAUNCH_S`, the sums of
    ``own_s`` with ``shared_s`` in the first, and computing beyond all streaming at each of the
    `EFFICIENCIES`."""


def step_work(rows: StepRows, model: CostModel) -> Work | None:
    """The work of many steps on one GPU of the group; None where the model is not known."""
    gpu, costs = model.gpu, model.costs
    if costs is None:
        return None
    columns = (rows.new_tokens, rows.cached_tokens, rows.sampled)
    own_s = np.empty((4, len(rows.new_tokens)))
    # Activations pass through the kernels that stream the weights, and hide computing as they do.
    own_s[0] = _own_weight_bytes(rows, costs)
    own_s[0] += costs.activation_bytes(rows.new_tokens, rows.sampled)
    own_s[1] = costs.ops_per_token * rows.new_tokens + costs.ops_per_sample * rows.sampled
    own_s[2] = costs.operations(*columns) - own_s[1]
    own_s[3] = costs.kv_bytes(rows.new_tokens, rows.cached_tokens)
    own_s[::3] /= gpu.bandwidth_bytes_per_s
    own_s[1:3] /= gpu.compute_ops_per_s
    basis = np.empty((5 + len(EFFICIENCIES), len(rows.counts)))
    basis[0] = LAUNCH_S
    np.add.reduceat(own_s, rows.starts, axis=1, out=basis[1:5])
    basis[1] += costs.weight_bytes / gpu.bandwidth_bytes_per_s
    basis[5:] = np.maximum(basis[2] / EFFICIENCIES - basis[1], 0.0)
    return Work(own_s, costs.weight_bytes / gpu.bandwidth_bytes_per_s, basis)


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


def _own_weight_bytes(rows: StepRows, costs: StepCosts) -> Floats:
    samples = rows.sampled > 0
    sampling = np.maximum(np.add.reduceat(samples, rows.starts, dtype=np.float64), 1.0)
    streamed = rows.per_row(costs.head_bytes / sampling) * samples
    if costs.num_experts:
        streamed += costs.expert_bytes * _expert_shares(rows, costs)
    return streamed


def _expert_shares(rows: StepRows, costs: StepCosts) -> Floats:
    """Shapley value of the touched experts X(T) = E (1 - prod a_r), a_r = (1 - k/E)^q_r.

    The integral of the product's multilinear extension over the chance of being there; equal to a
    share per token where all requests have as many.
    """
    own = 1 - (1 - costs.experts_per_token / costs.num_experts) ** rows.new_tokens
    left = np.log1p(-CHANCES[:, None] * own)
    others = np.exp(
        np.repeat(np.add.reduceat(left, rows.starts, axis=1), rows.counts, axis=1) - left
    )
    shares = own * (CHANCE_WEIGHTS[:, None] * others).sum(axis=0)
    touched, summed = costs.touched_experts(rows.per_step(rows.new_tokens)), rows.per_step(shares)
    # A step that is made up may have no tokens.
    exact = touched / np.where(summed > 0, summed, 1.0)
    return np.asarray(shares * rows.per_row(exact))
