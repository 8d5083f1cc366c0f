"""The sampler thread: reads all GPUs of an engine together, at a steady rate, and never raises."""

import threading
import time
from collections.abc import Callable, Sequence

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.power.meter import PowerMeter
from llm_carbon_meter.records import EnergyReading


class PowerSampler:
    """Calls ``sink`` with every set of readings.

    Args:
        meter: read only from this thread once started.
        period_s: seconds between the starts of two readings.
        sink: receives the readings; must be quick.
        faults: where failing readings are counted.
    """

    def __init__(
        self,
        meter: PowerMeter,
        period_s: float,
        sink: Callable[[Sequence[EnergyReading]], None],
        faults: Faults,
    ) -> None:
        self._meter = meter
        self._period_s = period_s
        self._sink = sink
        self._faults = faults
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llm-carbon-sampler", daemon=True)
        self._last_s = time.monotonic()

    @property
    def gap_s(self) -> float:
        """Seconds since the last reading that succeeded."""
        return time.monotonic() - self._last_s

    def start(self) -> None:
        """Start sampling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling and wait for the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stop.is_set():
            self._sample()
            due_s = max(due_s + self._period_s, time.monotonic())
            self._stop.wait(due_s - time.monotonic())

    def _sample(self) -> None:
        try:
            readings = self._meter.read()
            self._last_s = time.monotonic()
            self._sink(readings)
        except Exception as error:  # noqa: BLE001 - boundary: no reading may stop the thread
            self._faults.note("sampler", error, "Readings are tried again.")
