"""The GPUs of a host as NVML names them, for people: nothing here is read while serving."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_carbon_meter.power.nvml.architectures import Architecture
from llm_carbon_meter.power.nvml.binding import ask, binding, explained, text
from llm_carbon_meter.power.nvml.devices import every_gpu, find
from llm_carbon_meter.power.nvml.sensors import (
    chips,
    gpu_name,
    gpu_uuid,
    instance_name,
    power_limit_watts,
    processes,
    scope,
)
from llm_carbon_meter.records import Quality


class Clocks(NamedTuple):
    """Of the SMs, in MHz."""

    set_to: float
    """Application clock: the driver goes no higher where that is below the default."""
    default: float


class GpuFacts(NamedTuple):
    """One GPU."""

    device: str
    """As it was asked for."""
    uuid: str
    name: str
    instance: str
    """Name of the MIG instance that was asked for, with its profile; empty for a whole GPU."""
    power_limit_watts: float | None
    """That is enforced; None where the GPU does not say."""
    clocks: Clocks | None
    """None where the GPU does not say."""
    architecture: Architecture
    scope: Quality
    """Scope of its sensors; COUNTER where they count this GPU alone."""
    processes: Sequence[int]
    """Processes that compute on the GPU, as the driver numbers them."""


class Survey(NamedTuple):
    """A host's driver and GPUs."""

    driver: str
    names: Sequence[str]
    """Of all GPUs, in NVML's order."""
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
            names = [gpu_name(nvml, handle) for handle in every_gpu(nvml)]
            wanted = map(str, range(len(names))) if devices is None else devices
            gpus = [_facts(nvml, device) for device in wanted]
            return Survey(text(nvml.nvmlSystemGetDriverVersion), names, gpus)
    finally:
        nvml.nvmlShutdown()


def _facts(nvml: Any, device: str) -> GpuFacts:
    handle = find(nvml, device)
    name, architecture = chips(nvml, handle)
    return GpuFacts(
        device,
        gpu_uuid(nvml, handle),
        name,
        instance_name(nvml, device),
        power_limit_watts(nvml, handle),
        ask(nvml, lambda: _clocks(nvml, handle), None),
        architecture,
        scope(nvml, handle),
        processes(nvml, handle),
    )


def _clocks(nvml: Any, handle: Any) -> Clocks:
    return Clocks(
        float(nvml.nvmlDeviceGetApplicationsClock(handle, nvml.NVML_CLOCK_SM)),
        float(nvml.nvmlDeviceGetDefaultApplicationsClock(handle, nvml.NVML_CLOCK_SM)),
    )
