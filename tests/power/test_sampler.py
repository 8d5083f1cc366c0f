"""The sampler thread: steady, and never ended by an error."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.power.sampler import MAX_PERIOD_S, PowerSampler, spaced
from llm_carbon_meter.records import EnergyReading, PowerError, Quality, Source


class CountingMeter:
    """Reads a joule more each time, unless told to fail."""

    source, quality = Source.MEASURED, Quality.COUNTER
    gpus: Sequence[str] = ("gpu-0", "gpu-1")

    def __init__(self, fails: Callable[[int], bool] = lambda reading: False) -> None:
        self.reads = 0
        self._fails = fails

    def read(self) -> Sequence[EnergyReading]:
        self.reads += 1
        if self._fails(self.reads):
            raise PowerError("the GPU fell off the bus")
        at_s = time.monotonic()
        return [EnergyReading(at_s, gpu, float(self.reads)) for gpu in self.gpus]

    def close(self) -> None:
        """Nothing to release."""


class Sink:
    """Keeps what comes, and can be waited for."""

    def __init__(self, fails_first: bool = False) -> None:
        self.sets: list[Sequence[EnergyReading]] = []
        self._fails_first = fails_first
        self._changed = threading.Condition()

    def __call__(self, readings: Sequence[EnergyReading]) -> None:
        with self._changed:
            self.sets.append(readings)
            self._changed.notify_all()
            if self._fails_first and len(self.sets) == 1:
                raise ValueError("the sink")

    def wait(self, count: int) -> None:
        """Wait for a number of sets."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sets) >= count, timeout=10)


def test_all_gpus_are_read_together_at_a_steady_rate() -> None:
    """Sets of all GPUs, a period apart on average, none after the stop."""
    meter, sink, faults = CountingMeter(), Sink(), Faults()
    sampler = PowerSampler(meter, 0.02, sink, faults)
    sampler.start()
    sink.wait(11)
    sampler.stop()
    count = len(sink.sets)
    times = [readings[0].monotonic_s for readings in sink.sets]
    assert times[10] - times[0] >= 0.15
    assert all([r.gpu for r in readings] == ["gpu-0", "gpu-1"] for readings in sink.sets)
    time.sleep(0.05)
    assert len(sink.sets) == count
    assert faults.counts == {}


def test_a_meter_that_fails_midway_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Every failure is counted, the first is logged, and readings go on afterwards."""
    meter, sink, faults = CountingMeter(lambda reading: 2 <= reading <= 5), Sink(), Faults()
    sampler = PowerSampler(meter, 0.002, sink, faults)
    sampler.start()
    sink.wait(3)
    sampler.stop()
    assert [readings[0].joules for readings in sink.sets[:3]] == [1.0, 6.0, 7.0]
    assert faults.counts == {"sampler": 4}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "the GPU fell off the bus" in messages[0]
    assert "Readings are tried again" in messages[0]


def test_a_sink_that_raises_does_not_end_the_thread() -> None:
    """An error behind the sampler is counted as well."""
    sink, faults = Sink(fails_first=True), Faults()
    sampler = PowerSampler(CountingMeter(), 0.002, sink, faults)
    sampler.start()
    sink.wait(3)
    sampler.stop()
    assert faults.counts == {"sampler": 1}


def test_the_gap_grows_while_the_meter_fails() -> None:
    """Seconds since the last reading that succeeded."""
    meter, sink = CountingMeter(lambda reading: reading > 1), Sink()
    sampler = PowerSampler(meter, 0.002, sink, Faults())
    sampler.start()
    sink.wait(1)
    time.sleep(0.1)
    assert meter.reads > 2
    assert 0.09 < sampler.gap_s < 5
    sampler.stop()


def test_a_slow_meter_is_not_read_in_bursts() -> None:
    """Readings that were missed are not made up for."""

    def slow_at_first(reading: int) -> bool:
        time.sleep(0.1 if reading == 1 else 0.0)
        return False

    meter = CountingMeter(slow_at_first)
    sink = Sink()
    sampler = PowerSampler(meter, 0.02, sink, Faults())
    sampler.start()
    sink.wait(5)
    sampler.stop()
    times = [readings[0].monotonic_s for readings in sink.sets]
    assert times[4] - times[1] >= 0.03


def test_stopping_does_not_wait_for_the_period() -> None:
    """A sampler with a long period ends at once."""
    sink = Sink()
    sampler = PowerSampler(CountingMeter(), 60.0, sink, Faults())
    sampler.start()
    sink.wait(1)
    began_s = time.monotonic()
    sampler.stop()
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize(
    ("period_s", "read_s", "expected_s"),
    [(0.05, 0.0001, 0.05), (0.05, 0.0025, 0.05), (0.05, 0.01, 0.2), (0.05, 9.0, 0.5), (10, 1, 10)],
)
def test_readings_that_take_long_are_spaced(
    period_s: float, read_s: float, expected_s: float
) -> None:
    """They take a twentieth of the time at the most, down to two a second."""
    assert spaced(period_s, read_s) == pytest.approx(expected_s)


def test_calls_that_become_slow_lower_the_rate_and_it_recovers() -> None:
    """One slow reading changes nothing; many do, until they are quick again."""
    slow = threading.Event()

    def slowly(reading: int) -> bool:
        time.sleep(0.01 if slow.is_set() else 0.0)
        return False

    meter = CountingMeter(slowly)
    sink = Sink()
    sampler = PowerSampler(meter, 0.005, sink, Faults())
    sampler.start()
    sink.wait(20)
    assert sampler.read_s < 0.005
    slow.set()
    sink.wait(len(sink.sets) + 12)
    assert sampler.read_s >= 0.01
    times = [readings[0].monotonic_s for readings in sink.sets]
    assert times[-1] - times[-2] >= min(0.01 / 0.05, MAX_PERIOD_S) / 2
    slow.clear()
    sink.wait(len(sink.sets) + 12)
    assert sampler.read_s < 0.005
    sampler.stop()
