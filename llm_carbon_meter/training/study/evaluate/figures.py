"""Predictions of held-out rows to figures, as they stand in results.json. Pure.

All percentages are of what was measured; rows count by their weight; intervals hold 95 % of what
other draws of architectures would give.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.predictor.gnn import Z_80
from llm_carbon_meter.training.data.rows import Flag, Row
from llm_carbon_meter.training.fit.metrics import (
    ROUNDING,
    Interval,
    absolute_percentage_errors,
    bootstrap,
    errors,
    intervals,
    noise_floor,
    paired_bootstrap,
    reduction_bootstrap,
)
from llm_carbon_meter.training.fit.ship import deviation, multiple
from llm_carbon_meter.training.study.live_requests import SHOWN as REQUESTS
from llm_carbon_meter.training.study.live_requests import STATED, WAYS, Live
from llm_carbon_meter.training.study.own_rows import DRAWS, SHOWN, OwnRows

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Figures = dict[str, Any]

BOOTSTRAP_SEED: Final = 0
LEVELS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares that an interval states to hold."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The test rows of all folds of a split, one fold after the other."""

    rows: Sequence[Row]
    folds: npt.NDArray[np.intp]
    """What each row was held out with, shape (n,)."""
    held_out: Sequence[str]
    """Name of each fold."""
    joules: Mapping[str, Floats]
    """Predicted per request by each predictor, shape (n,)."""
    variance: Floats
    """Of ln(joules) of ours, by the priors of its factors, shape (n,)."""

    @property
    def measured(self) -> Floats:
        """Joules per request, shape (n,)."""
        return np.array([row.energy_joules for row in self.rows])

    @property
    def weights(self) -> Floats:
        """Shape (n,)."""
        return np.array([row.weight for row in self.rows])

    @property
    def groups(self) -> Sequence[str]:
        """Architecture of each row."""
        return [row.architecture for row in self.rows]

    def of(self, mask: Mask) -> "Judged":
        """Some of the rows."""
        return Judged(
            [row for row, taken in zip(self.rows, mask, strict=True) if taken],
            self.folds[mask],
            self.held_out,
            {name: joules[mask] for name, joules in self.joules.items()},
            self.variance[mask],
        )

    def ape(self, predictor: str) -> Floats:
        """Absolute error of each row [%]."""
        return absolute_percentage_errors(self.measured, self.joules[predictor])


def accuracy(judged: Judged, predictor: str) -> Figures:
    """Every figure of one predictor; mape and eba10 with their intervals."""
    result = errors(judged.measured, judged.joules[predictor], judged.weights)
    ape = judged.ape(predictor)
    return {
        "mape": _mean(judged, ape),
        "median": round(result.median_ape, 2),
        "eba5": round(result.eba5, 1),
        "eba10": _mean(judged, np.where(ape <= 10 + ROUNDING, 100.0, 0.0)),
        "eba30": round(result.eba30, 1),
        "p95": round(result.p95_ape, 1),
        "bias": round(result.bias, 3),
    }


def size(judged: Judged) -> Figures:
    """How much a figure rests on."""
    return {"rows": len(judged.rows), "architectures": len(set(judged.groups))}


def split_figures(judged: Judged, ours: str, predictors: Sequence[str]) -> Figures:
    """A split: every predictor, ours against the others, and the noise of what was measured."""
    floor = noise_floor(judged.rows)
    low_precision = np.array([Flag.LOW_PRECISION in row.flags for row in judged.rows])
    return {
        **size(judged),
        "folds": len(set(judged.folds.tolist())),
        "noise_floor": {"mape": _number(floor.mape, 2), "rows": floor.n},
        "predictors": {name: accuracy(judged, name) for name in predictors},
        "minus": {name: difference(judged, ours, name) for name in predictors if name != ours},
        "precision": {
            label: {**size(part), **{name: accuracy(part, name) for name in predictors[:2]}}
            for label, mask in (("FP8, MXFP4", low_precision), ("16 bits", ~low_precision))
            if len((part := judged.of(mask)).rows)
        },
        "families": by_group(judged, lambda row: row.family, predictors[:2]),
    }


def by_group(
    judged: Judged, group_of: Callable[[Row], str | None], predictors: Sequence[str]
) -> Figures:
    """Every predictor on each group of rows; those of no group are left out."""
    names = [group_of(row) for row in judged.rows]
    groups: Figures = {}
    for name in sorted({name for name in names if name}):
        part = judged.of(np.array([label == name for label in names]))
        groups[name] = {
            **size(part),
            **{predictor: accuracy(part, predictor) for predictor in predictors},
        }
    return groups


