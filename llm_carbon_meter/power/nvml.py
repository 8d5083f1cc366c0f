"""NVML: the energy counter of NVIDIA GPUs, or their power where they have no counter.

The only file that imports pynvml (of nvidia-ml-py), and only when a meter is opened, which must
happen in the process that reads. NVML's millijoules and milliwatts end here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from llm_carbon_meter.power.meter import PowerMeter
from llm_carbon_meter.records import EnergyReading, PowerError, Quality, Source
from llm_carbon_meter.units import MILLI

MAX_POWER_GAP_S: Final = 1.0
"""Longer gaps between two samples of power are not bridged: nobody knows their joules."""
REOPEN_INTERVAL_S: Final = 1.0

_COUNTER_FIELD: Final = 83  # NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, mJ
_INSTANT_FIELD: Final = 186  # NVML_FI_DEV_POWER_INSTANT, mW
# Indexed by nvmlValueType_t: the member of the union that holds the value.
_VALUE_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
_NEEDED_NAMES: Final = (
    "NVMLError",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
)
_MODELLED: Final = "or set LLM_CARBON_METER_POWER=modelled"


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
    visible: list[str] = []
    for entry in environment_value.split(","):
        device = entry.strip()
        if not (device.isdecimal() or device.startswith(("GPU-", "MIG-"))):
            break
        visible.append(device)
    if len(visible) < wanted.stop:
        raise PowerError(
            f"this engine uses GPUs {first} to {wanted.stop - 1} of CUDA_VISIBLE_DEVICES="
            f"{environment_value!r}, which shows {len(visible)}; list at least {wanted.stop} GPUs"
        )
    return [visible[index] for index in wanted]


def open_nvml(devices: Sequence[str], clock: Callable[[], float] = time.monotonic) -> PowerMeter:
    """Open NVML for devices given as index ("0"), ``GPU-…`` or ``MIG-…``, and probe their sensors.

    A MIG slice has no sensor: its whole GPU is read instead, once.

    Raises:
        PowerError: no driver, no such device, or a GPU with neither counter nor power.
    """
    if not devices:
        raise PowerError(f"NVML was opened for no GPU; name at least one, {_MODELLED}")
    nvml = _binding()
    with ExitStack() as session:
        with _explained(nvml, "NVML was opened"):
            nvml.nvmlInit()
        session.callback(nvml.nvmlShutdown)
        gpus: dict[str, _Gpu] = {}
        for device in devices:
            with _explained(nvml, f"GPU {device} was looked up"):
                gpu = _probe(nvml, device)
            gpus.setdefault(gpu.uuid, gpu)
        session.pop_all()
    return NvmlMeter(nvml, list(gpus.values()), clock)


class PowerIntegral:
    """Cumulative joules from samples of power: trapezoids between samples that follow closely."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._last: tuple[float, float] | None = None

    def add(self, monotonic_s: float, watts: float) -> float:
        """Take one sample and return the joules so far."""
        if self._last is not None:
            elapsed_s = monotonic_s - self._last[0]
            if elapsed_s <= MAX_POWER_GAP_S:
                self._joules += elapsed_s * (self._last[1] + watts) / 2
        self._last = monotonic_s, watts
        return self._joules

    def restart(self) -> None:
        """Forget the last sample: a read failed, so what lies between is unknown."""
        self._last = None


@dataclass(frozen=True, slots=True)
class _Sensors:
    """What a GPU answers, found by calling: virtual GPUs lack what their architecture promises."""

    counter_field: bool
    counter_call: bool
    instant_field: bool

    @property
    def counts(self) -> bool:
        return self.counter_field or self.counter_call

    @property
    def fields(self) -> tuple[int, ...]:
        supported = ((_COUNTER_FIELD, self.counter_field), (_INSTANT_FIELD, self.instant_field))
        return tuple(number for number, answers in supported if answers)

    def read(self, nvml: Any, handle: Any) -> tuple[float | None, float | None]:
        """Millijoules and milliwatts, None where the GPU has none; NVMLError if it fails."""
        values = _field_values(nvml, handle, self.fields)
        power = values.get(_INSTANT_FIELD)
        if not self.counts:
            # On Hopper nvmlDeviceGetPowerUsage is the average of the last second, not the power
            # now: the integral is right over long times, but about half a second late.
            return None, _value(nvml, power) if power else nvml.nvmlDeviceGetPowerUsage(handle)
        if self.counter_field:
            millijoules = _value(nvml, values[_COUNTER_FIELD])
        else:
            millijoules = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        # With a counter, power is for display: its failing fails nothing.
        shown = power is not None and power.nvmlReturn == nvml.NVML_SUCCESS
        return millijoules, _value(nvml, power) if shown else None


