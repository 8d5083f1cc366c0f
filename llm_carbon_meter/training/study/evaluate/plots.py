"""The plots beside results.json, all of rows whose architecture no fit has seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.training.study.evaluate.figures import Figures, Judged
from llm_carbon_meter.training.study.evaluate.goals import LIVE_MAPE, UNSEEN
from llm_carbon_meter.training.study.evaluate.names import OURS, PLOTS
from llm_carbon_meter.training.study.live_requests import SHOWN, STATED, WAYS

Floats = npt.NDArray[np.float64]

DPI: Final = 90
BANDS: Final = 8
"""Of about equal numbers of rows, for medians."""


def draw(folder: Path, judged: Judged, results: Figures) -> None:
    """Save all of `PLOTS`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for file, panels in zip(PLOTS, (1, 2, 1, 1, 1), strict=True):
        figure, axes = pyplot.subplots(1, panels, figsize=(6 * panels, 5), layout="constrained")
        if file == "measured.png":
            _measured(axes, judged)
        elif file == "errors.png":
            _errors(axes, judged)
        elif file == "coverage.png":
            _coverage(axes, results["coverage"])
        elif file == "own.png":
            _own_rows(axes, results["own_rows"])
        else:
            _live(axes, results["live"])
        figure.savefig(folder / file, dpi=DPI)
        pyplot.close(figure)


def _measured(axes: Any, judged: Judged) -> None:
    measured, predicted = judged.measured, judged.joules[OURS]
    ends = np.array([min(measured.min(), predicted.min()), max(measured.max(), predicted.max())])
    axes.plot(ends, ends, color="black", linewidth=1, label="exact")
    axes.fill_between(ends, ends * 0.9, ends * 1.1, color="#d0d0d0", label="within 10 %")
    for source, places in _by_source(judged):
        axes.scatter(measured[places], predicted[places], s=8, alpha=0.6, label=source)
    axes.set(xscale="log", yscale="log", xlabel="measured (J per request)")
    axes.set(ylabel="predicted (J per request)", title="Architectures that no fit has seen")
    axes.legend(fontsize="small")


def _errors(axes: Sequence[Any], judged: Judged) -> None:
    error = 100 * (judged.joules[OURS] / judged.measured - 1)
    sizes = {
        "requests at once": np.array([row.concurrency for row in judged.rows]),
        "output tokens": np.array([row.output_tokens for row in judged.rows]),
    }
    for panel, (label, values) in zip(axes, sizes.items(), strict=True):
        panel.axhspan(-10, 10, color="#d0d0d0")
        for source, places in _by_source(judged):
            panel.scatter(values[places], error[places], s=8, alpha=0.6, label=source)
        panel.plot(*banded_medians(values, error), color="black", label="median")
        panel.set(xscale="log", xlabel=label, ylim=(-100, 100))
    axes[0].set_ylabel("predicted / measured - 1 (%)")
    axes[1].legend(fontsize="small", loc="lower center", ncols=3)


def _coverage(axes: Any, coverages: Figures) -> None:
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, label="exact")
    for split, coverage in coverages.items():
        stated, observed = np.array(coverage["curve"]).T
        axes.plot(stated, observed, marker="o", label=f"unseen {UNSEEN[split]}")
    axes.set(xlabel="share that the interval states", ylabel="share of measurements inside")
    axes.set_title("Intervals of what no fit has seen")
    axes.legend(fontsize="small")


def _own_rows(axes: Any, own_rows: Figures) -> None:
    for split, own in own_rows.items():
        shown = [int(number) for number in own["shown"]]
        for name, line in (("posterior", "-"), ("one_factor", ":")):
            errors = [figures[name]["value"] for figures in own["shown"].values()]
            label = f"unseen {UNSEEN[split]}, {name.replace('_', ' ')}"
            axes.plot(shown, errors, line, marker="o", label=label)
    axes.set(xlabel="own configurations measured", ylabel="MAPE of the others (%)")
    axes.set(ylim=(0, None), title="Deployments that no fit has seen")
    axes.legend(fontsize="small")


def _live(axes: Any, live: Figures) -> None:
    """Nothing but the goal where no kernel tables are."""
    for split, worlds in live.items():
        shown = [int(number) for number in worlds["shown"]]
        for way, line in zip(WAYS, ("-", ":", "--"), strict=True):
            errors = [figures[way]["value"] for figures in worlds["shown"].values()]
            label = f"unseen {UNSEEN[split]}, {way.replace('_', ' ')}"
            axes.plot(shown, errors, line, marker="o", label=label)
    axes.axhline(LIVE_MAPE, color="black", linewidth=1, label=f"goal after {STATED} requests")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(SHOWN, labels=[str(number) for number in SHOWN])
    axes.set(xlabel="live requests", ylabel="MAPE of loads that are judged (%)")
    axes.set(xlim=(-0.2, None), ylim=(0, None))
    axes.set_title("Worlds made of measured kernels")
    axes.legend(fontsize="small", loc="lower left")


def banded_medians(values: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Median value and error of about equally large bands; equal values stay together."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BANDS + 1)[1:-1]))
    band = np.searchsorted(edges, values)
    places = [np.flatnonzero(band == number) for number in np.unique(band)]
    return (
        np.array([np.median(values[place]) for place in places]),
        np.array([np.median(errors[place]) for place in places]),
    )


def _by_source(judged: Judged) -> list[tuple[str, npt.NDArray[np.intp]]]:
    sources = np.array([row.source for row in judged.rows])
    return [(source, np.flatnonzero(sources == source)) for source in np.unique(sources).tolist()]
