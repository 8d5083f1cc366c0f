"""Focused sampling against random sampling on recorded measurements: error by their number.

    LLM_CARBON_METER_DATA=/path/to/data python examples/focused_sampling/compare.py

Each strategy chooses, round by round, which of the public measurements it "makes"; the predictor is
trained on these and judged on architectures and GPUs that were locked away before. Three minutes on
two cores.
"""

import argparse
import textwrap
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure

from llm_carbon_meter.config import data_folder
from llm_carbon_meter.exporters.columns import aligned
from llm_carbon_meter.training.data.dataset import read_table
from llm_carbon_meter.training.fit.examples import merge_repeats
from llm_carbon_meter.training.fit.metrics import Interval
from llm_carbon_meter.training.study.evaluate.jobs import PROCESSES
from llm_carbon_meter.training.study.recorded import (
    GATE,
    STRATEGIES,
    TEST_SHARE,
    Curves,
    compare,
    mape,
    paired,
)
from llm_carbon_meter.training.study.sampling import Plan

PLAN = Plan(first=40, per_round=60, per_point=5, budget=340)
"""Half of what is not locked away; the paper's A = 50000 and B = 100 brought to its size."""
SEEDS = 8
FOCUSED, *OTHERS = STRATEGIES
COLOURS = {"focused": "#e8853a", "random": "#3b7dd8", "even": "#6c5b9e"}
CAPTION_COLUMNS = 118


def differences(curves: Curves, places: slice) -> dict[str, list[Interval]]:
    """Focused minus each other strategy at some places of the curves, and over them together."""
    errors = {name: mape(some)[:, places] for name, some in curves.items()}
    return {
        name: [
            *(paired(*both) for both in zip(errors[FOCUSED].T, errors[name].T, strict=True)),
            paired(errors[FOCUSED].mean(1), errors[name].mean(1)),
        ]
        for name in OTHERS
    }


def table(curves: Curves) -> str:
    """Mean and standard deviation of the error over the seeds, and the paired differences."""
    heading = ["measurements", *(f"{name} %" for name in STRATEGIES), "near errors"]
    heading += [f"{FOCUSED} - {name}" for name in OTHERS]
    errors = {name: mape(some) for name, some in curves.items()}
    near = np.mean([[point.num_near for point in curve] for curve in curves[FOCUSED]], axis=0)
    rows = [
        [
            str(point.measurements),
            *(f"{errors[name][:, place].mean():.1f} ± {errors[name][:, place].std(ddof=1):.1f}"
              for name in STRATEGIES),
            f"{near[place]:.0f}",
            *(_interval(each[place]) for each in differences(curves, slice(None)).values()),
        ]
        for place, point in enumerate(curves[FOCUSED][0])
    ]  # fmt: skip
    after = [f"{found[:, 1:].mean():.1f}" for found in errors.values()]
    mean = [_interval(each[-1]) for each in differences(curves, slice(1, None)).values()]
    return aligned([heading, *rows, ["mean after the first", *after, "", *mean]], left=())


def _interval(found: Interval) -> str:
    return f"{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def picture(curves: Curves, caption: str) -> Figure:
    """Error against measurements, and the paired differences."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = [point.measurements for point in curves[FOCUSED][0]]
    for name, some in curves.items():
        errors = mape(some)
        mean, error = errors.mean(0), errors.std(0, ddof=1) / np.sqrt(len(errors))
        left.plot(numbers, mean, marker="o", color=COLOURS[name], label=name)
        left.fill_between(numbers, mean - error, mean + error, color=COLOURS[name], alpha=0.15)
    left.set(xlabel="measurements", ylabel="MAPE on the locked test set (%)")
    left.set_title("mean over seeds, band: standard error")
    left.legend()
    right.axhline(0, color="black", linewidth=1)
    for shift, (name, found) in zip((-3, 3), differences(curves, slice(None)).items(), strict=True):
        value, low, high = np.array(found[:-1]).T
        right.errorbar(
            np.array(numbers) + shift, value, (value - low, high - value),
            fmt="o", capsize=3, color=COLOURS[name], label=f"{FOCUSED} - {name}",
        )  # fmt: skip
    right.set(xlabel="measurements", ylabel="difference in MAPE (percentage points)")
    right.set_title("paired over seeds, 95 %; below 0 focused is better")
    right.legend()
    figure.supxlabel(textwrap.fill(caption, 165), fontsize=7.5, x=0.02, ha="left")
    return figure


def verdict(curves: Curves) -> str:
    """In a sentence for each other strategy, from the mean difference after the first round."""
    return " ".join(
        f"Focused {_beats(each[-1])} {name} sampling: {_interval(each[-1])} percentage points, "
        "mean from the second training on."
        for name, each in differences(curves, slice(1, None)).items()
    )


def _beats(found: Interval) -> str:
    if found.low <= 0 <= found.high:
        return "cannot be told from"
    return "beats" if found.value < 0 else "is worse than"


def caption_of(curves: Curves, num_rows: int) -> str:
    """What was compared, and what came out."""
    seeds = len(curves[FOCUSED])
    near = np.mean([curve[-1].num_near / curve[-1].measurements for curve in curves[FOCUSED]])
    searched, bound = f"{PLAN.search_share:.0%}", f"{PLAN.large_percent:g} %"
    return (
        f"{verdict(curves)} Pool: {num_rows} public measurements. For each of {seeds} seeds "
        f"whole groups of architecture and GPU, {TEST_SHARE:.0%} of the rows, are locked away "
        "first, with all that is within C of them. Predictor: physics and network fitted anew in "
        f"every round (gate {GATE:g}); {searched} of what was chosen is kept to look for errors. "
        f"Focused: up to {PLAN.per_point} neighbours of each of these points that is off by more "
        f"than {bound}, the worst first, {near:.0%} of all choices; what is left of a round is "
        "random. C: the same GPU, engine and number formats, shapes within a factor of 1.25, batch "
        "and lengths within 2. Even: architectures and GPUs in turn. Brackets: 95 % of draws of "
        "seeds, which share one pool and say nothing of another."
    )


def main() -> None:
    """Compare, print and save the table and the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="", help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--budget", type=int, default=PLAN.budget)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    options = parser.parse_args()
    rows = merge_repeats(read_table(data_folder(options.data)).for_evaluation())
    plan = replace(PLAN, budget=options.budget)
    curves = compare(rows, plan, range(options.seeds), options.processes)
    caption = caption_of(curves, len(rows))
    text = f"{table(curves)}\n\n{textwrap.fill(caption, CAPTION_COLUMNS)}\n"
    print(text, end="")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "compare.txt").write_text(text, encoding="utf-8")
    picture(curves, caption).savefig(options.output / "compare.png", dpi=110)


if __name__ == "__main__":
    main()
