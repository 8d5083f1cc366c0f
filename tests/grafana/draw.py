"""Draws dashboards with matplotlib from the answers to their own queries.

``python -m tests.grafana.draw`` runs the test of the alerts and keeps its pictures and its log.
"""

import math
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import FuncFormatter

Panel = Mapping[str, Any]
Series = Sequence[Mapping[str, Any]]
GRAFANA: Final = Path(__file__).parents[2] / "grafana"
CELL_INCHES: Final = (0.68, 0.42)
"""Width and height of a cell of the dashboards' grid."""
COLUMNS: Final = 24
HEAD: Final = 2
"""Rows of the grid for the heading."""
SUFFIXES: Final = {
    "watt": "W",
    "watth": "Wh",
    "massg": "g",
    "s": "s",
    "reqps": "req/s",
    "cps": "c/s",
}
PREFIXES: Final = ((1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """A value as Grafana would print it."""
    if math.isnan(value):
        return "No traffic"
    if unit == "percentunit":
        digits = f"{100 * value:.3g}" if abs(value) < 1 else f"{100 * value:.0f}"
        return f"{digits if decimals is None else format(100 * value, f'.{decimals}f')} %"
    if unit.startswith("suffix:"):
        return f"{value:.{decimals or 0}f} {unit.removeprefix('suffix: ')}"
    suffix = SUFFIXES.get(unit, "")
    if not suffix or value == 0:
        return f"{value:.4g} {suffix}".strip()
    factor, prefix = next((p for p in PREFIXES if abs(value) >= p[0]), PREFIXES[-1])
    return f"{value / factor:.3g} {prefix}{suffix}"


def _points(series: Mapping[str, Any], begun_s: float) -> tuple[list[float], list[float]]:
    """Seconds since the beginning, and values."""
    times, values = zip(*series["values"], strict=True)
    return [t - begun_s for t in times], [float(value) for value in values]


def _legend(template: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        template = template.replace(f"{{{{{name}}}}}", "server" if name == "instance" else value)
    return template.replace("GPU-00000000-0000-0000-0000-00000000000", "GPU-")


def _tile(axes: Axes, panel: Panel, unit: str) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    value = float(panel["targets"][0]["series"][0]["values"][-1][1])
    text = shown(value, unit, defaults.get("decimals"))
    for mapping in defaults["mappings"]:
        text = mapping["options"].get(f"{value:g}", {"text": text})["text"]
    axes.text(0.5, 0.42, text, ha="center", va="center", fontsize=17)
    axes.set_xticks([])
    axes.set_yticks([])


def _heat_map(axes: Axes, panel: Panel, unit: str, begun_s: float) -> None:
    """Buckets are cumulative: each has what is in it and not in the one below."""
    rows = sorted(panel["targets"][0]["series"], key=lambda row: float(row["metric"]["le"]))
    bounds = [float(row["metric"]["le"]) for row in rows]
    times = sorted({t for row in rows for t, _ in row["values"]})
    counts = np.zeros((len(rows), len(times)))
    for place, row in enumerate(rows):
        values = {t: float(value) for t, value in row["values"]}
        counts[place] = [values.get(t, 0.0) for t in times]
    cells = np.diff(counts, axis=0, prepend=0.0).clip(min=0.0)
    filled = np.flatnonzero(cells.sum(axis=1))
    low, high = max(filled[0] - 1, 0), min(filled[-1] + 2, len(rows))
    edges = np.array(times) - begun_s
    axes.pcolormesh(
        np.append(edges, edges[-1] + 1),
        np.arange(low, high + 1),
        cells[low:high],
        cmap="Oranges",
        norm=PowerNorm(0.5),
    )
    # A row lies below its bound.
    axes.set_yticks(np.arange(low, high) + 1, [shown(bounds[i], unit) for i in range(low, high)])


def _curves(axes: Axes, panel: Panel, unit: str, begun_s: float) -> None:
    lines = [
        (_legend(target["legendFormat"], series["metric"]), *_points(series, begun_s))
        for target in panel["targets"]
        for series in target["series"]
    ]
    if "stacking" in panel["fieldConfig"]["defaults"]["custom"]:
        _stack(axes, lines)
    else:
        for legend, times, values in lines:
            axes.plot(times, values, linewidth=1.2, label=legend)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    if "min" in panel["fieldConfig"]["defaults"]:
        # Lines at 0 shall be seen.
        top = axes.get_ylim()[1] if any(any(values) for _, _, values in lines) else 1.0
        axes.set_ylim(-0.02 * top, top)
    # Below, as Grafana has it.
    axes.legend(
        fontsize=6.5, loc="upper left", bbox_to_anchor=(-0.01, -0.09), ncols=7, frameon=False
    )


def _stack(axes: Axes, lines: Sequence[tuple[str, list[float], list[float]]]) -> None:
    times = sorted({t for _, ts, _ in lines for t in ts})
    rows = []
    for _, own_times, values in lines:
        known = dict(zip(own_times, values, strict=True))
        rows.append([known.get(t, 0.0) for t in times])
    # What is never more than 0 would only crowd the legend.
    names = [legend if any(row) else "_" for (legend, _, _), row in zip(lines, rows, strict=True)]
    axes.stackplot(times, rows, labels=names, alpha=0.7)


def _panel(axes: Axes, panel: Panel, begun_s: float, ended_s: float) -> None:
    axes.set_title(panel["title"], fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    if panel["type"] == "stat":
        _tile(axes, panel, unit)
    elif panel["type"] == "heatmap":
        _heat_map(axes, panel, panel["options"]["yAxis"]["unit"], begun_s)
    else:
        _curves(axes, panel, unit, begun_s)
    if panel["type"] != "stat":
        axes.set_xlim(0, ended_s - begun_s)


def _box(panel: Panel, rows: int) -> tuple[float, float, float, float]:
    """Where a panel's axes lie in the figure, with room for their labels inside its cells."""
    place, is_tile = panel["gridPos"], panel["type"] == "stat"
    left, right = place["x"] + (0.3 if is_tile else 1.5), place["x"] + place["w"] - 0.3
    top = HEAD + place["y"] + 0.8
    bottom = HEAD + place["y"] + place["h"] - (0.8 if is_tile else 1.4)
    return left / COLUMNS, 1 - bottom / rows, (right - left) / COLUMNS, (bottom - top) / rows


def draw(board: Mapping[str, Any], begun_s: float, ended_s: float, path: Path) -> None:
    """A dashboard whose targets have their series, panel by panel as its grid says.

    Args:
        begun_s: wall-clock time that is 0 in the picture.
        ended_s: where it ends.
    """
    rows = HEAD + max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = plt.figure(figsize=(COLUMNS * CELL_INCHES[0], rows * CELL_INCHES[1]))
    for panel in board["panels"]:
        _panel(figure.add_axes(_box(panel, rows)), panel, begun_s, ended_s)
    note = "drawn from the dashboard's own queries; seconds since the load began"
    figure.text(0.012, 1 - 0.7 / rows, board["title"], fontsize=14, va="center")
    figure.text(0.988, 1 - 0.7 / rows, note, fontsize=9, va="center", ha="right", color="dimgray")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Run the session once, and keep what it drew and told."""
    test = str(Path(__file__).with_name("test_alert.py"))
    with tempfile.TemporaryDirectory() as folder:
        code = pytest.main([test, "-p", "no:randomly", f"--basetemp={folder}/session"])
        (GRAFANA / "pictures").mkdir(exist_ok=True)
        for picture in Path(folder).rglob("*.png"):
            shutil.copy(picture, GRAFANA / "pictures")
        for log in Path(folder).rglob("alert-log.txt"):
            shutil.copy(log, GRAFANA)
    sys.exit(code)


if __name__ == "__main__":
    main()
