"""NVML: the energy counter of NVIDIA GPUs, or their power where they have no counter.

Opened in the process that reads. NVML's millijoules and milliwatts end here. Beside this:
binding.py (pynvml and its errors), devices.py (which GPU), sensors.py (what it has).
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from llm_carbon_meter.power.contention import Judge, Sharing
from llm_carbon_meter.power.integral import PowerIntegral
from llm_carbon_meter.power.nvml.binding import MODELLED, binding, explain, explained, lost
from llm_carbon_meter.power.nvml.board_power import JumpWatch, board_watts
from llm_carbon_meter.power.nvml.devices import find
from llm_carbon_meter.power.nvml.sensors import (
    Sensors,
    gpu_uuid,
    probe_sensors,
    processes,
    scope,
    sensor_delay_s,
)
from llm_carbon_meter.records import EnergyReading, PowerError, Quality, Source
from llm_carbon_meter.units import MILLI

REOPEN_INTERVAL_S: Final = 1.0
ZERO_BELIEVED_S: Final = 1.0
"""A counter at 0 for longer, while power is drawn, is none: virtual GPUs have such."""


def open_nvml(
    devices: Sequence[str],
    clock: Callable[[], float] = time.monotonic,
    *,
    mig_parent: bool = False,
) -> "NvmlMeter":
    """Open NVML for devices given as index ("0"), ``GPU-…`` or ``MIG-…``, and probe their sensors.

    A MIG slice has no sensor: where its GPU's counter may stand for it, that is read, once.

    Args:
        devices: as `visible_devices` gives them.
        clock: monotonic.
        mig_parent: somebody says that all slices of the GPUs are ours.

    Raises:
        PowerError: no driver, no such device, a GPU with neither counter nor power, or with MIG.
    """
    if not devices:
        raise PowerError(f"NVML was opened for no GPU; name at least one, {MODELLED}")
    nvml = binding()
    with ExitStack() as session:
        with explained(nvml, "opening NVML failed"):
            nvml.nvmlInit()
        session.callback(nvml.nvmlShutdown)
        gpus: dict[str, _Gpu] = {}
        for device in devices:
            with explained(nvml, f"GPU {device} was looked up"):
                gpu = _probe(nvml, device)
            if gpu.standing is Quality.MIG_PARENT and not mig_parent:
                raise _mig_refused(device)
            gpus.setdefault(gpu.uuid, gpu)
        session.pop_all()
    return NvmlMeter(nvml, list(gpus.values()), clock)


@dataclass(slots=True)
class _Gpu:
    uuid: str
    handle: Any
    """None while the GPU is lost: an old handle may name another GPU in a new session."""
    sensors: Sensors
    standing: Quality
    """Scope of a GPU's sensors, and who shares the GPU."""
    delay_s: float
    """How much later than it was drawn the sensors show the energy, as far as is known."""
    watch: JumpWatch
    integral: PowerIntegral = field(default_factory=PowerIntegral)
    zero_since_s: float | None = None
    """Since when the counter has said 0 while power was drawn."""

    @property
    def quality(self) -> Quality:
        """The worst of its standing and of what its sensors are."""
        return worst(self.standing, self.sensors.quality)