@dataclass(slots=True)
class _Gpu:
    uuid: str
    handle: Any
    """None while the GPU is lost: an old handle may name another GPU in a new session."""
    sensors: _Sensors
    quality: Quality
    integral: PowerIntegral = field(default_factory=PowerIntegral)


class NvmlMeter:
    """PowerMeter over GPUs that ``open_nvml`` has resolved; owns one session of NVML."""

    source = Source.MEASURED

    def __init__(self, nvml: Any, gpus: Sequence[_Gpu], clock: Callable[[], float]) -> None:
        self.gpus: Sequence[str] = tuple(gpu.uuid for gpu in gpus)
        self.quality = max((gpu.quality for gpu in gpus), key=lambda quality: quality.rank)
        self._nvml = nvml
        self._gpus = gpus
        self._clock = clock
        self._session_open = True
        self._closed = False
        self._session_lost = False
        self._reopened_s = float("-inf")

    def read(self) -> Sequence[EnergyReading]:
        """Read every GPU once; one that fails is left out and tried again at the next read.

        Raises:
            PowerError: none answered, or the meter was closed.
        """
        if self._closed:
            raise PowerError("NVML was read after close(); open a new meter")
        if self._session_lost and self._clock() - self._reopened_s >= REOPEN_INTERVAL_S:
            self._reopen()
        readings: list[EnergyReading] = []
        errors: list[Any] = []
        for gpu in self._gpus:
            try:
                readings.append(self._measure(gpu))
            except self._nvml.NVMLError as error:
                gpu.integral.restart()
                errors.append(error)
        lost = (self._nvml.NVML_ERROR_UNINITIALIZED, self._nvml.NVML_ERROR_GPU_IS_LOST)
        self._session_lost = any(error.value in lost for error in errors)
        if not readings:
            raise _explain(self._nvml, errors[0], f"{', '.join(self.gpus)}: all were read")
        return readings

    def close(self) -> None:
        """End the session; a second call does nothing."""
        self._closed = True
        self._end_session()

    def _measure(self, gpu: _Gpu) -> EnergyReading:
        if gpu.handle is None:
            raise self._nvml.NVMLError(self._nvml.NVML_ERROR_GPU_IS_LOST)
        before_s = self._clock()
        millijoules, milliwatts = gpu.sensors.read(self._nvml, gpu.handle)
        monotonic_s = (before_s + self._clock()) / 2
        watts = None if milliwatts is None else milliwatts * MILLI
        if millijoules is not None:
            joules = millijoules * MILLI
        else:
            assert watts is not None
            joules = gpu.integral.add(monotonic_s, watts)
        return EnergyReading(monotonic_s, gpu.uuid, joules, watts)

    def _end_session(self) -> None:
        # NVML counts its sessions: a shutdown too many would end that of vLLM in this process.
        if self._session_open:
            self._session_open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _reopen(self) -> None:
        self._reopened_s = self._clock()
        self._end_session()
        for gpu in self._gpus:
            gpu.handle = None
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlInit()
            self._session_open = True
        for gpu in self._gpus:
            with suppress(self._nvml.NVMLError):
                gpu.handle = self._nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)


def _probe(nvml: Any, device: str) -> _Gpu:
    handle, is_parent = _find(nvml, device)
    uuid = nvml.nvmlDeviceGetUUID(handle)
    sensors = _probe_sensors(nvml, handle)
    quality = Quality.COUNTER if sensors.counts else Quality.POWER
    if is_parent or _mig_enabled(nvml, handle):
        quality = Quality.MIG_PARENT
    return _Gpu(uuid, handle, sensors, quality)


def _find(nvml: Any, device: str) -> tuple[Any, bool]:
    """Handle of a whole GPU, and whether it stands for a MIG slice."""
    if device.isdecimal():
        return _by_index(nvml, int(device)), False
    if device.startswith("MIG-"):
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(_by_uuid(nvml, device)), True
    return _by_uuid(nvml, device), False


