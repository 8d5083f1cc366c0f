"""Joules of a piece of work, gross: all that the GPUs drew while it ran."""

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading, PowerError, Quality, Source

TICK_S: Final = 2.0
"""No counter is slower than that."""
POLL_S: Final = 0.001


class Span(NamedTuple):
    """What was measured, and how long it took."""

    joules: float
    seconds: float


class Gauge(Protocol):
    """Measures work."""

    source: Source
    quality: Quality

    def idle_watts(self, seconds: float) -> float:
        """Mean power of all GPUs while nothing is done."""
        ...

    def measure(self, work: Callable[[], None], idle_watts: float) -> Span:
        """Joules of all GPUs while ``work`` runs; it returns when the GPUs are through.

        Args:
            work: what is measured.
            idle_watts: power in the rest of the counter's tick.
        """
        ...

    def close(self) -> None:
        """Release the sensor."""
        ...


def open_counter(gpus: Sequence[str]) -> "CounterGauge":
    """A gauge of GPUs by their energy counters.

    Raises:
        PowerError: they cannot be read, or what they say is not theirs alone.
    """
    meter = open_nvml(gpus)
    if meter.quality not in (Quality.COUNTER, Quality.MODULE_SCOPE):
        meter.close()
        raise PowerError(
            f"a campaign needs GPUs of its own with an energy counter; {', '.join(gpus)} has "
            f"quality {meter.quality}: see `llm-carbon-meter check`"
        )
    return CounterGauge(meter)


class CounterGauge:
    """A gauge of energy counters.

    Counters tick: work begins at a tick, and the tick after its end closes the span. What went by
    in the rest of that tick is idle power, and taken off.

    Args:
        meter: whose readings are of counters.
    """

    source = Source.MEASURED

    def __init__(self, meter: PowerMeter) -> None:
        self.quality = meter.quality
        self._meter = meter

    def idle_watts(self, seconds: float) -> float:
        """Between two ticks at least so far apart."""
        before = self._tick(0.0)
        time.sleep(seconds)
        after = self._tick(0.0)
        return sum(
            (after[gpu].joules - reading.joules) / (after[gpu].monotonic_s - reading.monotonic_s)
            for gpu, reading in before.items()
        )

    def measure(self, work: Callable[[], None], idle_watts: float) -> Span:
        """From the tick before the work to the one after it."""
        before = self._tick(0.0)
        begun_s = time.monotonic()
        work()
        ended_s = time.monotonic()
        after = self._tick(ended_s)
        joules = sum(after[gpu].joules - reading.joules for gpu, reading in before.items())
        # A reading's time is that of the energy, which a slow counter shows later.
        rest_s = sum(
            (begun_s - reading.monotonic_s) + (after[gpu].monotonic_s - ended_s)
            for gpu, reading in before.items()
        ) / len(before)
        return Span(joules - idle_watts * rest_s, ended_s - begun_s)

    def _tick(self, covered_s: float) -> dict[str, EnergyReading]:
        """Each GPU's reading when its counter has just moved and covers a time.

        Raises:
            PowerError: a counter stands still.
        """
        first = {reading.gpu: reading.joules for reading in self._meter.read()}
        ticked: dict[str, EnergyReading] = {}
        deadline_s = time.monotonic() + TICK_S
        while len(ticked) < len(first):
            if time.monotonic() > deadline_s:
                still = ", ".join(sorted(first.keys() - ticked.keys()))
                raise PowerError(f"the energy counter of {still} did not move for {TICK_S:g} s")
            time.sleep(POLL_S)
            for reading in self._meter.read():
                if reading.gpu in ticked or reading.joules == first[reading.gpu]:
                    continue
                if reading.monotonic_s >= covered_s:
                    ticked[reading.gpu] = reading
                else:  # this move is of before
                    first[reading.gpu] = reading.joules
        return ticked

    def close(self) -> None:
        """End the session."""
        self._meter.close()


class SheetGauge:
    """No sensor: the data sheet's board power while work runs. Modelled, never measured.

    Args:
        gpu: that the host pretends to have.
    """

    source = Source.MODELLED
    quality = Quality.MODELLED

    def __init__(self, gpu: GpuSpec) -> None:
        self._gpu = gpu

    def idle_watts(self, _seconds: float) -> float:
        """As the data sheet has it; nothing is waited for."""
        return self._gpu.idle_watts

    def measure(self, work: Callable[[], None], _idle_watts: float) -> Span:
        """Time x board power."""
        begun_s = time.monotonic()
        work()
        seconds = time.monotonic() - begun_s
        return Span(seconds * self._gpu.board_watts, seconds)

    def close(self) -> None:
        """Nothing to release."""
