"""What the requests of a step do, in seconds at the peaks of the GPU's data sheet.

Columns over many steps at once, one row per scheduled request. How fast a GPU really is, and what
power it draws meanwhile, comes from `attribution.Prices`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.kernels import StepCosts
from llm_carbon_meter.specs import GpuSpec

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

LAUNCH_S: Final = 1e-3
"""Unit of the time that a step takes whatever it does."""
EFFICIENCIES: Final = (1.0, 0.5, 0.25)
"""Shares of the compute peak at which computing may outlast the streaming of the weights."""


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


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds at the data sheet's peaks; "own" columns have shape (rows,), others (steps,)."""

    rows: StepRows
    own_compute_s: Floats
    """Linear kernels and LM head."""
    own_attention_s: Floats
    own_memory_s: Floats
    """Activations and KV cache, read and written."""
    own_stream_s: Floats
    """Its part of the weights that not everybody needs: experts per token, the LM head among the
    requests that sample."""
    shared_stream_s: float
    """The weights that every step streams once."""
    compute_s: Floats
    basis: Floats
    """What the time of a step is made of, shape (steps, 5 + efficiencies): `LAUNCH_S`, streaming
    weights, computing, attention, own memory, and computing beyond the streaming at each of the
    `EFFICIENCIES`."""


def step_work(rows: StepRows, model: CostModel) -> Work | None:
    """The work of many steps on one GPU of the group; None where the model is not known."""
    gpu, costs = model.gpu, model.costs
    if costs is None:
        return None
    peak, bandwidth = gpu.compute_ops_per_s, gpu.bandwidth_bytes_per_s
    columns = (rows.new_tokens, rows.cached_tokens, rows.sampled)
    linear = costs.ops_per_token * rows.new_tokens + costs.ops_per_sample * rows.sampled
    compute, attention = linear / peak, (costs.operations(*columns) - linear) / peak
    memory = costs.own_bytes(*columns) / bandwidth
    stream = _own_stream_bytes(rows, costs) / bandwidth
    weights_s = costs.weight_bytes / bandwidth
    compute_s, stream_s = rows.per_step(compute), rows.per_step(stream) + weights_s
    beyond = [np.maximum(compute_s / share - stream_s, 0.0) for share in EFFICIENCIES]
    launch_s = np.full(len(rows.counts), LAUNCH_S)
    attention_s, memory_s = rows.per_step(attention), rows.per_step(memory)
    basis = np.column_stack((launch_s, stream_s, compute_s, attention_s, memory_s, *beyond))
    return Work(rows, compute, attention, memory, stream, weights_s, compute_s, basis)


def _own_stream_bytes(rows: StepRows, costs: StepCosts) -> Floats:
    samples = (rows.sampled > 0).astype(np.float64)
    sampling = np.maximum(rows.per_step(samples), 1.0)
    streamed = rows.per_row(costs.head_bytes / sampling) * samples
    if costs.num_experts:
        tokens = rows.per_step(rows.new_tokens)
        touched = costs.expert_bytes * costs.touched_experts(tokens) / tokens
        streamed += rows.per_row(touched) * rows.new_tokens
    return streamed
