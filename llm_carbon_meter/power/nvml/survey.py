"""The GPUs of a host as NVML names them, for people: nothing here is read while serving."""

from collections.abc import Sequence
from typing import NamedTuple

from llm_carbon_meter.power.nvml.architectures import Architecture
from llm_carbon_meter.power.nvml.binding import binding, explained
from llm_carbon_meter.power.nvml.devices import every_gpu, find
from llm_carbon_meter.power.nvml.sensors import chips, processes, scope
from llm_carbon_meter.records import Quality


class GpuFacts(NamedTuple):
    """One GPU."""

    device: str
    """As it was asked for."""
    uuid: str
    name: str
    architecture: Architecture
    scope: Quality
    """Scope of its sensors; COUNTER where they count this GPU alone."""
    processes: Sequence[int]
    """Processes that compute on the GPU, as the driver numbers them."""


class Survey(NamedTuple):
    """A host's driver and GPUs."""

    driver: str
    num_gpus: int
    gpus: Sequence[GpuFacts]
    """The GPUs that were asked for."""


def survey(devices: Sequence[str] | None) -> Survey:
    """Look at devices given as for ``open_nvml``; None: at all.

    Raises:
        PowerError: no driver or no such device.
    """
    nvml = binding()
    with explained(nvml, "opening NVML failed"):
        nvml.nvmlInit()
    try:
        with explained(nvml, "the GPUs were listed"):
            count = len(list(every_gpu(nvml)))
            wanted = [str(index) for index in range(count)] if devices is None else devices
            gpus = []
            for device in wanted:
                handle = find(nvml, device)
                uuid = nvml.nvmlDeviceGetUUID(handle)
                name, architecture = chips(nvml, handle)
                users = processes(nvml, handle)
                gpus.append(GpuFacts(device, uuid, name, architecture, scope(nvml, handle), users))
            return Survey(str(nvml.nvmlSystemGetDriverVersion()), count, gpus)
    finally:
        nvml.nvmlShutdown()
