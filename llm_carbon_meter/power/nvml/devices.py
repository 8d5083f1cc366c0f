"""Which GPUs are meant: by index, UUID or MIG slice, and in the order of CUDA_VISIBLE_DEVICES."""

from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from typing import Any

from llm_carbon_meter.power.nvml.binding import MODELLED, text
from llm_carbon_meter.records import PowerError


def visible_devices(environment_value: str | None, first: int, count: int) -> list[str]:
    """Devices ``first`` to ``first + count - 1`` of CUDA_VISIBLE_DEVICES, as ``open_nvml`` wants.

    None is an unset variable: all GPUs, by index. As in CUDA, the list ends at the first entry that
    is no device. CUDA's index is NVML's only with ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` or GPUs of one
    type; entries that are UUIDs are always exact.

    Raises:
        PowerError: the variable shows fewer GPUs.
    """
    wanted = range(first, first + count)
    if environment_value is None:
        return [str(index) for index in wanted]
    visible = listed_devices(environment_value)
    if len(visible) < wanted.stop:
        raise PowerError(
            f"this engine uses GPUs {first} to {wanted.stop - 1} of CUDA_VISIBLE_DEVICES="
            f"{environment_value!r}, which shows {len(visible)}; list at least {wanted.stop} GPUs"
        )
    return [visible[index] for index in wanted]


def listed_devices(environment_value: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES up to the first that is no device, where CUDA stops."""
    devices = [entry.strip() for entry in environment_value.split(",")]
    return list(takewhile(_is_device, devices))


def _is_device(entry: str) -> bool:
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))


def find(nvml: Any, device: str) -> Any:
    """Handle of a whole GPU, also where a slice of it is named.

    Raises:
        PowerError: there is no such device; the text lists those that there are.
        NVMLError: the driver does not answer.
    """
    if device.isdecimal():
        return _by_index(nvml, int(device))
    handle = _by_uuid(nvml, device)
    if device.startswith("MIG-"):
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return handle


def _by_index(nvml: Any, index: int) -> Any:
    count = nvml.nvmlDeviceGetCount()
    if index >= count:
        raise PowerError(
            f"GPU {index} was asked for, NVML found {count}, numbered from 0; correct "
            f"CUDA_VISIBLE_DEVICES or give the container more GPUs, {MODELLED}"
        )
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _by_uuid(nvml: Any, uuid: str) -> Any:
    """Also by the first characters of a GPU's UUID if they fit one GPU, as CUDA allows."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        handles = {text(partial(nvml.nvmlDeviceGetUUID, gpu)): gpu for gpu in every_gpu(nvml)}
        matches = [full for full in handles if uuid and full.startswith(uuid)]
        if len(matches) == 1:
            return handles[matches[0]]
        raise PowerError(
            f"device {uuid!r} was asked for, NVML found {', '.join(handles) or 'no GPU'}; use an "
            f"index, GPU-… or MIG-… in CUDA_VISIBLE_DEVICES (nvidia-smi -L), {MODELLED}"
        ) from None


def every_gpu(nvml: Any) -> Iterator[Any]:
    """Handles in NVML's order."""
    for index in range(nvml.nvmlDeviceGetCount()):
        yield nvml.nvmlDeviceGetHandleByIndex(index)
