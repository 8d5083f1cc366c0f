"""Predictions of held-out rows to figures, as they stand in results.json. Pure.

All percentages are of what was measured; rows count by their weight; intervals hold 95 % of what
other draws of architectures would give.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.predictor.calibration import Calibration
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
    weighted_quantile,
)

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Figures = dict[str, Any]

BOOTSTRAP_SEED: Final = 0
LEVELS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
INTERVAL: Final = (0.1, 0.9)
"""Levels of the bounds that an estimate states."""
CALIBRATION_REQUESTS: Final = 20
CALIBRATION_SEEDS: Final = 20


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

    Qwen2.5 is not Qwen2, nor are Llama-3.2 and Llama-3.3 Llama-3.1.
    """
    if row.family == "bloom":
        return "Bloom"
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


def calibrated(judged: Judged, predictor: str) -> Figures | None:
    """Errors on unseen engines after some of their requests were measured.

    Requests are drawn at random, of all models of the engine; the meter's own correction learns
    from them; the others are judged. An error is the mean over the draws that judge its row.
    None where no engine has twice as many rows as are drawn.
    """
    enough = [
        fold
        for fold in range(len(judged.held_out))
        if (judged.folds == fold).sum() >= 2 * CALIBRATION_REQUESTS
    ]
    if not enough:
        return None
    enough_judged = judged.of(np.isin(judged.folds, enough))
    raw, ape = enough_judged.ape(predictor), np.zeros(len(enough_judged.rows))
    for fold in enough:
        places = np.flatnonzero(enough_judged.folds == fold)
        ratios = np.log(enough_judged.measured / enough_judged.joules[predictor])[places]
        ape[places] = calibrated_ape(ratios)
    return {
        "requests": CALIBRATION_REQUESTS,
        "draws": CALIBRATION_SEEDS,
        "raw": _mean(enough_judged, raw),
        "calibrated": _mean(enough_judged, ape),
        "engines": {
            enough_judged.held_out[fold]: {
                **size(part := enough_judged.of(enough_judged.folds == fold)),
                "raw": _mean(part, raw[enough_judged.folds == fold])["value"],
                "calibrated": _mean(part, ape[enough_judged.folds == fold])["value"],
            }
            for fold in enough
        },
        "too_few_rows": [name for fold, name in enumerate(judged.held_out) if fold not in enough],
    }


def calibrated_ape(log_ratios: Floats) -> Floats:
    """Mean absolute error [%] of each row over the draws in which it taught nothing.

    Of ln(measured / predicted), shape (n,), at least twice as many as are drawn: then every row is
    judged in some draw.
    """
    total, judged = np.zeros(len(log_ratios)), np.zeros(len(log_ratios))
    for seed in range(CALIBRATION_SEEDS):
        order = np.random.default_rng(seed).permutation(len(log_ratios))
        correction = Calibration()
        for ratio in log_ratios[order[:CALIBRATION_REQUESTS]]:
            correction.observe(float(ratio))
        rest = order[CALIBRATION_REQUESTS:]
        total[rest] += 100 * np.abs(correction.factor / np.exp(log_ratios[rest]) - 1)
        judged[rest] += 1
    return total / judged


def coverage(judged: Judged, predictor: str) -> Figures:
    """Intervals of held-out rows: the bounds of a fold are from the other folds' residuals."""
    low, high = (_quantile_joules(judged, predictor, level) for level in INTERVAL)
    inside = np.where((low <= judged.measured) & (judged.measured <= high), 100.0, 0.0)
    stated = intervals(judged.measured, low, high, judged.weights)
    below = {
        level: judged.measured <= _quantile_joules(judged, predictor, level) for level in LEVELS
    }
    return {
        **_mean(judged, inside),
        "mean_width": round(stated.mean_width, 1),
        "curve": [
            [level, round(float(np.average(mask, weights=judged.weights)), 3)]
            for level, mask in below.items()
        ],
    }


def _quantile_joules(judged: Judged, predictor: str, level: float) -> Floats:
    """Joules that a share of the measurements should stay below, shape (n,)."""
    residual = np.log(judged.measured / judged.joules[predictor])
    joules = judged.joules[predictor].copy()
    for fold in set(judged.folds.tolist()):
        own = judged.folds == fold
        share = judged.weights[~own] / judged.weights[~own].sum()
        joules[own] *= math.exp(weighted_quantile(residual[~own], share, level))
    return joules


def _mean(judged: Judged, values: Floats) -> Figures:
    return _interval(bootstrap(values, judged.groups, judged.weights, BOOTSTRAP_SEED))


def _interval(found: Interval) -> Figures:
    return {name: _number(value, 2) for name, value in found._asdict().items()}


def _number(value: float, digits: int) -> float | None:
    """None for what JSON does not have."""
    return round(value, digits) if math.isfinite(value) else None
