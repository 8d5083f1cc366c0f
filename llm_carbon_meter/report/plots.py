"""The pictures of a report's page: energy over time, against output tokens, and as estimated."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.database import clean, quoted
from llm_carbon_meter.report.groups import NOT_SAID, sources
from llm_carbon_meter.report.summary import Report
from llm_carbon_meter.units import watt_hours

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

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
MOST_POINTS: Final = 2_000
"""Requests that are drawn one by one: those with the smallest hash of all."""
MODELS_NAMED: Final = 8
DPI: Final = 110


@dataclass(frozen=True, slots=True)
class Plotted:
    """What is drawn of a source's requests."""

    source: str
    zone: tzinfo
    edges: Floats
    """Limits of bars, in seconds of Unix time."""
    joules: Mapping[str, Floats]
    """Of each account in each bar."""
    points: Sequence[tuple[str, int, float, float | None]]
    """Model, output tokens, joules and estimated joules of some requests."""
    requests: int
    """Of which the points are some."""


def plotted(connection: "DuckDBPyConnection", report: Report) -> list[Plotted]:
    """What is drawn of each source.

    Args:
        connection: with the table of lines.
        report: of these.
    """
    return [_plotted(connection, report, source) for source in sources(report.groups)]


def _plotted(connection: "DuckDBPyConnection", report: Report, source: str) -> Plotted:
    where = f"{report.where} AND source = {quoted(source)}"
    query = f"SELECT min(arrived_unix_s), max(arrived_unix_s), count(*) FROM lines WHERE {where}"
    ((first, last, requests),) = connection.execute(query).fetchall()
    edges = bar_edges(first, last)
    begin, width = float(edges[0]), float(edges[1] - edges[0])
    sums = ", ".join(f"coalesce(sum({account}_joules), 0)" for account in COLOURS)
    rows = connection.execute(
        f"SELECT floor((arrived_unix_s - {begin!r}) / {width!r})::INTEGER, {sums} "
        f"FROM lines WHERE {where} GROUP BY 1"
    ).fetchall()
    bars = np.zeros((len(COLOURS), len(edges) - 1))
    for bar, *joules in rows:
        bars[:, bar] = joules
    points = connection.execute(
        f"SELECT coalesce(nullif(model, ''), {quoted(NOT_SAID)}), output_tokens, energy_joules, "
        "CASE WHEN NOT coalesce(estimate_facility, false) THEN estimate_calibrated_joules END "
        f"FROM lines WHERE {where} "
        f"ORDER BY hash(arrived_unix_s, energy_joules, output_tokens) LIMIT {MOST_POINTS}"
    ).fetchall()
    named = [(clean(model), int(tokens), *figures) for model, tokens, *figures in points]
    joules_by_account = dict(zip(COLOURS, bars, strict=True))
    return Plotted(source, report.question.zone, edges, joules_by_account, named, requests)


def picture(plot: Plotted) -> str:
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
        _over_time(axes["time"], plot)
        axes["time"].set_title(f"Energy over time, {plot.source}")
        _against_tokens(axes["tokens"], plot)
        _estimated(axes["estimate"], plot)
        figure.savefig(target, format="png", dpi=DPI)
    return base64.b64encode(target.getvalue()).decode("ascii")


def bar_edges(first_s: float, last_s: float) -> Floats:
    """Limits of bars of a round length, few enough to be told apart; seconds of Unix time."""
    weeks = math.ceil((last_s - first_s) / (BAR_SECONDS[-1] * (MOST_BARS - 1)))
    lengths = (*BAR_SECONDS, BAR_SECONDS[-1] * weeks)
    length_s = next(each for each in lengths if last_s - first_s <= each * (MOST_BARS - 1))
    numbers = np.arange(first_s // length_s, last_s // length_s + 2, dtype=np.float64)
    return np.multiply(numbers, length_s, dtype=np.float64)


def _over_time(axes: Any, plot: Plotted) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    edges = plot.edges
    places, floor = edges.astype("datetime64[s]"), np.zeros(len(edges) - 1)
    for account, colour in COLOURS.items():
        top = floor + watt_hours(1.0) * plot.joules[account]
        if (top > floor).any():
            axes.stairs(top, places, baseline=floor, fill=True, label=account, color=colour)
        floor = top
    locator = AutoDateLocator(tz=plot.zone)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=plot.zone))
    axes.set(
        xlabel=f"arrival ({plot.zone})",
        ylabel=f"Wh per {_length(edges[1] - edges[0])}",
        ylim=(0, None),
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True, fontsize="small")


def _length(seconds: float) -> str:
    for name, size in {"week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60}.items():
        if seconds >= size:
            return name if seconds == size else f"{seconds / size:g} {name}s"
    return f"{seconds:g} s"


def _against_tokens(axes: Any, plot: Plotted) -> None:
    shown = [point for point in plot.points if point[1] > 0 and point[2] > 0.0]
    axes.set(title=f"Wh per request{_some(plot)}", xlabel="output tokens", ylabel="Wh")
    if not shown:
        _say(axes, "no request has both tokens and energy")
        return
    _logarithmic(axes)
    models = sorted({point[0] for point in shown})
    for model in models:
        points = [
            (tokens, watt_hours(joules)) for name, tokens, joules, _ in shown if name == model
        ]
        axes.scatter(*zip(*points, strict=True), s=9, alpha=0.5, linewidths=0, label=model)
    if len(models) <= MODELS_NAMED:
        axes.legend(fontsize="small", loc="best")


def _some(plot: Plotted) -> str:
    few = len(plot.points) < plot.requests
    return f" ({len(plot.points)} of {plot.requests})" if few else ""


def _estimated(axes: Any, plot: Plotted) -> None:
    pairs = watt_hours(1.0) * np.array(
        [
            (estimated, joules)
            for _, _, joules, estimated in plot.points
            if estimated is not None and estimated > 0.0 and joules > 0.0
        ]
    )
    axes.set(title=f"Estimated against {plot.source}", ylabel="Wh per request, estimated")
    axes.set_xlabel(f"Wh per request, {plot.source}")
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
