"""What a GPU says of its clocks, its temperature and what slows it down: for measurements."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from llm_carbon_meter.power.nvml.binding import ask, binding, explained
from llm_carbon_meter.power.nvml.devices import find
from llm_carbon_meter.power.nvml.sensors import power_limit_watts

REASONS: Final = {
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons; the others are settings, or that it is idle."""
THROTTLED: Final = frozenset(("hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"))
"""A GPU at its power limit does what it was set to do; with these it cannot."""


class State(NamedTuple):
    """Several GPUs at one moment; None where they do not say."""

    sm_clock_mhz: float | None
    """Of the slowest."""
    temperature_c: float | None
    """Of the warmest."""
    reasons: frozenset[str]
    """Of `REASONS`, of any of them."""


class StateReader:
    """A session of NVML that asks GPUs for their state.

    Args:
        devices: as for ``open_nvml``.

    Raises:
        PowerError: no driver or no such device.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._nvml = binding()
        with explained(self._nvml, "opening NVML failed"):
            self._nvml.nvmlInit()
            self._handles = [find(self._nvml, device) for device in devices]

    def read(self) -> State:
        """All GPUs now.

        Raises:
            PowerError: one of them is lost.
        """
        nvml, handles = self._nvml, self._handles
        with explained(nvml, "the GPUs' clocks were read"):
            clocks = [self._number("nvmlDeviceGetClockInfo", value, 1) for value in handles]
            warm = [self._number("nvmlDeviceGetTemperature", value, 0) for value in handles]
            bits = [self._number("nvmlDeviceGetCurrentClocksEventReasons", h) for h in handles]
        reasons = [int(value) for value in bits if value is not None]
        return State(
            min((value for value in clocks if value is not None), default=None),
            max((value for value in warm if value is not None), default=None),
            frozenset(
                name for name, bit in REASONS.items() if any(value & bit for value in reasons)
            ),
        )

    def power_limit_watts(self) -> float | None:
        """Of one GPU, as it is enforced; None where it does not say.

        Raises:
            PowerError: it is lost.
        """
        with explained(self._nvml, "the GPU's power limit was read"):
            return power_limit_watts(self._nvml, self._handles[0])

    def _number(self, call: str, handle: Any, *arguments: int) -> float | None:
        asked = getattr(self._nvml, call)
        return ask(self._nvml, lambda: float(asked(handle, *arguments)), None)

    def close(self) -> None:
        """End the session."""
        self._nvml.nvmlShutdown()
