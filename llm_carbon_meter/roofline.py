"""Throughput and time that a GPU's peaks allow a kernel (Eq 8 of the LLMCO2 paper, and corrected).

Launch gaps and latency are not in it.
"""

from llm_carbon_meter.kernels import KernelTotals
from llm_carbon_meter.phases import Mode
from llm_carbon_meter.specs import GpuSpec


def throughput(kernel: KernelTotals, gpu: GpuSpec, mode: Mode = "corrected") -> float:
    """Operations per second under the roofline [P]; 0 for a kernel without operations."""
    if not kernel.operations:
        return 0.0
    if mode == "paper":
        return _paper_throughput(kernel, gpu)
    return kernel.operations / seconds(kernel, gpu)


def seconds(kernel: KernelTotals, gpu: GpuSpec) -> float:
    """Time of a kernel over its phase, each time it stands in the model: the slowest resource."""
    computing = kernel.operations / gpu.peak(kernel.peak) if kernel.peak else 0.0
    return max(
        computing,
        kernel.moved_bytes / gpu.bandwidth_bytes_per_s,
        kernel.network_bytes / gpu.link_bytes_per_s,
    )


def _paper_throughput(kernel: KernelTotals, gpu: GpuSpec) -> float:
    """Eq 8 with the peaks of Table 2: the network bounds an all-reduce, memory all others."""
    if kernel.kind == "allreduce":
        moved, per_second = kernel.network_bytes, gpu.paper_link_bytes_per_s
    else:
        moved, per_second = kernel.moved_bytes, gpu.bandwidth_bytes_per_s
    if not moved:
        return gpu.paper_ops_per_s
    return min(gpu.paper_ops_per_s, per_second * kernel.operations / moved)
