"""The pictures of a report's page: energy over time, against output tokens, and as estimated."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.entries import Entry
from llm_carbon_meter.report.groups import Group
from llm_carbon_meter.units import watt_hours

Floats = NDArray[np.float64]

# Bottom of the stack first.
COLOURS: Final = {
    "idle": "#b8b8b8",
    "waste": "#c0392b",
    "recompute": "#8a7fb0",
    "decode": "#3b7dd8",
    "prefill": "#e8853a",
}
BAR_SECONDS: Final = (1, 10, 60, 300, 900, 3_600, 21_600, 86_400, 604_800)
MOST_BARS: Final = 60
MODELS_NAMED: Final = 8
DPI: Final = 110


def picture(group: Group) -> str:
    """All plots of a source, as a PNG in base64.

    Raises:
        MeterError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MeterError(
            f"the page's plots need matplotlib, which is missing ({error}); "
            "pip install 'llm-carbon-meter[report]', or leave --html out"
        ) from error
    target = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # a dollar in a name is one
        figure = Figure(figsize=(10, 8), layout="constrained")
        axes: Any = figure.subplot_mosaic([["time", "time"], ["tokens", "estimate"]])
        _over_time(axes["time"], group.entries)
        axes["time"].set_title(f"Energy over time, {group.source}")
        _against_tokens(axes["tokens"], group.entries)
        _estimated(axes["estimate"], group)
        figure.savefig(target, format="png", dpi=DPI)
    return base64.b64encode(target.getvalue()).decode("ascii")


def bar_edges(times: Floats) -> Floats:
    """Limits of bars of a round length, few enough to be told apart; seconds of Unix time."""
    weeks = math.ceil(np.ptp(times) / (BAR_SECONDS[-1] * (MOST_BARS - 1)))
    lengths = (*BAR_SECONDS, BAR_SECONDS[-1] * weeks)
    length_s = next(each for each in lengths if np.ptp(times) <= each * (MOST_BARS - 1))
    first, last = times.min() // length_s, times.max() // length_s + 1
    return np.arange(first, last + 1) * length_s


def _over_time(axes: Any, entries: Sequence[Entry]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    times = np.array([entry.arrived_unix_s for entry in entries])
    edges = bar_edges(times)
    places, floor = edges.astype("datetime64[s]"), np.zeros(len(edges) - 1)
    for account, colour in COLOURS.items():
        joules = [entry.account_joules[account] for entry in entries]
        top = floor + watt_hours(1.0) * np.histogram(times, edges, weights=joules)[0]
        if (top > floor).any():
            axes.stairs(top, places, baseline=floor, fill=True, label=account, color=colour)
        floor = top
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set(
        xlabel="arrival (UTC)", ylabel=f"Wh per {_length(edges[1] - edges[0])}", ylim=(0, None)
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True, fontsize="small")


def _length(seconds: float) -> str:
    for name, size in {"week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60}.items():
        if seconds >= size:
            return name if seconds == size else f"{seconds / size:g} {name}s"
    return f"{seconds:g} s"


def _against_tokens(axes: Any, entries: Sequence[Entry]) -> None:
    shown = [entry for entry in entries if entry.output_tokens > 0 and entry.joules > 0.0]
    axes.set(title="Wh per request", xlabel="output tokens", ylabel="Wh")
    if not shown:
        _say(axes, "no request has both tokens and energy")
        return
    _logarithmic(axes)
    models = sorted({entry.model for entry in shown})
    for model in models:
        points = [
            (entry.output_tokens, watt_hours(entry.joules))
            for entry in shown
            if entry.model == model
        ]
        axes.scatter(*zip(*points, strict=True), s=9, alpha=0.5, linewidths=0, label=model)
    if len(models) <= MODELS_NAMED:
        axes.legend(fontsize="small", loc="best")


def _estimated(axes: Any, group: Group) -> None:
    pairs = np.array([pair for pair in group.pairs if pair[0] > 0.0]) * watt_hours(1.0)
    axes.set(title=f"Estimated against {group.source}", ylabel="Wh per request, estimated")
    axes.set_xlabel(f"Wh per request, {group.source}")
    if not len(pairs):
        _say(axes, "no request has an estimate to compare")
        return
    ends = np.array([pairs.min() / 1.3, pairs.max() * 1.3])
    axes.fill_between(ends, ends * 0.7, ends * 1.3, color="#e0e0e0", label="within 30 %")
    axes.plot(ends, ends, color="black", linewidth=1, label="exact")
    axes.scatter(pairs[:, 1], pairs[:, 0], s=9, alpha=0.5, linewidths=0, color="#3b7dd8")
    _logarithmic(axes)
    axes.set(xlim=ends, ylim=ends)
    axes.legend(fontsize="small", loc="upper left")


def _logarithmic(axes: Any) -> None:
    """Both axes in logarithms, with plain numbers at 1 and 3 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
