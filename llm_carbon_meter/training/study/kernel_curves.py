"""Measured kernels as functions of their sizes: latencies and, where it was measured, power.

Latencies are interpolated between measured shapes in logarithms; at a measured shape they are the
measured ones. Power is trusted for few shapes alone. It is smoothed over what a kernel achieves of
the peaks of arithmetic and of memory, for each kind of kernel, and so found for all others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.physics.gpu_specs import GpuSpec, gpu_spec
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.training.data.files import Manifest, Refused
from llm_carbon_meter.training.data.kernel_tables import (
    FOLDER,
    KernelTable,
    kernel_paths,
    read_kernel_table,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TABLES: Final[Mapping[str, str]] = {
    "H200": "h200_vllm022_{}",
    "B200": "b200_vllm022_{}",
    "GB200": "gb200_vllm022_{}",
    "L40S": "latencyonly_l40s_vllm0240_{}_bf16",
    "H100": "latencyonly_h100_sxm_vllm0240_{}_bf16",
    "A100": "latencyonly_a100_sxm_vllm0140_{}_bf16",
}
"""GPU -> how the files of its newest tables are called."""
OPS: Final = ("gemm", "context_attention", "generation_attention", "moe")
POWERED: Final = ("H200", "B200", "GB200")
"""GPUs whose tables have power."""
STAND_IN: Final = "H200"
"""Whose power the others are assumed to have, in shares of the board's."""
LIGHTEST_WATTS: Final = {"H200": 126.0, "B200": 241.0, "GB200": 221.0}
"""Of the lightest kernels, which is taken for idle power (DATA.md 1)."""
DTYPE: Final = "bfloat16"
ELEMENT: Final = 2.0
"""Bytes."""
STEP: Final = 0.05
"""Of the lattice of achieved shares."""
HIGHEST: Final = 1.3
"""Share of a peak: kernels whose bytes stay in the cache go beyond the memory's."""
SMOOTHING: Final = 0.06
"""Standard deviation of the weights, in achieved shares."""
FAR_WEIGHT: Final = 1e-6
"""Of rows five times as far, where none is near."""
IDLE_ROWS: Final = 5.0
"""Weight of the idle power at no work."""
MOST_ROWS: Final = 3000
"""Rows of power that are smoothed; more make no smoother lattice."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Values on a lattice, linear in between and above; below its ends as at its ends."""

    axes: tuple[Floats, ...]
    values: Floats

    def at(self, *points: Floats) -> Floats:
        """Values at points, one array for each axis, shape (n,)."""
        places, shares = [], []
        for axis, point in zip(self.axes, points, strict=True):
            place = np.clip(np.searchsorted(axis, point, side="right") - 1, 0, len(axis) - 2)
            places.append(place)
            shares.append(np.maximum((point - axis[place]) / (axis[place + 1] - axis[place]), 0.0))
        total = np.zeros(np.broadcast_shapes(*(np.shape(point) for point in points)))
        for corner in product((0, 1), repeat=len(self.axes)):
            weight = np.ones_like(total)
            for up, share in zip(corner, shares, strict=True):
                weight = weight * (share if up else 1 - share)
            total += weight * self.values[tuple(map(np.add, places, corner))]
        return total


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of a kernel by its sizes."""

    logs: Lattice

    @classmethod
    def of(cls, sizes: Sequence[Floats], seconds: Floats) -> "Latency":
        """From measured shapes that fill most of a lattice; repeated ones are averaged.

        Where a corner is missing, the kernel takes as long as the nearest smaller one in the first
        size, in proportion to it.
        """
        axes, places = zip(*(np.unique(size, return_inverse=True) for size in sizes), strict=True)
        shape = tuple(len(axis) for axis in axes)
        flat = np.ravel_multi_index([place.reshape(-1) for place in places], shape)
        count = np.bincount(flat, minlength=int(np.prod(shape)))
        total = np.bincount(flat, np.log(seconds), int(np.prod(shape)))
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(shape)
        logs = tuple(np.log(axis) for axis in axes)
        for place in range(1, shape[0]):
            grown = values[place - 1] + logs[0][place] - logs[0][place - 1]
            values[place] = np.where(np.isnan(values[place]), grown, values[place])
        return cls(Lattice(logs, values))

    def seconds(self, *sizes: Floats | float) -> Floats:
        """Of kernels of some sizes, arrays that go together."""
        points = np.broadcast_arrays(*(np.log(size) for size in sizes))
        return np.asarray(np.exp(self.logs.at(*points)))


@dataclass(frozen=True, slots=True)
class Work:
    """What kernels compute and move."""

    operations: Floats
    moved_bytes: Floats


@dataclass(frozen=True, slots=True)
class PowerMap:
    """Board power of a kind of kernel by what it achieves, in shares of the GPU's peaks."""

    gpu: GpuSpec
    """Whose peaks count."""
    idle_watts: float
    shares: Lattice
    """Of the board's power."""

    @classmethod
    def of(cls, gpu: GpuSpec, idle_watts: float, achieved: Floats, watts: Floats) -> "PowerMap":
        """Smooth trusted measurements.

        Args:
            gpu: that they are of.
            idle_watts: drawn without work.
            achieved: shares of the peaks of arithmetic and of memory, shape (rows, 2).
            watts: shape (rows,).
        """
        every = max(1, -(-len(watts) // MOST_ROWS))
        points = np.vstack((achieved[::every], np.zeros((1, 2))))
        values = np.append(watts[::every], idle_watts) / gpu.board_watts
        weights = np.append(np.ones(len(points) - 1), IDLE_ROWS)
        axis: Floats = np.asarray(np.arange(0.0, HIGHEST + STEP / 2, STEP), np.float64)
        spots = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
        distance = ((spots - points) ** 2).sum(-1) / (2 * SMOOTHING**2)
        near = (np.exp(-distance) + FAR_WEIGHT * np.exp(-distance / 25)) * weights
        near += 1e-300 * weights
        shares = (near @ values / near.sum(1)).reshape(len(axis), len(axis))
        return cls(gpu, idle_watts, Lattice((axis, axis), shares))

    def watts(self, work: Work, seconds: Floats) -> Floats:
        """Of kernels that take some time."""
        shares = achieved(work, seconds, self.gpu)
        return np.asarray(self.shares.at(*shares.T) * self.gpu.board_watts)


def achieved(work: Work, seconds: Floats, gpu: GpuSpec) -> Floats:
    """Shares of the peaks of arithmetic and of memory, shape (n, 2)."""
    peaks = gpu.compute_ops_per_s, gpu.bandwidth_bytes_per_s
    parts = (work.operations, work.moved_bytes)
    shares = [part / seconds / peak for part, peak in zip(parts, peaks, strict=True)]
    return np.minimum(np.stack(shares, axis=-1), HIGHEST)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The measured kernels of one GPU under one engine, in 16 bits."""

    gpu: GpuSpec
    tables: Mapping[str, KernelTable]
    gemm: Latency
    """By tokens, outputs and inputs."""
    power: Mapping[str, PowerMap]
    """By kind of kernel; empty where none was measured."""

    @classmethod
    def of(cls, tables: Mapping[str, KernelTable], gpu: GpuSpec) -> "Kernels":
        """From the tables of a GPU, by kind of kernel."""
        gemm = tables["gemm"]
        rows = _counting(gemm)
        sizes = [gemm.columns[name][rows] for name in ("n", "m", "k")]
        latency, power = Latency.of(sizes, gemm.latency_s[rows]), {}
        if gpu.name in POWERED:
            power = {op: _power_map(table, gpu) for op, table in tables.items()}
        return cls(gpu, tables, latency, power)

    def attention(self, op: str, model: ModelSpec) -> Latency:
        """Of a model's heads: prefill by batch and new tokens, decode by batch and context."""
        table = self.tables[op]
        columns, rows = table.columns, _counting(table)
        rows &= columns["num_heads"] == model.num_heads
        rows &= columns["num_key_value_heads"] == model.num_kv_heads
        rows &= columns["head_dim"] == model.head_dim
        length = columns["context_step_tokens"] + columns["input_tokens_per_sequence"]
        return Latency.of((columns["batch_size"][rows], length[rows]), table.latency_s[rows])

    def experts(self, model: ModelSpec, distribution: str) -> Latency:
        """All experts of a layer, by tokens."""
        table = self.tables["moe"]
        columns, rows = table.columns, _counting(table)
        wanted = {
            **{"hidden_size": model.hidden_size, "inter_size": model.expert_size},
            **{"topk": model.experts_per_token, "num_experts": model.num_experts},
            **{"moe_tp_size": 1, "moe_ep_size": 1},
        }
        for name, value in wanted.items():
            rows &= columns[name] == value
        rows &= columns["distribution"] == distribution
        return Latency.of((columns["num_tokens"][rows],), table.latency_s[rows])


def read_kernels(folder: Path, gpu: str, accepted: Manifest | None = None) -> Kernels:
    """Read the tables of a GPU of `TABLES`.

    Raises:
        OSError: a file is missing.
        ValueError: a file is not the one of the manifest.
    """
    tables = {}
    for op, path in _paths(gpu).items():
        table = read_kernel_table(folder, path, accepted)
        if isinstance(table, Refused):
            raise ValueError(f"{path}: {table.reason}")
        tables[op] = table
    return Kernels.of(tables, gpu_spec(gpu))


def has_kernels(gpu: str, accepted: Manifest | None = None) -> bool:
    """Whether a manifest, of the package if not given, has all tables of a GPU of `TABLES`."""
    return set(_paths(gpu).values()) <= set(kernel_paths(accepted))


def _paths(gpu: str) -> Mapping[str, str]:
    return {op: f"{FOLDER}{TABLES[gpu].format(op)}.csv.gz" for op in OPS}


def gemm_work(tokens: Floats, outputs: Floats, inputs: Floats) -> Work:
    """Of a product of activations and weights."""
    moved = ELEMENT * (outputs * inputs + tokens * (outputs + inputs))
    return Work(2 * tokens * outputs * inputs, moved)


def attention_work(pairs: Floats, new: Floats, read: Floats, heads: Floats, wide: Floats) -> Work:
    """Of attention.

    Args:
        pairs: of a new token and a token that it attends to.
        new: tokens.
        read: tokens of keys and values.
        heads: elements of all query heads of a token.
        wide: elements of all keys and values of a token.
    """
    return Work(4 * pairs * heads, ELEMENT * (2 * new * heads + read * wide))


def experts_work(
    tokens: Floats, hidden: Floats, width: Floats, chosen: Floats, experts: Floats
) -> Work:
    """Of the experts of a layer, of which a token takes some at random."""
    touched = experts * (1 - (1 - chosen / experts) ** tokens)
    weights, moved = 3 * hidden * width * touched, tokens * chosen * (2 * hidden + 3 * width)
    return Work(6 * tokens * chosen * hidden * width, ELEMENT * (weights + moved))


def _counting(table: KernelTable) -> Mask:
    """16-bit rows without a window, of the kernel that the engine would take."""
    columns = table.columns
    rows: Mask = columns["dtype"] == DTYPE
    if "attention" in table.op:
        rows &= np.isin(columns["window_size"], ("", "0", "0.0"))
        rows &= columns["kv_cache_dtype"] == DTYPE
        rows &= ~np.char.endswith(columns["kernel_source"], "triton_attn")
    return rows


def _power_map(table: KernelTable, gpu: GpuSpec) -> PowerMap:
    rows = _counting(table) & ~np.isnan(table.power_watts)
    columns = {name: column[rows] for name, column in table.columns.items()}
    work = _WORK[table.op](columns)
    shares = achieved(work, table.latency_s[rows], gpu)
    return PowerMap.of(gpu, LIGHTEST_WATTS[gpu.name], shares, table.power_watts[rows])


def _attention_columns(columns: Mapping[str, Floats]) -> Work:
    batch, new = columns["batch_size"], columns["input_tokens_per_sequence"]
    cached = columns["context_step_tokens"]
    pairs = batch * (new * cached + new * (new + 1) / 2)
    heads, kv_heads = columns["num_heads"], columns["num_key_value_heads"]
    wide = 2 * kv_heads * columns["head_dim"]
    read = batch * (cached + new)
    return attention_work(pairs, batch * new, read, heads * columns["head_dim"], wide)


def _gemm_columns(columns: Mapping[str, Floats]) -> Work:
    return gemm_work(columns["m"], columns["n"], columns["k"])


def _experts_columns(columns: Mapping[str, Floats]) -> Work:
    """Of a GPU of a group, which has its part of every expert or all of its part of them."""
    parts, groups = columns["moe_tp_size"], columns["moe_ep_size"]
    width = columns["inter_size"] / parts
    numbers = columns["topk"] / groups, columns["num_experts"] / groups
    return experts_work(columns["num_tokens"], columns["hidden_size"], width, *numbers)


_WORK: Final[Mapping[str, Callable[[Mapping[str, Floats]], Work]]] = {
    "gemm": _gemm_columns,
    "context_attention": _attention_columns,
    "generation_attention": _attention_columns,
    "moe": _experts_columns,
}
