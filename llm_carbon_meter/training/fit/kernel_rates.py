"""What measured kernels say of the step law: how far each GPU is from its data sheet's rates.

End-to-end measurements do not tell a GPU's efficiency from an engine's host code; kernels do. Each
kind of kernel takes the sum of what it streams, computes and moves, each times a rate, and a floor.
A GEMM computes while it streams: as in the law, the longer counts, which describes the tables twice
as well as the sum (errors of some 7 and 14 %). Attention and experts, in tables of all sizes, are
described no better by it. Only kernels that stream more than twice the L2 cache count, since the
tables repeat each kernel, and small weights stay in the cache.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.physics.gpu_specs import GpuSpec, gpu_spec
from llm_carbon_meter.predictor.step_law import longer
from llm_carbon_meter.training.data.files import Manifest, Refused
from llm_carbon_meter.training.data.kernel_tables import KernelTable, kernel_tables

Floats = NDArray[np.float64]

ELEMENT: Final = 2.0
"""Bytes; the tables' 16-bit rows alone are fitted."""
SOFTMAX_OPS: Final = 5.0
BEND: Final = 0.15
"""Relative error beyond which a kernel counts less."""
ROUNDS: Final = 30
LEAST_ROWS: Final = 200
"""A table with fewer that count says nothing."""


@dataclass(frozen=True, slots=True)
class KernelRates:
    """Measured / data sheet, of terms of the step law."""

    gpus: Mapping[str, Mapping[str, float]]
    """GPU -> term -> ratio."""

    def mean(self, term: str) -> float | None:
        """Of all GPUs that were measured, in logarithms; None where none was."""
        ratios = [rates[term] for rates in self.gpus.values() if term in rates]
        return float(np.exp(np.mean(np.log(ratios)))) if ratios else None

    def deviation(self, gpu: str, term: str) -> float | None:
        """Logarithm of a GPU's ratio against the mean; a variant of a chip is like the chip."""
        rates = self.gpus.get(gpu) or self.gpus.get(gpu.partition("-")[0]) or {}
        mean = self.mean(term)
        return float(np.log(rates[term] / mean)) if mean and term in rates else None


NO_RATES: Final = KernelRates({})


def kernel_rates(folder: Path, accepted: Manifest | None = None) -> KernelRates:
    """Fit every 16-bit kernel table of a data folder.

    Raises:
        ConfigError: a file is missing.
    """
    sums: dict[str, dict[str, Floats]] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for table in kernel_tables(folder, accepted):
        if not isinstance(table, Refused):
            rates, rows = _rates(table)
            for term, ratio in rates.items():
                sums[table.gpu][term] += (rows * np.log(ratio), rows)
    means = {
        gpu: {term: float(np.exp(total / rows)) for term, (total, rows) in terms.items()}
        for gpu, terms in sums.items()
    }
    return KernelRates(dict(sorted(means.items())))


def _rates(table: KernelTable) -> tuple[Mapping[str, float], int]:
    """Ratios of one table, of the terms that its kind of kernel tells, and the rows they are of."""
    gpu = gpu_spec(table.gpu)
    fits = {
        "gemm": _gemm,
        "context_attention": _prefill_attention,
        "generation_attention": _decode_attention,
        "moe": _experts,
    }
    fit = fits[table.op](table, gpu)
    counts = fit.counts & (table.columns["dtype"] == "bfloat16") & _no_window(table)
    if counts.sum() < LEAST_ROWS:
        return {}, 0
    parts = [part[counts] for part in fit.parts]
    rates = positive_fit(parts, table.latency_s[counts], fit.meanwhile)
    return dict(zip(fit.names, rates.tolist(), strict=False)), int(counts.sum())


class Fit(NamedTuple):
    """What is fitted to a table."""

    names: Sequence[str]
    """Of the terms that it tells: the first of the parts."""
    parts: Sequence[Floats]
    """Seconds at the data sheet's rates; the last one is the floor."""
    counts: NDArray[np.bool_]
    """Rows that count."""
    meanwhile: int | None = None
    """The part that goes on while the others do; None where all come one after the other."""


def _gemm(table: KernelTable, gpu: GpuSpec) -> Fit:
    m, n, k = _columns(table, "m", "n", "k")
    weights = ELEMENT * n * k
    streamed = [weights, ELEMENT * m * (n + k)]
    seconds = [part / gpu.bandwidth_bytes_per_s for part in streamed]
    computing = 2 * m * n * k / gpu.peak("bfloat16")
    large = weights > 2 * gpu.l2_bytes
    parts = [seconds[0], computing, seconds[1], np.ones_like(m)]
    return Fit(("weights", "products"), parts, large, meanwhile=1)


