"""Time that a GPU's peaks allow a kernel (the roofline of Eq 8 of the LLMCO2 paper).

Launch gaps and latency are not in it.
"""

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.kernels import KernelTotals


def seconds(kernel: KernelTotals, gpu: GpuSpec) -> float:
    """Time of a kernel over its phase, each time it stands in the model: the slowest resource."""
    computing = kernel.operations / gpu.peak(kernel.peak) if kernel.peak else 0.0
    return max(
        computing,
        kernel.moved_bytes / gpu.bandwidth_bytes_per_s,
        kernel.network_bytes / gpu.link_bytes_per_s,
    )
