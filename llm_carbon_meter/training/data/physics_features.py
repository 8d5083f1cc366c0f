"""What one request of a row costs by first principles, as columns that baselines share.

Conventions: a batch of ``concurrency`` equal requests, and all GPUs of a row; a request has its
share. Rows of unknown prompt length have no such columns.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.physics.gpu_specs import GpuSpec, gpu_spec
from llm_carbon_meter.physics.kernels import KernelTotals, Phases
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.phases import phase_totals
from llm_carbon_meter.physics.roofline import seconds
from llm_carbon_meter.predictor.measured_engines import engine_key
from llm_carbon_meter.training.data.rows import Row

Floats = npt.NDArray[np.float64]


class Placement(NamedTuple):
    """How the requests of a row are laid on its GPUs."""

    replicas: int
    """Copies of the model that each serve a part of the requests."""
    tensor_parallel: int
    """GPUs that share a replica."""
    idle_gpus: int
    """Powered but without work, since the heads cannot be divided among them; mostly 0."""

    @property
    def working_gpus(self) -> int:
        """GPUs that run kernels."""
        return self.replicas * self.tensor_parallel


def placement(row: Row) -> Placement:
    """All GPUs of a replica share every layer, as far as they divide the heads."""
    available = max(1, row.num_gpus // row.data_parallel)
    shared = max(n for n in range(1, available + 1) if row.spec.num_heads % n == 0)
    return Placement(row.data_parallel, shared, row.num_gpus - row.data_parallel * shared)


def row_phases(row: Row) -> Phases:
    """Kernel totals on one GPU of one replica; on fewer GPUs than stated, see `Placement`."""
    where = placement(row)
    batch = max(1.0, row.concurrency / where.replicas)
    return _phases(row.spec, where.tensor_parallel, batch, row.prompt_tokens, row.output_tokens)


@lru_cache(maxsize=8192)
def _phases(
    model: ModelSpec, tensor_parallel: int, batch: float, prompt: float, output: float
) -> Phases:
    return phase_totals(model, tensor_parallel, batch, prompt, output)


class Physics(NamedTuple):
    """Of one request of each row, all GPUs together; every column has shape (n,).

    ``_board_joules`` is a time times the board power of all GPUs: what they take at full power.
    ``_board_watts`` is that power, for a time per step that is yet to be found.
    """

    prefill_board_joules: Floats
    """Roofline time: each kernel as long as its slowest resource needs."""
    decode_board_joules: Floats
    compute_board_joules: Floats
    """Operations at peak, as if nothing else took time."""
    memory_board_joules: Floats
    network_board_joules: Floats
    step_board_watts: Floats
    """Times the steps, shared by the sequences of the batch."""
    sequence_step_board_watts: Floats
    """Times the steps, for every sequence."""
    operations: Floats
    moved_bytes: Floats
    network_bytes: Floats

    @property
    def board_joules(self) -> Floats:
        """Roofline time of both phases."""
        return self.prefill_board_joules + self.decode_board_joules


def physics(rows: Sequence[Row]) -> Physics:
    """The columns of some rows."""
    return Physics(*np.array([_row_physics(row) for row in rows]).T)


@lru_cache(maxsize=8192)
def _row_physics(row: Row) -> tuple[float, ...]:
    """One row, in the order of `Physics`."""
    gpu, where, phases = gpu_spec(row.gpu), placement(row), row_phases(row)
    kernels = (*phases.prefill, *phases.decode)
    operations = _in_model(kernels, lambda kernel: kernel.operations)
    moved = _in_model(kernels, lambda kernel: kernel.moved_bytes)
    network = _in_model(kernels, lambda kernel: kernel.network_bytes)
    board_watts = gpu.board_watts * row.num_gpus
    # Replicas work at the same time, each on its part of the requests and of the GPUs.
    watts, working = board_watts / row.concurrency, where.working_gpus / row.concurrency
    return (
        watts * _in_model(phases.prefill, lambda kernel: seconds(kernel, gpu)),
        watts * _in_model(phases.decode, lambda kernel: seconds(kernel, gpu)),
        watts * _in_model(kernels, lambda kernel: _computing_s(kernel, gpu)),
        watts * moved / gpu.bandwidth_bytes_per_s,
        watts * network / gpu.link_bytes_per_s,
        watts * row.output_tokens,
        board_watts / where.replicas * row.output_tokens,
        working * operations,
        working * moved,
        working * network,
    )


def _in_model(kernels: Sequence[KernelTotals], amount: Callable[[KernelTotals], float]) -> float:
    """Sum over a model, in which a kernel stands ``count`` times."""
    return sum(kernel.count * amount(kernel) for kernel in kernels)


def _computing_s(kernel: KernelTotals, gpu: GpuSpec) -> float:
    return kernel.operations / gpu.peak(kernel.peak) if kernel.peak else 0.0


def column(rows: Sequence[Row], name: str) -> Floats:
    """A number of every row, shape (n,)."""
    return np.array([getattr(row, name) for row in rows], np.float64)


def engine_name(row: Row) -> str:
    """Engine and version: two versions of one engine differ more than two runs do."""
    return engine_key(row.engine, row.engine_version)
