"""Figures of many draws as a table, as JSON and as one plot; and on how many draws a goal holds."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Final

from .judging import LEARNT, POLICIES, SHAPLEYS, Figures

LOADS_A_ROW: Final = 6
"""Of the picture."""
Draw = Sequence[Figures]
"""All policies and loads of one world."""

COLUMNS: Final[Mapping[str, Callable[[Figures], float | None]]] = {
    "sum / truth": lambda f: f.sum_ratio,
    "median": lambda f: f.long_median,
    "p95": lambda f: f.long_p95,
    "prefill / truth": lambda f: f.prefill_ratio,
    "decode / truth": lambda f: f.decode_ratio,
    "in interval": lambda f: f.covered,
    "prefill median": lambda f: f.prefill_median,
    "prefill p95": lambda f: f.prefill_p95,
    "decode median": lambda f: f.decode_median,
    "decode p95": lambda f: f.decode_p95,
}


def by_policy(draw: Draw, policy: str) -> list[Figures]:
    """One policy's figures, under every load."""
    return [figures for figures in draw if figures.policy == policy]


def times_better(ours: Sequence[Figures], draw: Draw, rival: str) -> float:
    """Rival's median error / ours, under the load where that is least; with company only."""
    errors = {figures.load: figures.long_median for figures in ours}
    ratios = [
        figures.long_median / errors[figures.load]
        for figures in by_policy(draw, rival)
        if figures.shares
    ]
    return min((ratio for ratio in ratios if not math.isnan(ratio)), default=math.inf)


def short_ratio(figures: Sequence[Figures]) -> float:
    """Joules attributed to short requests / caused by them, all loads together."""
    true = sum(each.short_true_joules for each in figures)
    return sum(each.short_joules for each in figures) / true if true else 1.0


Within = Callable[[Figures], bool]
"""Whether a policy reaches a goal under one load."""
LOAD_GOALS: Final[Mapping[str, Within]] = {
    "median error of long requests <= 3 %": lambda ours: not ours.long_median > 0.03,
    "p95 error of long requests <= 10 %": lambda ours: not ours.long_p95 > 0.1,
    "total of prefill within 3 %": lambda ours: _near(ours.prefill_ratio, 0.03),
    "total of decode within 3 %": lambda ours: _near(ours.decode_ratio, 0.03),
    "short requests within 1 % in the sum": lambda ours: (
        not ours.short_true_joules or _near(ours.short_joules / ours.short_true_joules, 0.01)
    ),
}
Goal = Callable[[Sequence[Figures], Draw], bool]
"""Whether a policy's figures reach it, beside all others' of the draw."""
GOALS: Final[Mapping[str, Goal]] = {
    "median error of long requests <= 3 %, every load": lambda ours, draw: all(
        not figures.long_median > 0.03 for figures in ours
    ),
    "p95 error of long requests <= 10 %, every load": lambda ours, draw: all(
        not figures.long_p95 > 0.1 for figures in ours
    ),
    "median error 3 times lower than by tokens, where several share": lambda ours, draw: (
        times_better(ours, draw, "tokens") >= 3
    ),
    "median error 3 times lower than by time overlap, where several share": lambda ours, draw: (
        times_better(ours, draw, "time overlap") >= 3
    ),
    "totals of prefill and of decode within 3 %, every load": lambda ours, draw: all(
        _near(ratio, 0.03)
        for figures in ours
        for ratio in (figures.prefill_ratio, figures.decode_ratio)
    ),
    "no request that ran a step at 0 J": lambda ours, draw: (
        not any(figures.zeros for figures in ours)
    ),
    "short requests within 1 % in the sum": lambda ours, draw: abs(short_ratio(ours) - 1) <= 0.01,
    "conservation to 1e-9, every policy": lambda ours, draw: all(
        figures.conservation is None or figures.conservation <= 1e-9 for figures in draw
    ),
}


def _near(ratio: float | None, share: float) -> bool:
    """Whether a ratio is near 1; what is nothing is."""
    return ratio is None or abs(ratio - 1) <= share


def load_goals(draws: Sequence[Draw], policy: str) -> dict[str, str]:
    """Under how many of the draws' loads a policy reaches each goal."""
    ours = [figures for draw in draws for figures in by_policy(draw, policy)]
    return {text: str(sum(map(holds, ours))) for text, holds in LOAD_GOALS.items()}


