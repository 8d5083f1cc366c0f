"""What every baseline is: a name and a way to fit it; and the fit that several share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LinearRegression

from llm_carbon_meter.training.data.physics_features import column
from llm_carbon_meter.training.data.rows import Row

Floats = npt.NDArray[np.float64]
Predict = Callable[[Sequence[Row]], Floats]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A baseline that has seen its training rows."""

    predict: Predict
    """Joules per request of some rows, shape (n,), above 0."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A way to predict that others are compared with."""

    name: str
    fit: Callable[[Sequence[Row], int], Fitted]
    """From training rows and a seed."""


def non_negative_fit(columns: Floats, rows: Sequence[Row]) -> Floats:
    """Coefficients >= 0 of columns [J], shape (n, k), with the least squared relative error.

    Rows count by their weight. Returns shape (k,).
    """
    relative = columns / column(rows, "energy_joules")[:, None]
    size = np.sqrt(np.mean(relative**2, axis=0))
    scale = np.where(size > 0, size, 1.0)
    model = LinearRegression(fit_intercept=False, positive=True)
    model.fit(relative / scale, np.ones(len(rows)), sample_weight=column(rows, "weight"))
    coefficients: Floats = model.coef_ / scale
    return coefficients


def codes(values: Sequence[str], known: Sequence[str]) -> Floats:
    """The place of each value in ``known``, -1 where it is not there; shape (n,)."""
    places = {value: place for place, value in enumerate(known)}
    return np.array([places.get(value, -1) for value in values], np.float64)


def one_hot(values: Sequence[str], known: Sequence[str]) -> Floats:
    """A 1 at the place of each value in ``known``, none where it is not there; shape (n, k)."""
    places = codes(values, known)[:, None]
    return np.where(places == np.arange(len(known)), 1.0, 0.0)


def distinct(values: Sequence[str]) -> list[str]:
    """The values that occur, sorted."""
    return sorted(set(values))
