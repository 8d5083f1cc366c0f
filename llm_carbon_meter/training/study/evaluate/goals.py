"""What the predictor is meant to reach, and whether it does."""

from collections.abc import Iterator
from typing import Any, Final

from llm_carbon_meter.training.study.evaluate.names import FOLDS, MODERN, OURS, RANDOM

Figures = dict[str, Any]

NEAR: Final = 0.1
"""A figure this share of the goal away may reach it, if its interval does."""
CLAIMED_REDUCTIONS: Final = {"NNLQP": 45.0, "DeepEn": 51.0}
"""Of LLMCO2's MAPE against theirs, as its paper says [%]."""
MAPE_GOALS: Final = {
    MODERN: 5.0,
    FOLDS: 10.0,
    "leave-family-out": 12.0,
    "batch up": 6.0,
    "batch down": 8.0,
    RANDOM: 4.0,
}
EBA10_GOALS: Final = {MODERN: 82.0, FOLDS: 60.0, RANDOM: 92.0}
CALIBRATED_MAPE: Final = 8.0
COVERAGE: Final = (75.0, 85.0)


def goals(results: Figures) -> list[Figures]:
    """Every goal with its figure; those whose figures were not made are left out."""
    return [*_split_goals(results), *_reduction_goals(results), *_other_goals(results)]


def _split_goals(results: Figures) -> Iterator[Figures]:
    for figure, wanted, at_least in (("mape", MAPE_GOALS, False), ("eba10", EBA10_GOALS, True)):
        for split, target in wanted.items():
            if split in results["splits"]:
                found = results["splits"][split]["predictors"][OURS][figure]
                words = {"mape": "MAPE", "eba10": "EBA(10 %)"}[figure]
                yield goal(f"{split}: {words}", found, target, at_least)


def _reduction_goals(results: Figures) -> Iterator[Figures]:
    for name, target in CLAIMED_REDUCTIONS.items():
        if name in results["reductions"]:
            yield goal(f"MAPE below that of {name}", results["reductions"][name], target, True)


def _other_goals(results: Figures) -> Iterator[Figures]:
    against = {name: split["minus"]["two parameters"] for name, split in results["splits"].items()}
    worst = max(against, key=lambda name: against[name]["value"])
    yield {
        "goal": f"never worse than two parameters (points; closest: {worst})",
        "target": "<= 0",
        **_bounds(against[worst]),
        "reached": all(found["verdict"] != "worse" for found in against.values()),
    }
    if calibration := results["calibration"]:
        words = f"unseen engine after {calibration['requests']} requests: MAPE"
        yield goal(words, calibration["calibrated"], CALIBRATED_MAPE, False)
    low, high = COVERAGE
    found = results["coverage"]
    yield {
        "goal": "coverage of the 80 % interval on unseen architectures",
        "target": f"{low:g}-{high:g} %",
        **_bounds(found),
        "reached": reached(found, low, True) and reached(found, high, False),
    }


def goal(words: str, found: Figures, target: float, at_least: bool) -> Figures:
    """A goal with its figure."""
    return {
        "goal": words,
        "target": f"{'>=' if at_least else '<='} {target:g} %",
        **_bounds(found),
        "reached": reached(found, target, at_least),
    }


def _bounds(found: Figures) -> Figures:
    return {name: found[name] for name in ("value", "low", "high")}


def reached(found: Figures, target: float, at_least: bool) -> bool:
    """At the goal or beyond it; or a tenth of it short, and the interval includes it."""
    value, low, high = found["value"], found["low"], found["high"]
    if value >= target if at_least else value <= target:
        return True
    included = (low is None or low <= target) and (high is None or target <= high)
    return bool(included and abs(value - target) <= NEAR * target)