class NvmlMeter:
    """PowerMeter over GPUs that ``open_nvml`` has resolved; owns one session of NVML."""

    source = Source.MEASURED

    def __init__(self, nvml: Any, gpus: Sequence[_Gpu], clock: Callable[[], float]) -> None:
        self.gpus: Sequence[str] = tuple(gpu.uuid for gpu in gpus)
        self.quality = worst(*(gpu.quality for gpu in gpus))
        self._nvml = nvml
        self._gpus = gpus
        self._clock = clock
        self._pid = os.getpid()
        self._session_open = True
        self._closed = False
        self._session_lost = False
        self._reopened_s = float("-inf")

    def read(self) -> Sequence[EnergyReading]:
        """Read every GPU once; one that fails is left out and tried again at the next read.

        Raises:
            PowerError: none answered, the meter was closed, or this is a fork of its process.
        """
        self._check_usable()
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
        self._session_lost = any(lost(self._nvml, error) for error in errors)
        if not readings:
            raise explain(self._nvml, errors[0], f"{', '.join(self.gpus)}: all were read")
        return readings

    def review(self, judge: Judge) -> None:
        """Ask what changes rarely, in milliseconds: MIG, module, processes. From any thread."""
        self._check_usable()
        for gpu in self._gpus:
            handle = gpu.handle
            if handle is not None:
                with suppress(self._nvml.NVMLError):  # lost meanwhile: what was known stays
                    gpu.standing = self._standing(gpu.uuid, handle, judge)

    def close(self) -> None:
        """End the session; a second call does nothing, and neither does a fork's."""
        self._closed = True
        if os.getpid() == self._pid:
            self._end_session()

    def _standing(self, uuid: str, handle: Any, judge: Judge) -> Quality:
        sharing = judge(uuid, processes(self._nvml, handle))
        shared = Quality.CONTENDED if sharing is Sharing.SHARED else Quality.COUNTER
        return worst(scope(self._nvml, handle), shared)

    def _check_usable(self) -> None:
        if self._closed:
            raise PowerError("NVML was read after close(); open a new meter")
        if os.getpid() != self._pid:
            raise PowerError(
                f"NVML was opened by process {self._pid} and read by its fork {os.getpid()}; a "
                "session does not survive a fork: open a new meter after it"
            )

    def _measure(self, gpu: _Gpu) -> EnergyReading:
        if gpu.handle is None:
            raise self._nvml.NVMLError(self._nvml.NVML_ERROR_GPU_IS_LOST)
        before_s = self._clock()
        millijoules, milliwatts = gpu.sensors.read(self._nvml, gpu.handle)
        monotonic_s = (before_s + self._clock()) / 2 - gpu.delay_s
        watts = None if milliwatts is None else milliwatts * MILLI
        joules = _joules(gpu, monotonic_s, millijoules, watts)
        gap = not gpu.sensors.counts and not gpu.integral.bridged
        quality = Quality.RESET if gap else gpu.quality
        if gpu.watch.jumps(monotonic_s, joules):
            quality = Quality.IMPOSSIBLE
        return EnergyReading(monotonic_s, gpu.uuid, joules, watts, quality, gpu.delay_s)

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


def worst(*qualities: Quality) -> Quality:
    """The one that promises least."""
    return max(qualities, key=lambda quality: quality.rank)


def _joules(gpu: _Gpu, at_s: float, millijoules: float | None, watts: float | None) -> float:
    """The counter's joules, or power's where there is no counter to believe."""
    if millijoules is None:
        assert watts is not None
        return gpu.integral.add(at_s, watts)
    if millijoules or not watts:
        gpu.zero_since_s = None
        return millijoules * MILLI
    return _joules_at_zero(gpu, at_s, watts)


def _joules_at_zero(gpu: _Gpu, at_s: float, watts: float) -> float:
    """The counter says 0 while power is drawn: right for a moment after a reset, not for longer."""
    if gpu.zero_since_s is None:
        gpu.zero_since_s, gpu.integral = at_s, PowerIntegral()
    joules = gpu.integral.add(at_s, watts)
    if at_s - gpu.zero_since_s <= ZERO_BELIEVED_S:
        return 0.0
    gpu.sensors = gpu.sensors.without_counter()
    return joules


def _probe(nvml: Any, device: str) -> _Gpu:
    handle = find(nvml, device)
    sensors = probe_sensors(nvml, handle)
    uuid, delay_s = gpu_uuid(nvml, handle), sensor_delay_s(nvml, handle, sensors)
    watch = JumpWatch(board_watts(nvml, handle))
    return _Gpu(uuid, handle, sensors, scope(nvml, handle), delay_s, watch)


def _mig_refused(device: str) -> PowerError:
    return PowerError(
        f"GPU {device} is in MIG mode; its slices have no counter and the GPU's own counts all of "
        f"them: set LLM_CARBON_METER_MIG_PARENT=1 if every slice of it is this engine's, {MODELLED}"
    )
