"""Joules without a sensor: the integral of the windows, idle power between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.power.modelled import ModelledMeter
from llm_carbon_meter.records import Quality, Source

H100 = gpu_spec("H100")
IDLE = H100.idle_watts


def test_it_never_calls_itself_measured() -> None:
    """Source, quality and names of the GPUs say modelled."""
    meter = ModelledMeter(H100, 2, 5.0)
    assert (meter.source, meter.quality) == (Source.MODELLED, Quality.MODELLED)
    assert meter.gpus == ("modelled-0", "modelled-1")
    assert [reading.gpu for reading in meter.read()] == ["modelled-0", "modelled-1"]


def test_before_anything_is_known_it_has_counted_nothing() -> None:
    """The first reading is at the start, with idle watts."""
    (reading,) = ModelledMeter(H100, 1, 5.0).read()
    assert (reading.monotonic_s, reading.joules, reading.watts) == (5.0, 0.0, IDLE)


def test_busy_and_idle_time_are_integrated() -> None:
    """2 s at 500 W and 3 s idle; the reading is as old as what is known."""
    meter = ModelledMeter(H100, 1, 10.0)
    meter.add_load([(11.0, 13.0, 500.0)], 15.0)
    (reading,) = meter.read()
    assert reading.monotonic_s == 15.0
    assert reading.joules == pytest.approx(2 * 500 + 3 * IDLE)
    assert reading.watts == pytest.approx(reading.joules / 5)


def test_every_gpu_carries_the_same_load() -> None:
    """Tensor parallel ranks work together."""
    meter = ModelledMeter(H100, 4, 0.0)
    meter.add_load([(0.0, 1.0, 300.0)], 1.0)
    assert [reading.joules for reading in meter.read()] == [300.0] * 4


def test_what_is_known_already_is_not_counted_again() -> None:
    """Time that stands still or goes back adds nothing; of a window only the new part counts."""
    meter = ModelledMeter(H100, 1, 0.0)
    meter.add_load([], 2.0)
    meter.add_load([], 2.0)
    meter.add_load([], 1.0)
    assert meter.read()[0].joules == 2 * IDLE
    meter.add_load([(1.0, 4.0, 500.0)], 4.0)
    assert meter.read()[0].joules == pytest.approx(2 * IDLE + 2 * 500)


spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 50), st.floats(IDLE, 700.0)), max_size=12
)


@given(spans=spans, cuts=st.lists(st.booleans(), min_size=12, max_size=12), rest=st.integers(0, 99))
def test_joules_are_the_integral_of_all_windows(
    spans: list[tuple[int, int, float]], cuts: list[bool], rest: int
) -> None:
    """However the windows are handed over, in one go or many, and joules only rise."""
    meter, at_s, waiting, expected, last = ModelledMeter(H100, 1, 0.0), 0.0, [], 0.0, 0.0
    for (gap_ms, busy_ms, watts), cut in zip(spans, cuts, strict=False):
        start_s = at_s + gap_ms / 1000
        at_s = start_s + busy_ms / 1000
        waiting.append((start_s, at_s, watts))
        expected += (gap_ms * IDLE + busy_ms * watts) / 1000
        if cut:
            meter.add_load(waiting, at_s)
            waiting = []
            assert meter.read()[0].joules >= last
            last = meter.read()[0].joules
    meter.add_load(waiting, at_s + (rest + 1) / 1000)
    expected += (rest + 1) / 1000 * IDLE
    assert meter.read()[0].joules == pytest.approx(expected, rel=1e-9)
