"""What each GPU architecture's sensors do: one table, and beside it what was measured per GPU.

Whether a sensor is there is found by calling, never from here. The facts are those of nvml.h
(13.5) and, for the share of time sampled, of "Part-time power measurements" (arXiv 2312.02741).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

MEASURED_FILE: Final = "sensors.json"
"""In llm_carbon_meter.data, written by ``pytest -m gpu`` and `make gpu-day`; absent until then."""
SIMULATED: Final = "simulated"
"""Source of a row that a rehearsal made: nobody measured that."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sensors of a family of chips."""

    name: str
    counts: bool
    """The manual says that these chips have an energy counter."""
    usage_window_s: float
    """Over which nvmlDeviceGetPowerUsage averages; 0: it is the power now."""
    sampled: float | None = None
    """Share of the time at which the power sensor looks, where it is known."""

    @property
    def usage_delay_s(self) -> float:
        """How late the integral of nvmlDeviceGetPowerUsage is: half of its window."""
        return self.usage_window_s / 2


GA100: Final = Architecture("Ampere GA100", True, 0.0, sampled=0.25)
ARCHITECTURES: Final[Mapping[int, Architecture]] = {
    2: Architecture("Kepler", False, 0.0),
    3: Architecture("Maxwell", False, 0.0),
    4: Architecture("Pascal", False, 0.0),
    5: Architecture("Volta", True, 0.0),
    6: Architecture("Turing", True, 0.0),
    7: Architecture("Ampere", True, 1.0),
    8: Architecture("Ada", True, 1.0),
    9: Architecture("Hopper", True, 1.0, sampled=0.25),
    10: Architecture("Blackwell", True, 1.0),
}
"""By the number of nvmlDeviceGetArchitecture."""
_GA100_NAMES: Final = re.compile(r"\b(A100|A800|A30)X?\b")


def architecture(number: int, gpu_name: str) -> Architecture:
    """A GPU's row; one that is newer than the table is taken for like the newest."""
    if number == 7 and _GA100_NAMES.search(gpu_name):
        return GA100
    return ARCHITECTURES.get(number, Architecture(f"number {number}", True, 1.0))


@dataclass(frozen=True, slots=True)
class Measured:
    """How the counter of one type of GPU was seen to behave."""

    period_s: float
    """Between two moves of the counter, median."""
    lag_s: float
    """How much later than the power was drawn the counter shows it."""


def measured(gpu_name: str) -> Measured | None:
    """What is known of a GPU's counter, by NVML's name of it; None if nobody measured."""
    row = _measurements().get(gpu_name)
    if row is None or row.get("source") == SIMULATED:
        return None
    return Measured(float(row["period_s"]), float(row["lag_s"]))


@cache
def _measurements() -> Mapping[str, Mapping[str, Any]]:
    file = resources.files("llm_carbon_meter.data").joinpath(MEASURED_FILE)
    return json.loads(file.read_text("utf-8"))["gpus"] if file.is_file() else {}
