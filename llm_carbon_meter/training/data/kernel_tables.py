"""Measured latency and power of single vLLM kernels, in numpy columns.

Latency is trusted in every row. Power is trusted only where the kernel was repeated long enough
for the reading to be its own: NVML averages over about a second, and short kernels were read once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.training.data.files import Manifest, Refused, accepted_text, manifest, require

FOLDER: Final = "aiconfigurator_kernel_power/"
LEAST_POWER_LATENCY_S: Final = 2e-4
LEAST_POWER_READINGS: Final = 5
MOST_READINGS: Final = 30
"""More cannot be told from the digits."""

# Columns of text and the longest that occur; ``window_size`` is empty in some tables.
_TEXT: Final = {
    "gpu": "U32",
    "engine": "U8",
    "engine_version": "U16",
    "op": "U24",
    "kernel_source": "U64",
    "dtype": "U16",
    "kv_cache_dtype": "U16",
    "distribution": "U24",
    "window_size": "U8",
}
_FAMILY_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "gemm": ("n", "k"),
    "context_attention": ("num_heads", "num_key_value_heads", "head_dim"),
    "generation_attention": ("num_heads", "num_key_value_heads", "head_dim"),
    "moe": ("hidden_size", "inter_size", "topk", "num_experts"),
}
_GPU_NAMES: Final = {
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA L40S": "L40S",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "NVIDIA GB200": "GB200",
}


@dataclass(frozen=True, slots=True)
class KernelTable:
    """One kind of kernel on one GPU under one engine; all arrays have one entry per shape."""

    path: str
    gpu: str
    engine_version: str
    op: str
    """gemm, context_attention (prefill), generation_attention (decode) or moe."""
    columns: Mapping[str, NDArray[Any]]
    """Shapes and types as the source names them: m, n, k, batch_size, dtype, …"""
    shape_family: NDArray[np.int64]
    """Number of the (n, k), the heads or the experts: rows of one family are near-copies."""
    latency_s: NDArray[np.float64]
    """Of one launch."""
    power_watts: NDArray[np.float64]
    """Gross, of the board; nan where there is none or it is not the kernel's own."""
    power_readings: NDArray[np.int64]
    """At least how many readings the power is the mean of, 0 where there is none."""
    num_duplicates: int
    """Exact copies that were dropped."""


def kernel_paths(accepted: Manifest | None = None) -> list[str]:
    """The kernel tables of a manifest."""
    return [path for path in _or_own(accepted) if path.startswith(FOLDER)]


def kernel_tables(
    folder: Path, accepted: Manifest | None = None
) -> Iterator[KernelTable | Refused]:
    """Read the kernel tables one after the other; a file that is not accepted is refused.

    Raises:
        ConfigError: a file is missing.
    """
    paths = kernel_paths(accepted)
    require(folder, paths)
    return (read_kernel_table(folder, path, accepted) for path in paths)


def read_kernel_table(
    folder: Path, path: str, accepted: Manifest | None = None
) -> KernelTable | Refused:
    """Read one kernel table."""
    text = accepted_text(folder, path, _or_own(accepted))
    if isinstance(text, Refused):
        return text
    header, *lines = text.splitlines()
    distinct = list(dict.fromkeys(lines))
    rows = _records(header.split(","), distinct)
    op, latency_s = str(rows["op"][0]), rows["latency_ms"] / 1000
    watts, readings = _power(rows)
    trusted = (latency_s >= LEAST_POWER_LATENCY_S) & (readings >= LEAST_POWER_READINGS)
    return KernelTable(
        path=path,
        gpu=_GPU_NAMES.get(str(rows["gpu"][0]), str(rows["gpu"][0])),
        engine_version=str(rows["engine_version"][0]),
        op=op,
        columns={name: rows[name] for name in rows.dtype.names or ()},
        shape_family=_shape_family(rows, op),
        latency_s=latency_s,
        power_watts=np.where(trusted, watts, np.nan),
        power_readings=readings,
        num_duplicates=len(lines) - len(distinct),
    )


def _or_own(accepted: Manifest | None) -> Manifest:
    return manifest() if accepted is None else accepted


def _records(names: list[str], lines: list[str]) -> NDArray[Any]:
    """All columns but the path in the source, which is the last."""
    return np.loadtxt(
        lines,
        delimiter=",",
        usecols=range(len(names) - 1),
        dtype=[(name, _TEXT.get(name, "f8")) for name in names[:-1]],
        ndmin=1,
    )


def _shape_family(rows: NDArray[Any], op: str) -> NDArray[np.int64]:
    sizes = np.stack([rows[name] for name in _FAMILY_COLUMNS[op]], axis=1)
    return np.unique(sizes, axis=0, return_inverse=True)[1].reshape(-1)


def _power(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Watts as stated and the number of readings; nan and 0 in a table without power."""
    if "avg_power_watts" not in (rows.dtype.names or ()):
        return np.full(len(rows), np.nan), np.zeros(len(rows), np.int64)
    return rows["avg_power_watts"], num_readings(rows["avg_power_watts"])


def num_readings(watts: NDArray[np.float64]) -> NDArray[np.int64]:
    """At least how many readings a mean was made of, told from its digits.

    NVML reports whole milliwatts, so the mean times the number of readings is a whole number of
    them. The smallest number that fits; ``MOST_READINGS + 1`` where none does.
    """
    fewest = np.full(len(watts), MOST_READINGS + 1)
    for readings in range(MOST_READINGS, 0, -1):
        milliwatts = watts * 1000 * readings
        # The source rounds to 1e-7 W, which the factor enlarges.
        fits = np.abs(milliwatts - np.round(milliwatts)) <= 1.5e-4 * readings
        fewest[fits] = readings
    return fewest
