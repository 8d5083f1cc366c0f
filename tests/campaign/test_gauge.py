"""Joules of work between two ticks of a counter; the power is known exactly."""

import dataclasses
import time

import pytest

from llm_carbon_meter.campaign.gauge import CounterGauge, SheetGauge, open_counter
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading, PowerError, Source
from llm_carbon_meter.testing.nvml_stub import StubScript
from tests.support.scripted_nvml import Stub

BUSY_W, IDLE_W, WORK_S, LAG_S = 400.0, 100.0, 0.4, 0.2


def pulse(stub: Stub, gpus: int = 1, **more: float) -> float:
    """Idle power but for a pulse, 0.5 s from now; its begin."""
    origin_s = time.monotonic() - 5
    begin_s = 5.5
    points = [
        (begin_s, IDLE_W),
        (begin_s, BUSY_W),
        (begin_s + WORK_S, BUSY_W),
        (begin_s + WORK_S, IDLE_W),
    ]
    power = dict.fromkeys(range(gpus), points)
    stub.play(StubScript(gpus, power, origin_s=origin_s, **more))
    return origin_s + begin_s


@pytest.mark.parametrize("period_ms", [0.0, 20.0, 100.0])
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_pulse_has_its_joules_whatever_the_counter_s_period(
    stub: Stub, period_ms: float, gpus: int
) -> None:
    """Work that draws 400 W; the rest of the ticks, at idle power, is taken off."""
    begin_s = pulse(stub, gpus, period_ms=period_ms)
    gauge = open_counter([str(gpu) for gpu in range(gpus)])

    def work() -> None:
        time.sleep(max(begin_s - time.monotonic(), 0.0) + WORK_S)

    span = gauge.measure(work, gpus * IDLE_W)
    gauge.close()
    waited_s = span.seconds - WORK_S
    truth = gpus * (WORK_S * BUSY_W + waited_s * IDLE_W)
    assert waited_s > 0
    # The clock is read a moment beside the counter, which moves by itself where it has no period.
    assert span.joules == pytest.approx(truth, abs=gpus * 0.01 * BUSY_W)


class Late:
    """A meter that knows its GPU's lag, as for a type of GPU that was measured."""

    def __init__(self, meter: PowerMeter) -> None:
        self.gpus, self.quality, self.source = meter.gpus, meter.quality, meter.source
        self.close = meter.close
        self._meter = meter

    def read(self) -> list[EnergyReading]:
        return [
            dataclasses.replace(each, monotonic_s=each.monotonic_s - LAG_S)
            for each in self._meter.read()
        ]


def test_a_counter_that_is_late_is_waited_for(stub: Stub) -> None:
    """Work ends before the counter shows its last joules."""
    begin_s = pulse(stub, period_ms=20.0, lag_ms=LAG_S * 1000)
    gauge = CounterGauge(Late(open_nvml(["0"])))
    span = gauge.measure(lambda: time.sleep(max(begin_s - time.monotonic(), 0.0) + WORK_S), IDLE_W)
    gauge.close()
    truth = WORK_S * BUSY_W + (span.seconds - WORK_S) * IDLE_W
    assert span.joules == pytest.approx(truth, abs=0.02 * BUSY_W)


def test_idle_power_is_that_between_two_ticks(stub: Stub) -> None:
    """Not that of the parts of ticks around them."""
    stub.play(StubScript(1, {0: [(0.0, 123.0)]}, period_ms=50.0))
    gauge = open_counter(["0"])
    assert gauge.idle_watts(0.12) == pytest.approx(123.0, rel=0.03)
    gauge.close()


def test_a_counter_that_stands_still_is_an_error(stub: Stub) -> None:
    """A span without an end would be of nothing."""
    stub.play(StubScript(1, {0: [(0.0, 0.0)]}, period_ms=50.0))
    gauge = open_counter(["0"])
    with pytest.raises(PowerError, match="did not move for 2 s"):
        gauge.measure(lambda: None, 0.0)
    gauge.close()


@pytest.mark.parametrize("extra", ["mig 0 0 1e9", "unsupported 0 energy"])
def test_a_gpu_whose_joules_are_not_its_own_is_refused(stub: Stub, extra: str) -> None:
    """Whatever would be measured could not be used."""
    stub.steady(300.0, extra=(extra,))
    with pytest.raises(PowerError):
        open_counter(["0"])


def test_without_a_sensor_it_is_the_data_sheet(stub: Stub) -> None:
    """And says so."""
    gpu = gpu_spec("H100")
    gauge = SheetGauge(gpu)
    span = gauge.measure(lambda: time.sleep(0.05), gauge.idle_watts(1.0))
    assert gauge.source is Source.MODELLED
    assert span.joules == pytest.approx(span.seconds * gpu.board_watts)
