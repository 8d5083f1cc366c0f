"""What the predictor is meant to reach, and whether it does."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from llm_carbon_meter.training.study.evaluate.names import (
    ENGINES,
    FOLDS,
    GPUS,
    MODERN,
    OURS,
    RANDOM,
)
from llm_carbon_meter.training.study.live_requests import STATED as REQUESTS
from llm_carbon_meter.training.study.own_rows import STATED

Figures = dict[str, Any]

CLAIMED_REDUCTIONS: Final = {"NNLQP": 45.0, "DeepEn": 51.0}
"""Of LLMCO2's MAPE against theirs, as its paper says [%]."""
MAPE_GOALS: Final = {
    MODERN: 6.0,
    FOLDS: 9.0,
    GPUS: 20.0,
    ENGINES: 20.0,
    "leave-family-out": 12.0,
    "batch up": 6.0,
    "batch down": 8.0,
    RANDOM: 4.0,
}
EBA10_GOALS: Final = {MODERN: 82.0, FOLDS: 68.0, RANDOM: 92.0}
OWN_MAPE: Final = 6.0
LIVE_MAPE: Final = 6.0
UNSEEN: Final = {FOLDS: "architectures", ENGINES: "engines", GPUS: "GPUs"}
SIMPLE: Final = (
    *("LLM-BENCH note", "TDP x roofline", "two parameters", "per deployment", "physics"),
    *("J per token", "random forest"),
)
COVERAGE: Final = (75.0, 85.0)


def goals(results: Figures) -> list[Figures]:
    """Every goal with its figure; those whose figures were not made are left out."""
    return [*_split_goals(results), *_reduction_goals(results), *_other_goals(results)]


def _split_goals(results: Figures) -> Iterator[Figures]:
    for figure, wanted, at_least in (("mape", MAPE_GOALS, False), ("eba10", EBA10_GOALS, True)):
        for split, target in wanted.items():
            if split in results["splits"]:
                figure_of_ours = results["splits"][split]["predictors"][OURS][figure]
                words = {"mape": "MAPE", "eba10": "EBA(10 %)"}[figure]
                yield goal(f"{split}: {words}", figure_of_ours, target, at_least)


def _reduction_goals(results: Figures) -> Iterator[Figures]:
    for name, target in CLAIMED_REDUCTIONS.items():
        if name in results["reductions"]:
            yield goal(f"MAPE below that of {name}", results["reductions"][name], target, True)


def _other_goals(results: Figures) -> Iterator[Figures]:
    splits = results["splits"]
    yield _never_worse(splits, tuple(splits), ("two parameters",), "two parameters")
    yield _never_worse(splits, (GPUS, ENGINES), SIMPLE, "any simple baseline on GPUs and engines")
    for split, own in results["own_rows"].items():
        if str(STATED) in own["shown"]:
            words = f"{split}, from {STATED} of the deployment's own configurations: MAPE"
            yield goal(words, own["shown"][str(STATED)]["posterior"], OWN_MAPE, False)
    for split, live in results["live"].items():
        words = f"unseen {UNSEEN[split]}, after {REQUESTS} live requests (simulated): MAPE"
        yield goal(words, live["shown"][str(REQUESTS)]["posterior"], LIVE_MAPE, False)
    low, high = COVERAGE
    for split, coverage in results["coverage"].items():
        yield {
            "goal": f"coverage of the 80 % interval on unseen {UNSEEN[split]}",
            "target": f"{low:g}-{high:g} %",
            **_bounds(coverage),
            "reached": reached(coverage, low, True) and reached(coverage, high, False),
        }


def _never_worse(
    splits: Figures, judged: Sequence[str], baselines: Sequence[str], words: str
) -> Figures:
    """Ours minus the baseline that comes closest, or is better."""
    against = {
        (split, baseline): splits[split]["minus"][baseline]
        for split in judged
        for baseline in baselines
        if baseline in splits[split]["minus"]
    }
    split, baseline = worst = max(against, key=lambda pair: against[pair]["value"])
    return {
        "goal": f"never worse than {words} (points; closest: {baseline}, {split})",
        "target": "<= 0",
        **_bounds(against[worst]),
        "reached": reached(against[worst], 0.0, False),
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
    """Whether the point estimate is at the goal or beyond it, whatever its interval includes."""
    return bool(found["value"] >= target if at_least else found["value"] <= target)