def _prefill_attention(table: KernelTable, gpu: GpuSpec) -> Fit:
    batch, tokens = _columns(table, "batch_size", "input_tokens_per_sequence")
    heads, kv_heads, dim = _columns(table, "num_heads", "num_key_value_heads", "head_dim")
    operations = batch * tokens * (tokens + 1) / 2 * (4 * dim + SOFTMAX_OPS) * heads
    moved = ELEMENT * batch * tokens * 2 * (heads + kv_heads) * dim
    seconds = [operations / gpu.peak("bfloat16"), moved / gpu.bandwidth_bytes_per_s]
    return Fit(("attention",), [*seconds, np.ones_like(batch)], operations > 0)


def _decode_attention(table: KernelTable, gpu: GpuSpec) -> Fit:
    batch, context = _columns(table, "batch_size", "context_step_tokens")
    heads, kv_heads, dim = _columns(table, "num_heads", "num_key_value_heads", "head_dim")
    read = ELEMENT * batch * (context + 1) * 2 * kv_heads * dim
    queries = ELEMENT * batch * 2 * (heads + kv_heads) * dim
    seconds = [part / gpu.bandwidth_bytes_per_s for part in (read, queries)]
    return Fit(("cache",), [*seconds, np.ones_like(batch)], read > 2 * gpu.l2_bytes)


def _experts(table: KernelTable, gpu: GpuSpec) -> Fit:
    tokens, hidden, inner = _columns(table, "num_tokens", "hidden_size", "inter_size")
    chosen, experts = _columns(table, "topk", "num_experts")
    tensor_parallel, expert_parallel = _columns(table, "moe_tp_size", "moe_ep_size")
    width = inner / tensor_parallel
    touched = experts / expert_parallel * (1 - (1 - chosen / experts) ** tokens)
    routed = tokens * chosen / expert_parallel
    streamed = ELEMENT * 3 * hidden * width * touched
    moved = ELEMENT * routed * (2 * hidden + 3 * width)
    seconds = [part / gpu.bandwidth_bytes_per_s for part in (streamed, moved)]
    computing = 6 * routed * hidden * width / gpu.peak("bfloat16")
    names = ("expert_weights", "expert_products")
    parts = [seconds[0], computing, seconds[1], np.ones_like(tokens)]
    return Fit(names, parts, tokens > 0)


def _columns(table: KernelTable, *names: str) -> Iterator[Floats]:
    return (np.asarray(table.columns[name], np.float64) for name in names)


def _no_window(table: KernelTable) -> NDArray[np.bool_]:
    """Attention to everything; the column is empty where there is no window."""
    windows = table.columns.get("window_size")
    if windows is None:
        return np.ones(len(table.latency_s), np.bool_)
    return np.isin(windows, ("", "0", "0.0"))


def positive_fit(parts: Sequence[Floats], measured: Floats, meanwhile: int | None = None) -> Floats:
    """Rates above 0 by which parts add up to what was measured, relative errors counting.

    Gauss-Newton on the logarithms, with Huber's weights.

    Args:
        parts: one array for each rate, shape (rows,).
        measured: above 0, shape (rows,).
        meanwhile: the part that goes on while all others but the last do: of both, the longer
            counts, as in `step_law.longer`.
    """
    design = np.stack(parts, axis=1) / measured[:, None]
    logs = np.log(np.full(design.shape[1], 1.0))
    logs[-1] = np.log(np.median(measured) / 4)
    computing = np.arange(len(logs)) == meanwhile
    moving = ~computing
    moving[-1] = False
    for _ in range(ROUNDS):
        shares = design * np.exp(logs)
        moved, computed = (shares[:, side].sum(1) for side in (moving, computing))
        kernel = longer(moved, computed)
        total = kernel + shares[:, -1]
        errors = -np.log(total)
        # Of the fourth root of a sum of fourth powers.
        shares[:, moving] *= (moved / kernel)[:, None] ** 3
        shares[:, computing] *= (computed / kernel)[:, None] ** 3
        jacobian = shares / total[:, None]
        weights = np.minimum(1.0, BEND / np.maximum(np.abs(errors), 1e-12))
        moments = jacobian.T @ (weights[:, None] * jacobian) + 1e-3 * np.eye(len(logs))
        logs += np.clip(np.linalg.solve(moments, jacobian.T @ (weights * errors)), -1.0, 1.0)
    return np.asarray(np.exp(logs))
