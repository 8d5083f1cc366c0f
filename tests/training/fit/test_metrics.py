"""Errors against numbers worked by hand, the bound between them, and the bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.fit.metrics import (
    Comparison,
    Errors,
    absolute_percentage_errors,
    bootstrap,
    check_consistency,
    consistency_bound,
    errors,
    intervals,
    noise_floor,
    paired_bootstrap,
)
from tests.support.made.rows import made_row

HUNDRED = np.full(4, 100.0)
OFF = np.array([104.0, 90.0, 130.0, 50.0])
"""By 4, 10, 30 and 50 %."""

joules = st.lists(
    st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6), st.floats(0.01, 1)), min_size=1, max_size=30
)


def test_hand_worked_errors() -> None:
    """Boundaries belong to their threshold; the bias is the mean logarithm of the ratio."""
    found = errors(HUNDRED, OFF)
    assert found.mape == pytest.approx((4 + 10 + 30 + 50) / 4)
    assert (found.eba5, found.eba10, found.eba30) == (25, 50, 75)
    assert (found.median_ape, found.p95_ape, found.n) == (10, 50, 4)
    assert found.bias == pytest.approx(np.log(OFF / 100).mean())


def test_a_boundary_is_included_whatever_the_rounding() -> None:
    """1.1 is 10 % above 1, though 1.1 - 1 is a little more than 0.1."""
    assert errors(np.ones(1), np.array([1.1])).eba10 == 100


def test_weights_count_rows() -> None:
    """The first row weighs as much as the three others together."""
    found = errors(HUNDRED, OFF, np.array([3.0, 1.0, 1.0, 1.0]))
    assert found.mape == pytest.approx((3 * 4 + 10 + 30 + 50) / 6)
    assert found.eba5 == pytest.approx(50)
    assert found.median_ape == 4


def test_a_run_repeated_with_shared_weight_changes_nothing() -> None:
    """Ten runs of one configuration at a tenth each are one row."""
    tenfold = np.repeat([[100.0], [90.0]], 10, axis=1)
    once = errors(np.array([100.0, 100.0]), np.array([90.0, 150.0]))
    many = errors(
        np.append(tenfold[0], 100.0), np.append(tenfold[1], 150.0), np.append(np.full(10, 0.1), 1.0)
    )
    assert many.n == 11
    for name in ("mape", "median_ape", "eba5", "eba10", "eba30", "p95_ape", "bias"):
        assert getattr(many, name) == pytest.approx(getattr(once, name))


@pytest.mark.parametrize(
    ("measured", "predicted"),
    [([0.0], [1.0]), ([1.0], [math.nan]), ([1.0], [0.0]), ([], []), ([1.0], [1.0, 2.0])],
)
def test_senseless_arrays_are_refused(measured: list[float], predicted: list[float]) -> None:
    """Nothing measured, nothing predicted, not a number, or not one for each."""
    with pytest.raises(MeterError):
        errors(np.array(measured), np.array(predicted))


@given(joules)
def test_every_report_keeps_the_bound(rows: list[tuple[float, float, float]]) -> None:
    """Whatever is compared, the MAPE is at least what the shares within thresholds ask for."""
    measured, predicted, weights = np.array(rows).T
    found = errors(measured, predicted, weights)
    assert found.mape >= found.bound - 1e-6
    assert found.eba5 <= found.eba10 + 1e-9 <= found.eba30 + 2e-9
    assert found.median_ape <= found.p95_ape


def test_figures_that_contradict_each_other_are_found() -> None:
    """6.3 % cannot be the MAPE of rows of which a fifth are off by over 30 %."""
    assert consistency_bound(33.7, 53.1, 80.1) == pytest.approx(9.64)
    with pytest.raises(MeterError, match=r"6\.30 % contradicts"):
        check_consistency(Errors(6.3, 5, 33.7, 53.1, 80.1, 40, 0, 100))


def test_interval_coverage_and_width() -> None:
    """Bounds belong to the interval; the width is relative to what was measured."""
    found = intervals(
        np.array([100.0, 200.0, 50.0]), np.array([90.0, 200.0, 60.0]), np.array([110, 240, 70.0])
    )
    assert found.coverage == pytest.approx(200 / 3)
    assert found.mean_width == pytest.approx((20 + 20 + 20) / 3)


def test_noise_floor_is_of_the_rows_that_tell_it() -> None:
    """0.8 times the weighted mean of 1 % and 4 %; silent rows do not count."""
    rows = [made_row(noise=0.01, weight=2.0), made_row(noise=0.04), made_row()]
    assert noise_floor(rows) == (pytest.approx(0.8 * 2.0), 2)
    assert math.isnan(noise_floor([made_row()]).mape)


def test_the_same_predictor_twice_is_no_difference() -> None:
    """Nor is one that is sometimes better and sometimes worse by as much."""
    ape = np.arange(20.0)
    groups = [f"g{number % 5}" for number in range(20)]
    swing = np.where(np.arange(20) % 5 < 3, 1.0, -1.5)
    assert paired_bootstrap(ape, ape, groups, np.ones(20), seed=0) == (0, 0, 0)
    found = paired_bootstrap(ape, ape + swing, groups, np.ones(20), seed=0)
    assert found.verdict() == "no difference"


def test_a_predictor_that_is_always_better_is_found() -> None:
    """In every group by at least one point, however much the groups themselves differ."""
    ape = np.arange(20.0) * 10
    groups = [f"g{number // 4}" for number in range(20)]
    found = paired_bootstrap(ape, ape + 1 + np.arange(20) % 3, groups, np.ones(20), seed=0)
    assert found.verdict() == "the first is better"
    assert Comparison(-found.difference, -found.high, -found.low).verdict() == (
        "the second is better"
    )


def test_rows_of_one_group_are_no_evidence_of_their_own() -> None:
    """A hundred rows in two groups leave a far wider interval than in a hundred groups."""
    ape = np.concatenate([np.full(50, 10.0), np.full(50, 20.0)])
    two = bootstrap(ape, ["a"] * 50 + ["b"] * 50, np.ones(100), seed=0)
    hundred = bootstrap(ape, [str(number) for number in range(100)], np.ones(100), seed=0)
    assert (two.value, hundred.value) == (pytest.approx(15), pytest.approx(15))
    assert (two.low, two.high) == (pytest.approx(10), pytest.approx(20))
    assert hundred.high - hundred.low < 3


def test_one_group_says_nothing_about_others() -> None:
    """Its interval is unbounded, so that it decides nothing."""
    found = paired_bootstrap(np.zeros(3), np.ones(3), ["a"] * 3, np.ones(3), seed=0)
    assert found.verdict() == "no difference"


@given(joules, st.integers(0, 5))
def test_bootstrap_is_repeatable_and_within_the_errors(
    rows: list[tuple[float, float, float]], seed: int
) -> None:
    """The same seed gives the same interval, inside the errors that were seen."""
    measured, predicted, weights = np.array(rows).T
    ape = absolute_percentage_errors(measured, predicted)
    groups = ["first", *(f"g{number % 4}" for number in range(len(rows) - 1))]
    found = bootstrap(ape, groups, weights, seed, draws=50)
    assert found == bootstrap(ape, groups, weights, seed, draws=50)
    slack = 1e-9 * (1 + ape.max())
    assert found.low <= found.high
    if len(set(groups)) > 1:
        assert ape.min() - slack <= found.low
        assert found.high <= ape.max() + slack
