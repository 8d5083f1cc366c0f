"""The graph and the roofline exactly as the LLMCO2 paper has them (Figure 8, Eq 8, Table 2).

For comparison with the paper alone; the kernels of its equations are in paper_kernels.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from llm_carbon_meter.physics.gpu_specs import GIGA, TERA, GpuSpec
from llm_carbon_meter.physics.kernel_graph import Edge, LayerGraph, chain, fan
from llm_carbon_meter.physics.kernels import KernelTotals
from llm_carbon_meter.physics.model_specs import ModelSpec

EDGES: Final[Sequence[Edge]] = (
    *fan(["norm_attn"], ["k_proj", "q_proj", "v_proj"]),
    *fan(["k_proj", "q_proj", "v_proj"], ["fuse_attn"]),
    *chain("fuse_attn", "out_proj", "allreduce_1", "add_attn", "norm_mlp"),
    *fan(["norm_mlp"], ["up_proj", "gate_proj"]),
    *fan(["up_proj", "gate_proj"], ["act_mlp"]),
    *chain("act_mlp", "down_proj", "allreduce_2", "add_mlp"),
    ("add_attn", "add_mlp"),
)


class PrintedPeaks(NamedTuple):
    """A row of Table 2."""

    ops_per_s: float
    """FP16, with sparsity where the data sheet has it."""
    link_bytes_per_s: float
    """Both directions."""


PEAKS: Final[Mapping[str, PrintedPeaks]] = {
    "T4": PrintedPeaks(65 * TERA, 64 * GIGA),
    "L4": PrintedPeaks(242 * TERA, 64 * GIGA),
    "A100": PrintedPeaks(624 * TERA, 600 * GIGA),
    "H100": PrintedPeaks(1979 * TERA, 900 * GIGA),
}
"""By the names of data/gpus.toml."""


def paper_graph(model: ModelSpec) -> LayerGraph:
    """The 15 nodes of a layer (Figure 8), the same for every model."""
    return LayerGraph(_names(EDGES), (model.num_layers,) * len(_names(EDGES)), tuple(EDGES))


def _names(edges: Iterable[Edge]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for edge in edges for name in edge))


def paper_throughput(kernel: KernelTotals, gpu: GpuSpec) -> float:
    """Operations per second (Eq 8): the network bounds an all-reduce, memory all others.

    Args:
        kernel: of one phase, as `paper_kernels.paper_totals` has it.
        gpu: one of `PEAKS`.
    """
    peaks = PEAKS[gpu.name]
    if not kernel.operations:
        return 0.0
    if kernel.kind == "allreduce":
        moved_bytes, per_second = kernel.network_bytes, peaks.link_bytes_per_s
    else:
        moved_bytes, per_second = kernel.moved_bytes, gpu.bandwidth_bytes_per_s
    if not moved_bytes:
        return peaks.ops_per_s
    return min(peaks.ops_per_s, per_second * kernel.operations / moved_bytes)
