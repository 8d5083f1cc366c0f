"""One GPU's energy counter: its readings become ticks, the pieces in which joules are settled."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from llm_carbon_meter.records import EnergyReading, Quality

STUCK_S: Final = 1.0
"""A counter that stood still this long is believed: it really counted nothing."""
MAX_WAITING_TICKS: Final = 2048
"""While a step hangs, ticks wait; beyond this many the last one grows instead."""


class Tick(NamedTuple):
    """What a counter grew by between two of its readings."""

    start_s: float
    end_s: float
    joules: float
    counter_joules: float
    """The counter itself at the end."""
    lost: bool
    """The counter fell: what it counted is not known."""
    quality: Quality
    readings: Sequence[EnergyReading] = ()
    """Those at which the counter moved, the last one included; none of ticks that were joined."""

    @property
    def divisible(self) -> bool:
        """Whether the joules are known, and no more than the GPU can draw."""
        return not self.lost and self.quality is not Quality.IMPOSSIBLE


class GpuCounter:
    """The ticks of one GPU, in the order of their times.

    Args:
        tick_s: a tick is at least this long; a counter's own may be as short as its errors of time.
        lag_s: how much later than the power was drawn the counter shows it, beyond what the
            readings' times already account for; None where nothing is known of it.
    """

    def __init__(self, tick_s: float, lag_s: float | None) -> None:
        self.tick_s = tick_s
        self.lag_s = lag_s
        """Of the readings to come: those that were entered stay where they are."""
        self.ticks: deque[Tick] = deque()
        """Not settled yet."""
        self.watts: float | None = None
        """Of the last reading."""
        self.silent_s = 0.0
        """Since the last reading."""
        self._last: EnergyReading | None = None
        """The reading that ended the last tick."""
        self._newest: EnergyReading | None = None
        """The reading at which the counter last moved."""
        self._moves: list[EnergyReading] = []
        """The readings at which it moved since the last tick."""
        self._worst = Quality.COUNTER
        """Of the readings since the last tick."""
        self._segment_base_joules = 0.0
        """The counter at the start, or after its last reset."""
        self._counted_joules = 0.0
        """Of earlier segments."""
        self._settled_joules = 0.0
        """The counter at the last settled tick."""

    @property
    def begun(self) -> bool:
        """Whether there was a reading."""
        return self._last is not None

    @property
    def joules(self) -> float:
        """The counter's own increments up to the last settled tick."""
        return self._counted_joules + self._settled_joules - self._segment_base_joules

    @property
    def whole_lag_s(self) -> float | None:
        """All that is taken off the times of readings; None where nothing is known of it."""
        taken_s = self._newest.lag_s if self._newest is not None else 0.0
        return taken_s if taken_s or self.lag_s is not None else None

    def observe(self, reading: EnergyReading) -> float:
        """Enter a reading; readings come in the order of their times.

        Returns:
            The time that its power was drawn.
        """
        self.watts, self.silent_s = reading.watts, 0.0
        late_s, last, newest = self.lag_s or 0.0, self._last, self._newest
        at_s = reading.monotonic_s - late_s
        reading = replace(reading, monotonic_s=at_s, lag_s=reading.lag_s + late_s)
        if last is None or newest is None:
            self._segment_base_joules = self._settled_joules = reading.joules
            self._last = self._newest = reading
        elif at_s > newest.monotonic_s and not _stands_still(newest, reading):
            # A jump or a rest: what was before is over.
            if reading.joules <= newest.joules or reading.quality is Quality.IMPOSSIBLE:
                self._end_tick(last, newest)
                self._worst = reading.quality
                self._end_tick(newest, reading)
            else:
                self._moves.append(reading)
                self._worst = max(self._worst, reading.quality, key=lambda quality: quality.rank)
                if at_s - last.monotonic_s >= self.tick_s:
                    self._end_tick(last, reading)
            self._newest = reading
        return at_s

    def close(self) -> None:
        """No reading comes any more: what was counted since the last tick is one."""
        if self._last is not None and self._newest is not None:
            self._end_tick(self._last, self._newest)

    def settle(self, tick: Tick) -> None:
        """A tick that was taken out of `ticks` is booked."""
        if tick.lost:
            self._counted_joules += self._settled_joules - self._segment_base_joules
            self._segment_base_joules = tick.counter_joules
        self._settled_joules = tick.counter_joules

    def _end_tick(self, first: EnergyReading, last: EnergyReading) -> None:
        quality, self._worst = self._worst, Quality.COUNTER
        moves, self._moves = self._moves, []
        if first is last:
            return
        lost = last.joules < first.joules
        joules = 0.0 if lost else last.joules - first.joules
        quality = Quality.RESET if lost else quality
        span = first.monotonic_s, last.monotonic_s
        self._wait(Tick(*span, joules, last.joules, lost, quality, moves))
        self._last = last

    def _wait(self, tick: Tick) -> None:
        full = len(self.ticks) >= MAX_WAITING_TICKS
        if full and tick.divisible and self.ticks[-1].divisible:
            before = self.ticks.pop()
            quality = max(before.quality, tick.quality, key=lambda quality: quality.rank)
            joules = before.joules + tick.joules
            start_s, none = before.start_s, ()
            tick = tick._replace(start_s=start_s, joules=joules, quality=quality, readings=none)
        self.ticks.append(tick)


def _stands_still(last: EnergyReading, reading: EnergyReading) -> bool:
    """Nothing was counted, and nothing that was drawn is known to be missing."""
    since_s = reading.monotonic_s - last.monotonic_s
    waiting = reading.quality is not Quality.RESET and since_s < STUCK_S
    return waiting and reading.joules == last.joules
