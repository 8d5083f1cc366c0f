"""Joules from power, where a GPU has no counter that can be believed."""

from typing import Final

MAX_POWER_GAP_S: Final = 1.0
"""Longer gaps between two samples of power are not bridged: nobody knows their joules."""


class PowerIntegral:
    """Cumulative joules from samples of power: trapezoids between samples that follow closely.

    Args:
        max_gap_s: longer gaps are not bridged.
    """

    def __init__(self, max_gap_s: float = MAX_POWER_GAP_S) -> None:
        self._max_gap_s = max_gap_s
        self._joules = 0.0
        self._last: tuple[float, float] | None = None
        self.bridged = False
        """The last sample followed closely enough on the one before; else joules are missing."""

    def add(self, monotonic_s: float, watts: float) -> float:
        """Take one sample and return the joules so far."""
        before_s, before_watts = self._last or (float("-inf"), 0.0)
        self.bridged = monotonic_s - before_s <= self._max_gap_s
        if self.bridged:
            self._joules += (monotonic_s - before_s) * (before_watts + watts) / 2
        self._last = monotonic_s, watts
        return self._joules

    def restart(self) -> None:
        """Forget the last sample: a read failed, so what lies between is unknown."""
        self._last = None
