"""What one GPU can be asked, found by calling, and how far its answers can be trusted."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from llm_carbon_meter.power.nvml.architectures import Architecture, architecture, measured
from llm_carbon_meter.power.nvml.binding import (
    COUNTER_FIELD,
    INSTANT_FIELD,
    ask,
    field_values,
    text,
    value,
)
from llm_carbon_meter.records import Quality
from llm_carbon_meter.units import MILLI


@dataclass(frozen=True, slots=True)
class Sensors:
    """What a GPU answers, found by calling: virtual GPUs lack what their architecture promises."""

    counter_field: bool
    counter_call: bool
    instant_field: bool

    @property
    def counts(self) -> bool:
        """Whether the GPU has an energy counter."""
        return self.counter_field or self.counter_call

    @property
    def quality(self) -> Quality:
        """Of its joules, if nothing else is wrong."""
        return Quality.COUNTER if self.counts else Quality.POWER

    @property
    def fields(self) -> tuple[int, ...]:
        """To be asked in one call."""
        supported = ((COUNTER_FIELD, self.counter_field), (INSTANT_FIELD, self.instant_field))
        return tuple(number for number, answers in supported if answers)

    def without_counter(self) -> Self:
        """Sensors of a GPU whose counter is not believed."""
        return replace(self, counter_field=False, counter_call=False)

    def read(self, nvml: Any, handle: Any) -> tuple[float | None, float | None]:
        """Millijoules and milliwatts, None where the GPU has none; NVMLError if it fails."""
        values = field_values(nvml, handle, self.fields)
        power = values.get(INSTANT_FIELD)
        if not self.counts:
            return None, value(nvml, power) if power else nvml.nvmlDeviceGetPowerUsage(handle)
        if self.counter_field:
            millijoules = value(nvml, values[COUNTER_FIELD])
        else:
            millijoules = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        # With a counter, power is for display, and to know whether a 0 is to be believed.
        with suppress(nvml.NVMLError):
            if power is not None:
                return millijoules, value(nvml, power)
            if not millijoules:
                return millijoules, nvml.nvmlDeviceGetPowerUsage(handle)
        return millijoules, None


def probe_sensors(nvml: Any, handle: Any) -> Sensors:
    """Ask a GPU for everything once.

    Raises:
        NVMLError: it has neither counter nor power.
    """
    counter_field = _answers(nvml, lambda: _one_field(nvml, handle, COUNTER_FIELD))
    counter_call = not counter_field and _answers(
        nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    )
    instant_field = _answers(nvml, lambda: _one_field(nvml, handle, INSTANT_FIELD))
    if not (counter_field or counter_call or instant_field):
        nvml.nvmlDeviceGetPowerUsage(handle)  # the last resort: its error is the probe's
    return Sensors(counter_field, counter_call, instant_field)


def scope(nvml: Any, handle: Any) -> Quality:
    """Scope of the sensors: COUNTER where they count this GPU alone.

    Raises:
        NVMLError: the GPU is lost.
    """
    if _mig_enabled(nvml, handle):
        return Quality.MIG_PARENT
    return Quality.MODULE_SCOPE if _is_module(nvml, handle) else Quality.COUNTER


def processes(nvml: Any, handle: Any) -> list[int]:
    """Numbers of the processes that compute on a GPU, as the driver has them; takes long."""
    listed: list[Any] = ask(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle), [])
    return [process.pid for process in listed]


def power_limit_watts(nvml: Any, handle: Any) -> float | None:
    """What the driver lets a GPU draw; None where it does not say."""
    limit = ask(nvml, lambda: float(nvml.nvmlDeviceGetEnforcedPowerLimit(handle)), None)
    return None if limit is None else limit * MILLI


def instance_name(nvml: Any, device: str) -> str:
    """The name of a MIG instance, with its profile; empty where a device is none."""
    if not device.startswith("MIG-"):
        return ""
    return ask(nvml, lambda: gpu_name(nvml, nvml.nvmlDeviceGetHandleByUUID(device)), "")


def gpu_name(nvml: Any, handle: Any) -> str:
    """The name of a GPU, or of a MIG instance by its own handle."""
    return text(lambda: nvml.nvmlDeviceGetName(handle))


def gpu_uuid(nvml: Any, handle: Any) -> str:
    """The UUID of a GPU."""
    return text(lambda: nvml.nvmlDeviceGetUUID(handle))


def chips(nvml: Any, handle: Any) -> tuple[str, Architecture]:
    """A GPU's name and the sensors that such GPUs have by the manual."""
    name, unknown = gpu_name(nvml, handle), int(nvml.NVML_DEVICE_ARCH_UNKNOWN)
    number = ask(nvml, lambda: int(nvml.nvmlDeviceGetArchitecture(handle)), unknown)
    return name, architecture(number, name)


def sensor_delay_s(nvml: Any, handle: Any, sensors: Sensors) -> float:
    """How much later than it was drawn a GPU shows its energy, as far as is known of its type."""
    name, kind = chips(nvml, handle)
    seen = measured(name)
    if sensors.counts:
        return seen.lag_s if seen else 0.0
    return 0.0 if sensors.instant_field else kind.usage_delay_s


def _mig_enabled(nvml: Any, handle: Any) -> bool:
    current = ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0], None)  # most have no MIG
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _is_module(nvml: Any, handle: Any) -> bool:
    """Grace Hopper: a CPU hangs on the same board, joined by NVLink-C2C, and its joules count."""
    call = getattr(nvml, "nvmlDeviceGetC2cModeInfoV", None)  # an old binding has it not
    return call is not None and ask(nvml, lambda: bool(call(handle).isC2cEnabled), False)


def _answers(nvml: Any, call: Callable[[], object]) -> bool:
    try:
        call()
    except nvml.NVMLError:
        return False
    return True


def _one_field(nvml: Any, handle: Any, number: int) -> float:
    return value(nvml, field_values(nvml, handle, (number,))[number])