def goals(draws: Sequence[Draw], policy: str) -> dict[str, int]:
    """On how many draws a policy reaches each goal."""
    return {
        text: sum(holds(by_policy(draw, policy), draw) for draw in draws)
        for text, holds in GOALS.items()
    }


def pooled_short_ratio(draws: Sequence[Draw], policy: str) -> float:
    """`short_ratio` over all draws."""
    return short_ratio([each for draw in draws for each in by_policy(draw, policy)])


def loads_of(figures: Sequence[Figures]) -> list[str]:
    """In the order in which they were served."""
    return list(dict.fromkeys(each.load for each in figures))


def table(draws: Sequence[Draw]) -> list[list[str]]:
    """One row per load and policy: medians over the draws."""
    figures = [each for draw in draws for each in draw]
    rows = [["load", "policy", *COLUMNS, "0 J"]]
    for load in loads_of(figures):
        for policy in POLICIES:
            cell = [f for f in figures if (f.load, f.policy) == (load, policy)]
            values = [_typical([value(each) for each in cell]) for value in COLUMNS.values()]
            zeros = sum(each.zeros for each in cell)
            rows.append([load, policy, *values, str(zeros)])
    return rows


def overview(draws: Sequence[Draw]) -> list[list[str]]:
    """Median and 95 % quantile of the errors by policy and load, as percent."""
    figures = [each for draw in draws for each in draw]
    rows = [["policy", *loads_of(figures)]]
    for policy in POLICIES:
        cells = [
            [f for f in figures if (f.load, f.policy) == (load, policy)] for load in rows[0][1:]
        ]
        rows.append([policy, *map(_percent, cells)])
    return rows


def phase_totals(draws: Sequence[Draw]) -> list[list[str]]:
    """What `LEARNT` gives too much or too little, as percent: median over the draws, and worst."""
    figures = [each for draw in draws for each in by_policy(draw, LEARNT)]
    rows = [["total", *loads_of(figures)]]
    for name, ratio in (
        ("prefill", COLUMNS["prefill / truth"]),
        ("decode", COLUMNS["decode / truth"]),
    ):
        cells = [[ratio(f) for f in figures if f.load == load] for load in rows[0][1:]]
        rows.append([name, *map(_bias, cells)])
    return rows


def _bias(ratios: Sequence[float | None]) -> str:
    percent = [100 * (ratio - 1) for ratio in ratios if ratio is not None]
    return f"{median(percent):+.1f}, {max(percent, key=abs):+.1f}" if percent else "-"


def _percent(cell: Sequence[Figures]) -> str:
    middle, high = _middle([f.long_median for f in cell]), _middle([f.long_p95 for f in cell])
    return f"{100 * middle:.1f}, {100 * high:.1f}"


def _typical(values: Sequence[float | None]) -> str:
    middle = _middle(values)
    return "-" if math.isnan(middle) else f"{middle:.3f}"


