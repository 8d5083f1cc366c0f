"""Every conversion factor, exact. SI inside; conversions only here and at the NVML edge."""

from typing import Final

JOULES_PER_WATT_HOUR: Final = 3_600.0
JOULES_PER_KILOWATT_HOUR: Final = 3_600_000.0
SECONDS_PER_HOUR: Final = 3_600.0
MILLI: Final = 1e-3
MICRO: Final = 1e-6


def watt_hours(joules: float) -> float:
    """Convert joules to watt-hours (1 Wh = 3600 J)."""
    return joules / JOULES_PER_WATT_HOUR
