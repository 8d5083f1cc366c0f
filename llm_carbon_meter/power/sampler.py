"""The sampler thread: reads all GPUs of an engine together, at a steady rate, and never raises."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading
from llm_carbon_meter.service import Service

MAX_READ_SHARE: Final = 0.05
"""Of the time: the driver serves one call after the other, and the engine waits behind ours."""
MAX_PERIOD_S: Final = 0.5
"""However slow the calls are."""
STOP_S: Final = 5.0
"""A driver that does not answer is waited for no longer."""
READS_KEPT: Final = 15
"""A reading takes the median of so many: one that was slow by chance changes nothing."""


def spaced(period_s: float, read_s: float) -> float:
    """Seconds between the starts of readings that take ``read_s``, wanted ``period_s`` apart."""
    return max(period_s, min(read_s / MAX_READ_SHARE, MAX_PERIOD_S))


class PowerSampler:
    """Calls ``sink`` with every set of readings.

    Args:
        meter: read only from this thread once started.
        period_s: seconds between the starts of two readings; more where they take long.
        sink: receives the readings; must be quick.
        faults: where failing readings are counted.
        where: under which name.
    """

    def __init__(
        self,
        meter: PowerMeter,
        period_s: float,
        sink: Callable[[Sequence[EnergyReading]], None],
        faults: Faults,
        where: str = "sampler",
    ) -> None:
        self._meter = meter
        self._where = where
        self._period_s = period_s
        self._sink = sink
        self._faults = faults
        self._service = Service("llm-carbon-sampler", self._sample, self._failed)
        self._last_s = self._due_s = time.monotonic()
        self._reads_s = deque([0.0], maxlen=READS_KEPT)

    @property
    def read_s(self) -> float:
        """Seconds that a reading of all GPUs takes, median of late."""
        return statistics.median_low(list(self._reads_s))

    @property
    def gap_s(self) -> float:
        """Seconds since the last reading that succeeded."""
        return time.monotonic() - self._last_s

    def start(self) -> None:
        """Start sampling."""
        self._due_s = time.monotonic()
        self._service.start()

    def stop(self) -> None:
        """Stop sampling and wait for the thread."""
        self._service.stop(STOP_S)

    def _sample(self) -> float:
        before_s = time.monotonic()
        readings = self._meter.read()
        self._last_s = time.monotonic()
        self._reads_s.append(self._last_s - before_s)
        self._sink(readings)
        return self._pause_s()

    def _failed(self, error: Exception) -> float:
        self._faults.note(self._where, error, "Readings are tried again.")
        return self._pause_s()

    def _pause_s(self) -> float:
        """Seconds until the next reading is due: late readings move the ones after them."""
        now_s = time.monotonic()
        self._due_s = max(self._due_s + spaced(self._period_s, self.read_s), now_s)
        return self._due_s - now_s
