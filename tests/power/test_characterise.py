"""Period, lag and agreement from series whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.power.characterise import (
    Floats,
    Polled,
    agreement,
    histogram_ms,
    integrated,
    lag_s,
    moves,
    onset_lag_s,
    poll,
)
from llm_carbon_meter.power.modelled import ModelledMeter
from llm_carbon_meter.records import Quality

POLL_S = 0.001


def made(watts: Floats, period_s: float = 0.02, lag: float = 0.0, gain: float = 1.0) -> Polled:
    """Polls of a counter that integrates the watts, in ticks, late and wrongly calibrated."""
    times_s = 50.0 + POLL_S * np.arange(len(watts))
    shown_s = np.floor((times_s - lag) / period_s + 1e-6) * period_s
    joules = gain * np.interp(shown_s, times_s, integrated(times_s, watts))
    return Polled(times_s, joules, watts, Quality.COUNTER)


def square(seconds: float, half_s: float = 0.17) -> Floats:
    """Watts that jump between 100 and 500."""
    times_s = POLL_S * np.arange(round(seconds / POLL_S))
    return np.where(times_s // half_s % 2 == 0, 100.0, 500.0)


@settings(deadline=None)
@given(st.sampled_from([0.01, 0.02, 0.05, 0.1]), st.floats(0.0, 0.3))
def test_the_period_is_that_of_the_moves(period_s: float, lag: float) -> None:
    """Whatever the lag; the histogram has its milliseconds."""
    polled = made(np.full(3000, 200.0), period_s, lag)
    assert polled.period_s == pytest.approx(period_s, abs=POLL_S)
    counts = histogram_ms(polled.intervals_s)
    assert max(counts, key=lambda ms: counts[ms]) == pytest.approx(1000 * period_s, abs=1)
    assert polled.mean_watts == pytest.approx(200, rel=0.05)


@settings(deadline=None)
@given(st.sampled_from([0.01, 0.02, 0.1]), st.floats(0.0, 0.3), st.floats(0.5, 1.5))
def test_the_lag_is_the_shift_that_fits(period_s: float, lag: float, gain: float) -> None:
    """Also where the counter and the power disagree by a factor."""
    found = lag_s(made(square(3.0), period_s, lag, gain))
    assert found == pytest.approx(lag, abs=0.003)


def test_a_steady_power_shows_no_lag() -> None:
    """Nor do too few moves, or a GPU that does not say its power."""
    assert lag_s(made(np.full(3000, 200.0))) is None
    assert lag_s(made(square(0.4))) is None
    assert lag_s(made(np.full(3000, np.nan))) is None


@pytest.mark.parametrize("gain", [1.0, 0.8])
def test_agreement_is_counter_over_power(gain: float) -> None:
    """1 where they agree; unknown where one of them is missing."""
    assert agreement(made(square(2.0), gain=gain)) == pytest.approx(gain, rel=0.02)
    assert agreement(made(np.full(10, 200.0))) is None
    assert agreement(made(np.zeros(100))) is None
    assert agreement(replace(made(square(2.0)), watts=np.full(2000, np.nan))) is None


@settings(deadline=None)
@given(st.lists(st.floats(0, 1000), min_size=2, max_size=20), st.floats(0, 1000))
def test_the_integral_is_additive(watts: list[float], more: float) -> None:
    """Straight lines between polls: exact for a constant, additive in the watts."""
    times_s = np.arange(len(watts)) * 0.1
    whole = integrated(times_s, np.array(watts) + more)
    assert whole[0] == 0
    assert whole == pytest.approx(integrated(times_s, np.array(watts)) + more * times_s)


@pytest.mark.parametrize("lag", [0.0, 0.03, 0.2])
def test_the_onset_of_a_known_load_shows_the_lag(lag: float) -> None:
    """Idle before, load after: the lines meet where the counter noticed."""
    watts = np.where(np.arange(4000) < 1500, 80.0, 650.0)
    polled = made(watts, lag=lag)
    began_s = float(polled.times_s[1500])
    assert onset_lag_s(polled.times_s, polled.joules, began_s) == pytest.approx(lag, abs=0.003)


def test_moves_are_the_polls_at_which_it_moved() -> None:
    """The first poll is none."""
    assert moves(np.array([5.0, 5.0, 6.0, 6.0, 9.0])).tolist() == [2, 4]


def test_polling_keeps_every_gpu_apart() -> None:
    """At least one reading, however short; watts that are not known are nan."""
    meter = ModelledMeter(gpu_spec("H100"), 2, 0.0)
    polled, took_s = poll(meter, 0.0)
    assert set(polled) == {"modelled-0", "modelled-1"}
    assert len(took_s) == 1
    assert polled["modelled-0"].period_s is None
    assert np.isnan(polled["modelled-0"].mean_watts)
    assert polled["modelled-1"].watts.tolist() == [gpu_spec("H100").idle_watts]
