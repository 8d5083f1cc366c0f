"""How far predictions are from measurements, and whether two predictors differ.

Errors are per cent of what was measured. Repeated runs of one configuration weigh 1 together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.rows import Row

Floats = npt.NDArray[np.float64]

ROUNDING: Final = 1e-9
"""An error this little above a bound is on it."""
MEAN_OVER_DEVIATION: Final = 0.8
"""Mean distance of a normal value from its mean, over its standard deviation: sqrt(2 / pi)."""
CONFIDENCE: Final = (2.5, 97.5)
"""Percentiles of a bootstrap interval."""
DRAWS: Final = 2000
"""Of groups in a bootstrap."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one set of predictions; all but ``bias`` and ``n`` in per cent."""

    mape: float
    """Mean absolute error, relative to what was measured."""
    median_ape: float
    eba5: float
    """Share of rows that are off by at most 5 %."""
    eba10: float
    eba30: float
    p95_ape: float
    bias: float
    """Mean of ln(predicted / measured): above 0 where predictions are too high."""
    n: int
    """Rows, repeated runs counted one by one."""

    @property
    def bound(self) -> float:
        """The least MAPE that the three shares allow."""
        return consistency_bound(self.eba5, self.eba10, self.eba30)


def absolute_percentage_errors(measured: Floats, predicted: Floats) -> Floats:
    """Distance from each measurement [%], shape (n,).

    Raises:
        MeterError: a measurement is not above 0, or a prediction is not a number.
    """
    if measured.shape != predicted.shape or not measured.size:
        raise MeterError(
            f"{measured.shape} measurements and {predicted.shape} predictions; "
            "give one for each, at least one"
        )
    if not (np.all(measured > 0) and np.all(np.isfinite(predicted))):
        raise MeterError("measurements must be above 0 and predictions finite")
    ape: Floats = 100 * np.abs(predicted - measured) / measured
    return ape


def errors(measured: Floats, predicted: Floats, weights: Floats | None = None) -> Errors:
    """Compare joules, shapes (n,); a row weighs 1 if there are no weights.

    Raises:
        MeterError: the arrays do not fit each other or make no sense.
    """
    ape = absolute_percentage_errors(measured, predicted)
    if not np.all(predicted > 0):
        raise MeterError(f"{np.sum(predicted <= 0)} predictions are not above 0 joules")
    share = _shares(weights, len(ape))
    result = Errors(
        mape=float(share @ ape),
        median_ape=weighted_quantile(ape, share, 0.5),
        eba5=_within(ape, share, 5),
        eba10=_within(ape, share, 10),
        eba30=_within(ape, share, 30),
        p95_ape=weighted_quantile(ape, share, 0.95),
        bias=float(share @ np.log(predicted / measured)),
        n=len(ape),
    )
    check_consistency(result)
    return result


def _shares(weights: Floats | None, n: int) -> Floats:
    """Weights that sum to 1."""
    given = np.ones(n) if weights is None else weights
    shares: Floats = given / given.sum()
    return shares


def _within(ape: Floats, share: Floats, threshold: float) -> float:
    """Share of rows with an error up to a threshold, itself included [%]."""
    return float(100 * share[ape <= threshold + ROUNDING].sum())