def paper_family(row: Row) -> str | None:
    """The family of the paper's tables that a row belongs to.

    Qwen2.5 is not Qwen2, nor are Llama-3.2 and Llama-3.3 Llama-3.1, nor Gemma 3 any of the others.
    """
    named = {"bloom": "Bloom", "gemma": "Gemma", "gemma2": "Gemma2", "mixtral": "Mixtral"}
    if row.family in named:
        return named[row.family]
    return "Llama3.1" if "Llama-3.1" in row.model else None


def difference(judged: Judged, first: str, second: str) -> Figures:
    """MAPE of the first minus that of the second [percentage points]."""
    interval = paired_bootstrap(
        judged.ape(first), judged.ape(second), judged.groups, judged.weights, BOOTSTRAP_SEED
    )
    verdict = interval.verdict().replace("the first is better", "better")
    return {
        **_interval(Interval(*interval)),
        "verdict": verdict.replace("the second is better", "worse"),
    }


def reduction(judged: Judged, first: str, second: str) -> Figures:
    """How much lower the MAPE of the first is than that of the second [%]."""
    return _interval(
        reduction_bootstrap(
            judged.ape(first), judged.ape(second), judged.groups, judged.weights, BOOTSTRAP_SEED
        )
    )


def own_figures(judged: Judged, own: OwnRows) -> Figures:
    """Errors on deployments that no fit has seen, by how many of their rows they have shown."""
    return {
        "draws": DRAWS,
        "shown": {
            str(shown): _shown(judged, own, place)
            for place, shown in enumerate(SHOWN)
            if not np.isnan(own.ape[place]).all()
        },
    }


def _shown(judged: Judged, own: OwnRows, place: int) -> Figures:
    mask = ~np.isnan(own.ape[place])
    part = judged.of(mask)
    return {
        **size(part),
        "posterior": _mean(part, own.ape[place][mask]),
        "one_factor": _mean(part, own.one_factor_ape[place][mask]),
        "inside": _mean(part, own.inside[place][mask]),
    }


def live_figures(worlds: Sequence[Live]) -> Figures:
    """Errors in some worlds by the requests that they have shown; intervals of GPUs and models."""
    apes = np.stack([world.apes for world in worlds])
    places = [f"{world.gpu}, {world.model}" for world in worlds]
    stated = apes[:, 0, REQUESTS.index(STATED)]
    return {
        "worlds": len(worlds),
        "loads": worlds[0].errors.shape[-1],
        "shown": {
            str(shown): {
                way: _interval(
                    bootstrap(apes[:, row, column], places, np.ones(len(worlds)), BOOTSTRAP_SEED)
                )
                for row, way in enumerate(WAYS)
            }
            for column, shown in enumerate(REQUESTS)
        },
        "stated": {
            place: round(float(stated[[place == other for other in places]].mean()), 2)
            for place in dict.fromkeys(places)
        },
    }


def coverage(judged: Judged, predictor: str) -> Figures:
    """Intervals of held-out rows: how wide a fold's are is from the other folds' residuals."""
    residual = np.log(judged.measured / judged.joules[predictor])
    spread, widths = np.zeros(len(residual)), []
    for fold in set(judged.folds.tolist()):
        own = judged.folds == fold
        seen = residual[~own], judged.variance[~own], judged.weights[~own]
        widths.append(multiple(*seen) if (~own).any() else 1.0)
        spread[own] = deviation(judged.variance[own], widths[-1])
    shares = [
        np.average(np.abs(residual) <= _deviations(level) * spread, weights=judged.weights)
        for level in LEVELS
    ]
    inside = np.where(np.abs(residual) <= Z_80 * spread, 100.0, 0.0)
    low, high = (judged.joules[predictor] * np.exp(sign * Z_80 * spread) for sign in (-1, 1))
    stated = intervals(judged.measured, low, high, judged.weights)
    return {
        **_mean(judged, inside),
        "mean_width": round(stated.mean_width, 1),
        "multiples": [round(width, 2) for width in widths],
        "curve": [
            [level, round(float(share), 3)] for level, share in zip(LEVELS, shares, strict=True)
        ],
    }


def _deviations(level: float) -> float:
    """Standard deviations that hold a share of a normal distribution."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _mean(judged: Judged, values: Floats) -> Figures:
    return _interval(bootstrap(values, judged.groups, judged.weights, BOOTSTRAP_SEED))


def _interval(found: Interval) -> Figures:
    return {name: _number(value, 2) for name, value in found._asdict().items()}


def _number(value: float, digits: int) -> float | None:
    """None for what JSON does not have."""
    return round(value, digits) if math.isfinite(value) else None
