"""The demo's picture: power over time by phase, and the requests' lifetimes under it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.demo.replay import Answer
from llm_carbon_meter.testing.scrape import Scrape

# Bottom of the stack first.
LAYERS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "idle, overhead": (("idle", "overhead"), "#b8b8b8"),
    "decode, recompute, waste": (("decode", "recompute", "waste"), "#3b7dd8"),
    "prefill": (("prefill",), "#e8853a"),
    "unattributed": (("unattributed",), "#c0392b"),
}
_WAITING: Final = "#f0c9a4"
_STREAMING: Final = "#7fb069"
_WHOLE: Final = "#8a7fb0"


def layer_watts(scrapes: Sequence[Scrape]) -> dict[str, NDArray[np.float64]]:
    """Mean power between neighbouring scrapes, from the counters' differences."""
    seconds = np.diff([scrape.monotonic_s for scrape in scrapes])
    return {
        layer: np.diff([scrape.total(accounts=accounts) for scrape in scrapes]) / seconds
        for layer, (accounts, _) in LAYERS.items()
    }


def draw(file: Path, scrapes: Sequence[Scrape], answers: Sequence[Answer], title: str) -> None:
    """Save the picture; time 0 is when the first request was sent."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    zero = min(answer.started_s for answer in answers)
    figure, (power, lives) = pyplot.subplots(
        2, 1, sharex=True, figsize=(11, 8), height_ratios=(2, 3), layout="constrained"
    )
    _draw_power(power, scrapes, zero)
    power.set_title(title)
    _draw_lives(lives, answers, zero)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _draw_power(axes: Any, scrapes: Sequence[Scrape], zero: float) -> None:
    axes.set_ylabel("power (W)")
    if len(scrapes) < 2 or not scrapes[-1].joules:
        axes.text(0.5, 0.5, "/metrics has no energy", ha="center", transform=axes.transAxes)
        return
    edges = np.array([scrape.monotonic_s for scrape in scrapes]) - zero
    floor = np.zeros(len(edges) - 1)
    for layer, watts in layer_watts(scrapes).items():
        if watts.any():
            axes.stairs(
                floor + watts, edges, baseline=floor, fill=True, label=layer, color=LAYERS[layer][1]
            )
        floor = floor + watts
    axes.set_ylim(0.0, 1.2 * axes.get_ylim()[1])
    axes.legend(loc="upper center", ncols=len(LAYERS), fontsize="small")


def _draw_lives(axes: Any, answers: Sequence[Answer], zero: float) -> None:
    from matplotlib.patches import Patch

    for row, answer in enumerate(sorted(answers, key=lambda answer: answer.started_s)):
        start, end = answer.started_s - zero, answer.ended_s - zero
        first = start if answer.first_token_s is None else answer.first_token_s - zero
        axes.barh(row, first - start, left=start, color=_WAITING)
        axes.barh(row, end - first, left=first, color=_STREAMING if answer.streamed else _WHOLE)
    axes.invert_yaxis()
    axes.set_xlabel("time since the first request (s)")
    axes.set_ylabel("request (in order of arrival)")
    kinds = {
        "stream: until its first token": _WAITING,
        "stream: generating": _STREAMING,
        "not streamed": _WHOLE,
    }
    axes.legend(
        handles=[Patch(color=color, label=label) for label, color in kinds.items()],
        loc="upper right",
        fontsize="small",
    )
