"""Power over time where a GPU has no counter."""

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.power.integral import PowerIntegral
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.records import PowerError, Quality, Source
from llm_carbon_meter.testing.nvml_stub import StubScript
from tests.support.scripted_nvml import read_for


@pytest.mark.parametrize("extra", [(), ("unsupported 0 instant",)])
def test_power_fallback_integrates(stub: Any, extra: tuple[str, ...]) -> None:
    """Without a counter, power over time gives the joules, from field 186 or the default power."""
    stub.steady(200, extra=("unsupported 0 energy", *extra))
    meter = open_nvml(["0"])
    polls = read_for(meter, 0.15)
    meter.close()
    [first], [last] = polls[0], polls[-1]
    elapsed_s = last.monotonic_s - first.monotonic_s
    assert meter.quality is Quality.POWER
    assert meter.source is Source.MEASURED
    assert first.joules == 0
    assert last.joules == pytest.approx(200 * elapsed_s, rel=1e-4)
    assert last.watts == pytest.approx(200)
    assert not stub.log()


def test_power_fallback_follows_a_ramp(stub: Any) -> None:
    """Trapezoids are exact on straight lines: a ramp of power gives its integral."""
    script = stub.play(
        StubScript(
            gpus=1,
            power={0: [(0, 100), (3, 700)]},
            origin_s=time.monotonic() - 1,
            extra=("unsupported 0 energy",),
        )
    )
    meter = open_nvml(["0"])
    polls = read_for(meter, 0.2)
    meter.close()
    [first], [last] = polls[0], polls[-1]
    drawn = script.integral_joules(0, first.monotonic_s, last.monotonic_s)
    samples = itertools.pairwise(reading for [reading] in polls)
    areas = [
        (b.monotonic_s - a.monotonic_s) * ((a.watts or 0) + (b.watts or 0)) / 2 for a, b in samples
    ]
    assert last.joules == pytest.approx(sum(areas))
    assert last.joules == pytest.approx(drawn, rel=0.1)


def test_gap_between_power_samples_is_not_bridged(stub: Any, clock: Any) -> None:
    """Nobody knows the joules of a gap over 1 s, so the integral stands still over it."""
    stub.steady(200, extra=("unsupported 0 energy",))
    meter = open_nvml(["0"], clock)
    meter.read()
    clock.ahead_s += 0.5
    [before] = meter.read()
    clock.ahead_s += 1.1
    [after] = meter.read()
    clock.ahead_s += 0.5
    [later] = meter.read()
    meter.close()
    assert before.joules == pytest.approx(100, rel=0.2)
    assert after.joules == before.joules
    assert (before.quality, after.quality) == (Quality.POWER, Quality.RESET)
    assert later.quality is Quality.POWER
    elapsed_s = later.monotonic_s - after.monotonic_s
    assert later.joules - after.joules == pytest.approx(200 * elapsed_s)


def test_power_integral_restarts_after_a_failed_read() -> None:
    """A trapezoid joins only two good reads in a row."""
    integral = PowerIntegral()
    integral.add(0.0, 100.0)
    assert integral.add(0.5, 300.0) == pytest.approx(100)
    integral.restart()
    assert integral.add(1.0, 300.0) == pytest.approx(100)
    assert integral.add(1.5, 300.0) == pytest.approx(250)
    assert integral.add(2.5, 300.0) == pytest.approx(550)
    assert integral.add(3.6, 300.0) == pytest.approx(550)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1000)), max_size=50))
def test_power_integral_never_falls(samples: list[tuple[float, float]]) -> None:
    """Joules from power only rise, whatever the gaps."""
    integral, t, shown = PowerIntegral(), 0.0, 0.0
    for step_s, watts in samples:
        t += step_s
        joules = integral.add(t, watts)
        assert joules >= shown
        shown = joules


def test_mixed_qualities_give_the_worst(stub: Any) -> None:
    """One GPU without a counter makes the figure of the whole engine a power figure."""
    stub.steady(200, 200, extra=("unsupported 1 energy",))
    meter = open_nvml(["0", "1"])
    meter.close()
    assert meter.quality is Quality.POWER


def test_neither_counter_nor_power_is_an_error(stub: Any) -> None:
    """A GPU that supports nothing cannot be metered: the error says so and what to do."""
    fields = ("energy", "instant", "average", "usage")
    stub.steady(200, extra=tuple(f"unsupported 0 {name}" for name in fields))
    with pytest.raises(PowerError, match=r"neither.*LLM_CARBON_METER_POWER=modelled"):
        open_nvml(["0"])


def test_lost_gpu_restarts_its_power_integral(stub: Any, clock: Any) -> None:
    """Joules drawn while a GPU did not answer are not invented from its power before and after."""
    fallback = "unsupported 0 energy"
    stub.steady(200, extra=(fallback,))
    meter = open_nvml(["0"], clock)
    meter.read()
    stub.steady(200, extra=(fallback, "lost 0 0 9e9"))
    with pytest.raises(PowerError):
        meter.read()
    stub.steady(200, extra=(fallback,))
    clock.ahead_s += 0.5
    [back] = meter.read()
    meter.close()
    assert back.joules == 0
    assert back.quality is Quality.RESET