def _by_index(nvml: Any, index: int) -> Any:
    found = nvml.nvmlDeviceGetCount()
    if index >= found:
        raise PowerError(
            f"GPU {index} was asked for, NVML found {found}, numbered from 0; correct "
            f"CUDA_VISIBLE_DEVICES or give the container more GPUs, {_MODELLED}"
        )
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _by_uuid(nvml: Any, uuid: str) -> Any:
    """Also by the first characters of a GPU's UUID if they fit one GPU, as CUDA allows."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        handles = {nvml.nvmlDeviceGetUUID(handle): handle for handle in _every_gpu(nvml)}
        matches = [full for full in handles if uuid and full.startswith(uuid)]
        if len(matches) == 1:
            return handles[matches[0]]
        raise PowerError(
            f"device {uuid!r} was asked for, NVML found {', '.join(handles) or 'no GPU'}; use an "
            f"index, GPU-… or MIG-… in CUDA_VISIBLE_DEVICES (nvidia-smi -L), {_MODELLED}"
        ) from None


def _every_gpu(nvml: Any) -> Iterator[Any]:
    for index in range(nvml.nvmlDeviceGetCount()):
        yield nvml.nvmlDeviceGetHandleByIndex(index)


def _mig_enabled(nvml: Any, handle: Any) -> bool:
    with suppress(nvml.NVMLError):  # not supported: most GPUs have no MIG
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)
    return False


def _probe_sensors(nvml: Any, handle: Any) -> _Sensors:
    counter_field = _answers(nvml, lambda: _one_field(nvml, handle, _COUNTER_FIELD))
    counter_call = not counter_field and _answers(
        nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    )
    instant_field = _answers(nvml, lambda: _one_field(nvml, handle, _INSTANT_FIELD))
    if not (counter_field or counter_call or instant_field):
        nvml.nvmlDeviceGetPowerUsage(handle)  # the last resort: its error is the probe's
    return _Sensors(counter_field, counter_call, instant_field)


def _answers(nvml: Any, call: Callable[[], object]) -> bool:
    try:
        call()
    except nvml.NVMLError:
        return False
    return True


def _one_field(nvml: Any, handle: Any, number: int) -> float:
    return _value(nvml, _field_values(nvml, handle, (number,))[number])


def _field_values(nvml: Any, handle: Any, fields: tuple[int, ...]) -> dict[int, Any]:
    if not fields:
        return {}
    values = nvml.nvmlDeviceGetFieldValues(handle, fields)
    return dict(zip(fields, values, strict=True))


def _value(nvml: Any, value: Any) -> float:
    """The number in one field value; each carries its own error."""
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(value.nvmlReturn)
    return float(getattr(value.value, _VALUE_MEMBERS[value.valueType]))


def _binding() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise PowerError(
            f"pynvml was imported: {error}; pip install nvidia-ml-py, {_MODELLED}"
        ) from None
    missing = [name for name in _NEEDED_NAMES if not hasattr(pynvml, name)]
    if missing:
        where = getattr(pynvml, "__file__", "an unknown place")
        raise PowerError(
            f"pynvml was imported from {where}, which has no {missing[0]}: an old or another "
            "package; pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py"
        )
    return pynvml


@contextmanager
def _explained(nvml: Any, tried: str) -> Iterator[None]:
    try:
        yield
    except nvml.NVMLError as error:
        raise _explain(nvml, error, tried) from error


def _explain(nvml: Any, error: Any, tried: str) -> PowerError:
    """The one place where NVML's errors become ours: tried, found, what to do."""
    advice = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 is missing: install the NVIDIA "
        "driver, or in a container add the capability with NVIDIA_DRIVER_CAPABILITIES=utility",
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA driver (nvidia-smi must work), or "
        "give the container a GPU",
        nvml.NVML_ERROR_NO_PERMISSION: "let this user read /dev/nvidia*",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver and library differ: restart the host "
        "after the driver's update",
        nvml.NVML_ERROR_NOT_SUPPORTED: "the GPU has neither an energy counter nor a power sensor "
        "(usual for virtual GPUs)",
        nvml.NVML_ERROR_GPU_IS_LOST: "the GPU fell off the bus: see dmesg for Xid errors",
        nvml.NVML_ERROR_UNINITIALIZED: "NVML's session ended; it is opened again by itself",
    }.get(error.value, "see nvidia-smi and dmesg")
    return PowerError(f"{tried}; NVML says: {error} (code {error.value}); {advice}, {_MODELLED}")
