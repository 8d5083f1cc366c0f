"""Counters of NVML through the real binding, on the compiled stub."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import pynvml
import pytest

from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.records import Quality, Source
from llm_carbon_meter.testing.nvml_stub import StubScript
from tests.support.scripted_nvml import UUIDS, read_for


@pytest.mark.parametrize("period_ms", [0, 20, 100])
@pytest.mark.parametrize("lag_ms", [0, 30])
def test_counter_is_the_integral_of_the_power(stub: Any, period_ms: float, lag_ms: float) -> None:
    """Every reading is the integral of the scripted power to 1 mJ, with ticks and lag."""
    script = stub.play(
        StubScript(
            gpus=1,
            power={0: [(0, 90), (0.05, 700), (0.05, 300), (0.12, 500), (0.2, 100)]},
            period_ms=period_ms,
            lag_ms=lag_ms,
            cycle_s=0.2,
            origin_s=time.monotonic() - 3,
        )
    )
    meter = open_nvml(["0"])
    polls = read_for(meter, 0.25)
    meter.close()
    log = stub.log()[1:]  # the first read is the probe
    assert len(log) == len(polls)
    for read, [reading] in zip(log, polls, strict=True):
        expected = script.counter_joules(0, read.monotonic_s)
        assert reading.joules == pytest.approx(expected, abs=1.001e-3)
        assert reading.joules == pytest.approx(read.millijoules / 1000)
    assert (meter.source, meter.quality) == (Source.MEASURED, Quality.COUNTER)


def test_the_lag_of_a_counter_can_change(stub: Any) -> None:
    """Where it grows the counter stands until it has caught up; where it falls it jumps ahead."""
    origin_s = time.monotonic() - 60
    at_s = time.monotonic() - origin_s
    extra = (f"lag 0 {at_s + 0.1} 150", f"lag 0 {at_s + 0.4} 50")
    stub.play(StubScript(2, {0: [(0, 100)], 1: [(0, 100)]}, origin_s=origin_s, extra=extra))
    meter = open_nvml(["0", "1"])
    polls = read_for(meter, 0.5)
    meter.close()
    late_s = [(second.joules - first.joules) / 100 for first, second in polls]
    after_s = [first.monotonic_s - origin_s - at_s for first, _ in polls]
    for begin_s, end_s, lag_s in ((0.0, 0.1, 0.0), (0.26, 0.39, 0.15), (0.41, 0.5, 0.05)):
        seen = [late for late, t in zip(late_s, after_s, strict=True) if begin_s < t < end_s]
        assert seen == pytest.approx([lag_s] * len(seen), abs=0.005)
        assert len(seen) > 5
    assert all(b[0].joules >= a[0].joules for a, b in itertools.pairwise(polls))


def test_delta_between_readings_is_the_energy_drawn(stub: Any) -> None:
    """Between two reads of a continuous counter lie the joules drawn between them."""
    script = stub.play(StubScript(1, {0: [(0, 100), (0.2, 900), (0.3, 50)]}))
    meter = open_nvml([UUIDS[0]])
    polls = read_for(meter, 0.2)
    meter.close()
    log = stub.log()[1:]
    for (read0, [first]), (read1, [second]) in itertools.pairwise(zip(log, polls, strict=True)):
        drawn = script.integral_joules(0, read0.monotonic_s, read1.monotonic_s)
        assert second.joules - first.joules == pytest.approx(drawn, abs=1.001e-3)


def test_two_gpus_are_read_apart_in_the_order_asked(stub: Any) -> None:
    """Readings come in the order of the devices, each with its own power and UUID."""
    stub.steady(100, 400)
    meter = open_nvml(["1", UUIDS[0]])
    first, second = meter.read(), meter.read()
    meter.close()
    assert list(meter.gpus) == [UUIDS[1], UUIDS[0]]
    assert [reading.gpu for reading in first] == [UUIDS[1], UUIDS[0]]
    assert [reading.watts for reading in second] == pytest.approx([400, 100])
    assert first[0].joules == pytest.approx(400 * 60, rel=0.05)
    assert first[1].joules == pytest.approx(100 * 60, rel=0.05)


def test_one_call_of_field_values_per_gpu_and_poll(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll asks each GPU once, for the counter and the instant power together."""
    stub.steady(100, 400)
    meter = open_nvml(["0", "1"])
    calls = []
    original = pynvml.nvmlDeviceGetFieldValues

    def counted(handle: object, fields: Sequence[int]) -> object:
        calls.append(tuple(fields))
        return original(handle, fields)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", counted)
    meter.read()
    meter.close()
    assert calls == [(83, 186), (83, 186)]


def test_counter_call_where_the_field_is_missing(stub: Any) -> None:
    """Field 83 unsupported but the energy call works: still a counter, and power is shown."""
    stub.steady(250, extra=("unsupported 0 energy_field",))
    meter = open_nvml(["0"])
    [reading] = meter.read()
    meter.close()
    assert meter.quality is Quality.COUNTER
    assert reading.joules == pytest.approx(250 * 60, rel=0.05)
    assert reading.watts == pytest.approx(250)


def test_counter_without_power_has_no_watts(stub: Any) -> None:
    """Where instant power is unsupported the watts are unknown, and the joules unharmed."""
    stub.steady(250, extra=("unsupported 0 instant",))
    meter = open_nvml(["0"])
    [reading] = meter.read()
    meter.close()
    assert reading.watts is None
    assert reading.joules == pytest.approx(250 * 60, rel=0.05)


def test_power_that_stops_does_not_stop_the_counter(stub: Any) -> None:
    """Instant power that fails later only loses the watts on display."""
    stub.steady(250)
    meter = open_nvml(["0"])
    stub.steady(250, extra=("unsupported 0 instant",))
    [reading] = meter.read()
    meter.close()
    assert reading.watts is None
    assert reading.joules > 0


def test_reset_shows_as_a_drop(stub: Any) -> None:
    """A counter that starts again at 0 is passed on as it is: the ledger books resets."""
    script = stub.steady(100)
    meter = open_nvml(["0"])
    [before] = meter.read()
    reset_s = time.monotonic() - script.origin_s
    stub.play(StubScript(1, script.power, origin_s=script.origin_s, extra=(f"reset 0 {reset_s}",)))
    [after] = meter.read()
    meter.close()
    assert before.joules > 5000
    assert after.joules < 100


def test_slow_call_is_stamped_in_its_middle(stub: Any, clock: Any) -> None:
    """A driver that takes 100 ms is waited for; the time is the middle of the call."""
    stub.steady(100)
    meter = open_nvml(["0"], clock)
    stub.steady(100, extra=("slow_ms 0 0 9e9 100",))
    [reading] = meter.read()
    meter.close()
    before_s, after_s = clock.said[-2:]
    [_probe, read] = stub.log()
    assert after_s - before_s >= 0.1
    assert before_s < read.monotonic_s < after_s
    assert reading.monotonic_s == (before_s + after_s) / 2