def weighted_quantile(values: Floats, share: Floats, level: float) -> float:
    """The smallest value that has at least this level of the weight at or below it.

    The shares sum to 1.
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(share[order]) >= level - ROUNDING
    return float(values[order][np.argmax(reached)])


def consistency_bound(eba5: float, eba10: float, eba30: float) -> float:
    """The least MAPE [%] that shares within 5, 10 and 30 % [%] allow.

    Rows outside a threshold are off by more than it: 0.30 (100 - EBA30) + 0.10 (EBA30 - EBA10)
    + 0.05 (EBA10 - EBA5).
    """
    return 0.30 * (100 - eba30) + 0.10 * (eba30 - eba10) + 0.05 * (eba10 - eba5)


def check_consistency(found: Errors) -> None:
    """Refuse figures that cannot belong to one set of rows.

    Raises:
        MeterError: the MAPE is below its bound.
    """
    if found.mape < found.bound - 1e-6:
        raise MeterError(
            f"a MAPE of {found.mape:.2f} % contradicts EBA 5/10/30 of {found.eba5:.1f}/"
            f"{found.eba10:.1f}/{found.eba30:.1f} %, which ask for {found.bound:.2f} % at least"
        )


class Intervals(NamedTuple):
    """Of stated low and high bounds."""

    coverage: float
    """Share of measurements inside, bounds included [%]."""
    mean_width: float
    """High - low, relative to what was measured [%]."""


def intervals(
    measured: Floats, low: Floats, high: Floats, weights: Floats | None = None
) -> Intervals:
    """Compare joules with their predicted bounds, shapes (n,)."""
    share = _shares(weights, len(measured))
    inside = (low <= measured) & (measured <= high)
    return Intervals(
        float(100 * share[inside].sum()), float(100 * share @ ((high - low) / measured))
    )


class NoiseFloor(NamedTuple):
    """The best MAPE possible against single runs."""

    mape: float
    """[%]; nan where no row tells its noise."""
    n: int
    """Rows that tell it."""


def noise_floor(rows: Sequence[Row]) -> NoiseFloor:
    """0.8 times the coefficient of variation, averaged over the rows where it is known."""
    noisy = [(row.noise, row.weight) for row in rows if row.noise is not None]
    if not noisy:
        return NoiseFloor(math.nan, 0)
    noise, weights = np.array(noisy).T
    mean = float(np.average(noise, weights=weights))
    return NoiseFloor(100 * MEAN_OVER_DEVIATION * mean, len(noisy))


class Interval(NamedTuple):
    """A figure and where it would lie in 95 % of draws of other groups."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """MAPE of the first minus MAPE of the second [percentage points]."""

    difference: float
    low: float
    high: float

    def verdict(self) -> str:
        """Which of the two is better, where that is more than chance."""
        if self.low <= 0 <= self.high:
            return "no difference"
        return "the first is better" if self.difference < 0 else "the second is better"


def bootstrap(
    ape: Floats, groups: Sequence[str], weights: Floats, seed: int, draws: int = DRAWS
) -> Interval:
    """The weighted mean of errors, shape (n,), and its interval over groups drawn anew.

    Rows of one group err together, so whole groups are drawn, with replacement. A single group
    says nothing about others: its interval is unbounded.
    """
    share = _shares(weights, len(ape))
    low, high = _drawn_interval(share * ape, share, groups, seed, draws)
    return Interval(float(share @ ape), low, high)


def paired_bootstrap(
    ape_a: Floats,
    ape_b: Floats,
    groups: Sequence[str],
    weights: Floats,
    seed: int,
    draws: int = DRAWS,
) -> Comparison:
    """Compare two predictors on the same rows, as `bootstrap` does with one."""
    return Comparison(*bootstrap(ape_a - ape_b, groups, weights, seed, draws))


def reduction_bootstrap(
    ape_a: Floats, ape_b: Floats, groups: Sequence[str], weights: Floats, seed: int
) -> Interval:
    """How much lower the first MAPE is than the second [%], and its interval over groups."""
    share = _shares(weights, len(ape_a))
    low, high = _drawn_interval(share * ape_a, share * ape_b, groups, seed, DRAWS)
    ratio = float(share @ ape_a / (share @ ape_b))
    return Interval(100 * (1 - ratio), 100 * (1 - high), 100 * (1 - low))


def _drawn_interval(
    sums: Floats, share: Floats, groups: Sequence[str], seed: int, draws: int
) -> tuple[float, float]:
    """Percentiles of sum(sums) / sum(share) over draws of groups."""
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return -math.inf, math.inf
    chosen = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    drawn_sums = np.bincount(group, sums)[chosen].sum(axis=1)
    drawn_share = np.bincount(group, share)[chosen].sum(axis=1)
    low, high = np.percentile(drawn_sums / drawn_share, CONFIDENCE)
    return float(low), float(high)
