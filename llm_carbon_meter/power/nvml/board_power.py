"""What a GPU can draw at most, and counters that say more: a glitch is nobody's energy."""

from dataclasses import dataclass
from typing import Any, Final

from llm_carbon_meter.physics.gpu_specs import gpu_spec, is_known
from llm_carbon_meter.power.nvml.binding import ask
from llm_carbon_meter.power.nvml.sensors import gpu_name
from llm_carbon_meter.units import MILLI

MARGIN: Final = 2.0
"""Over the board's power: the sensors of a Grace Hopper module count its CPU, too."""
SLACK_S: Final = 1.0
"""What a counter shows at a move may have been drawn so long before its last one."""
LARGEST_WATTS: Final = 3000.0
"""Of a GPU of which neither data sheet nor driver says anything; no board comes near it."""


def board_watts(nvml: Any, handle: Any) -> float:
    """The board power of a GPU: by its data sheet, or the highest limit that can be set."""
    name = gpu_name(nvml, handle)
    sheet = gpu_spec(name).board_watts if is_known(name) else 0.0
    limits = ask(nvml, lambda: nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle), (0, 0))
    return max(sheet, limits[1] * MILLI) or LARGEST_WATTS


@dataclass(slots=True)
class JumpWatch:
    """Follows one GPU's cumulative joules."""

    board_watts: float
    _moved_s: float | None = None
    """When they last changed; None before the first reading."""
    _joules: float = 0.0

    def jumps(self, at_s: float, joules: float) -> bool:
        """Whether the joules rose by more than the GPU can have drawn since they last changed."""
        grown, before_s = joules - self._joules, self._moved_s
        if before_s is not None and not grown:
            return False
        self._moved_s, self._joules = at_s, joules
        if before_s is None:
            return False
        return grown > MARGIN * self.board_watts * (at_s - before_s + SLACK_S)