def _middle(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return median(known) if known else math.nan


def markdown(draws: Sequence[Draw]) -> str:
    """The report: an overview, goals, then the whole table, then one line per draw."""
    seeds = [draw[0].seed for draw in draws]
    lines = [f"Medians over draws {min(seeds)} to {max(seeds)}; errors are relative.", ""]
    lines += ["Error of a request in percent, median and p95:", "", *_table(overview(draws)), ""]
    lines += [
        f"Totals by phase under {LEARNT!r}, error in percent, median over the draws and worst:"
    ]
    lines += ["", *_table(phase_totals(draws)), "", *_load_goals(draws), ""]
    alone = [draw for draw in draws if not draw[0].neighbour]
    lines += [*_goals(draws, "draws"), "", *_goals(alone, "draws without another process"), ""]
    lines += _table(table(draws))
    worst = max(each.truth_error for draw in draws for each in draw)
    lines += [
        "",
        _short_requests("Short requests of all draws together", draws),
        _short_requests("Of those without another process on the GPU", alone),
        _coverage(draws),
        f"Sampling error of the truth (95 % of requests, worst run): {worst:.4f}.",
        "",
        *_table(
            [["draw", "GPU, model, sensor", "median, p95 under each load"]]
            + [_draw_cells(draw) for draw in draws]
        ),
    ]
    return "\n".join(lines) + "\n"


def _goals(draws: Sequence[Draw], which: str) -> list[str]:
    reached = [goals(draws, policy) for policy in SHAPLEYS]
    rows = [[text, *(str(each[text]) for each in reached)] for text in GOALS]
    return _table([[f"goal: of {len(draws)} {which}", *SHAPLEYS], *rows])


def _load_goals(draws: Sequence[Draw]) -> list[str]:
    count = len(by_policy([each for draw in draws for each in draw], LEARNT))
    reached = [load_goals(draws, policy) for policy in SHAPLEYS]
    rows = [[text, *(each[text] for each in reached)] for text in LOAD_GOALS]
    return _table([[f"goal: of {count} draws and loads", *SHAPLEYS], *rows])


def _short_requests(which: str, draws: Sequence[Draw]) -> str:
    ratios = [f"{policy}: {pooled_short_ratio(draws, policy):.4f}" for policy in SHAPLEYS]
    return f"{which}, attributed / true: {'; '.join(ratios)}."


def _coverage(draws: Sequence[Draw]) -> str:
    ours = [each for draw in draws for each in by_policy(draw, LEARNT)]
    known = [(each.covered, each.requests) for each in ours if each.covered is not None]
    share = sum(covered * count for covered, count in known) / sum(count for _, count in known)
    least = min(covered for covered, _ in known)
    return (
        f"True joules within the interval of the record, {LEARNT!r}: {100 * share:.1f} % of all "
        f"requests; in the draw and load with the fewest {100 * least:.0f} %."
    )


def _draw_cells(draw: Draw) -> list[str]:
    ours = by_policy(draw, LEARNT)
    errors = [f"{each.load}: {each.long_median:.3f}, {each.long_p95:.3f}" for each in ours]
    first = ours[0]
    world = f"{first.gpu}, {first.model}, {first.sensor}{', another process' * first.neighbour}"
    return [str(first.seed), world, "; ".join(errors)]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = rows
    lines = (head, ["---"] * len(head), *rest)
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def save(draws: Sequence[Draw], folder: Path) -> None:
    """Write results.json, results.md and errors.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_plain(each) for draw in draws for each in draw]
    lines = ",\n  ".join(json.dumps(list(row.values())) for row in rows)
    summary = {
        "goals": {policy: goals(draws, policy) for policy in SHAPLEYS},
        "short_ratio": {policy: pooled_short_ratio(draws, policy) for policy in SHAPLEYS},
        "columns": list(rows[0]),
    }
    text = json.dumps(summary, indent=1)[:-2] + f',\n "rows": [\n  {lines}\n ]\n}}\n'
    (folder / "results.json").write_text(text, encoding="utf-8")
    (folder / "results.md").write_text(markdown(draws), encoding="utf-8")
    plot(draws, folder / "errors.png")


def _plain(figures: Figures) -> dict[str, object]:
    """Six digits; null where there is no number."""
    values: dict[str, object] = asdict(figures)
    for name, value in values.items():
        if isinstance(value, float):
            values[name] = None if math.isnan(value) else float(f"{value:.6g}")
    return values


def plot(draws: Sequence[Draw], path: Path) -> None:
    """Median error of each draw, by policy and load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [each for draw in draws for each in draw]
    loads = loads_of(figures)
    rows = [loads[first : first + LOADS_A_ROW] for first in range(0, len(loads), LOADS_A_ROW)]
    size = (1.5 + 1.8 * len(rows[0]), 1 + 3.5 * len(rows))
    figure, grid = pyplot.subplots(len(rows), figsize=size, layout="constrained", squeeze=False)
    for axes, shown in zip(grid[:, 0], rows, strict=True):
        for number, policy in enumerate(POLICIES):
            shift = (number - (len(POLICIES) - 1) / 2) * 0.08
            mine = [f for f in figures if f.policy == policy and f.load in shown]
            places = [shown.index(each.load) + shift for each in mine]
            axes.scatter(places, [f.long_median for f in mine], s=12, label=policy, alpha=0.7)
        axes.axhline(0.03, color="grey", linewidth=0.8, linestyle="--")
        axes.set_yscale("log")
        axes.set_xticks(range(len(shown)), shown)
        axes.set_ylabel("median relative error")
    grid[-1, 0].set_xlabel("load: requests at once, or what is special")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), ncols=5, loc="outside upper center")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
