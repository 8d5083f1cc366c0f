"""What NVML says of an engine's GPUs when it starts: their name, and the power they may draw."""

from collections.abc import Sequence
from typing import NamedTuple

from llm_carbon_meter.power.nvml.binding import binding, explained
from llm_carbon_meter.power.nvml.devices import find
from llm_carbon_meter.power.nvml.sensors import gpu_name, instance_name, power_limit_watts
from llm_carbon_meter.records import PowerError


class EngineGpus(NamedTuple):
    """The GPUs of one engine."""

    name: str
    """Of the first; of a MIG instance its own."""
    power_limit_watts: float | None
    """The lowest that is enforced; None where no GPU says."""


def engine_gpus(devices: Sequence[str]) -> EngineGpus:
    """Look at devices given as for ``open_nvml``, in a session that ends here.

    Raises:
        PowerError: no driver, no such device, or none was given.
    """
    if not devices:
        raise PowerError("the GPUs of an engine were looked up, and it has none")
    nvml = binding()
    with explained(nvml, "opening NVML failed"):
        nvml.nvmlInit()
    try:
        with explained(nvml, "the engine's GPUs were looked up"):
            handles = [find(nvml, device) for device in devices]
            names = [
                instance_name(nvml, device) or gpu_name(nvml, handle)
                for device, handle in zip(devices, handles, strict=True)
            ]
            limits = [power_limit_watts(nvml, handle) for handle in handles]
        return EngineGpus(names[0], min((w for w in limits if w is not None), default=None))
    finally:
        nvml.nvmlShutdown()
