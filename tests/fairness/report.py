"""Figures of many draws as a table, as JSON and as one plot; and on how many draws a goal holds."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Final

from .judging import LEARNT, POLICIES, SHAPLEYS, Figures

Draw = Sequence[Figures]
"""All policies and concurrencies of one world."""

COLUMNS: Final[Mapping[str, Callable[[Figures], float | None]]] = {
    "sum / truth": lambda f: f.sum_ratio,
    "median": lambda f: f.long_median,
    "p95": lambda f: f.long_p95,
    "prefill median": lambda f: f.prefill_median,
    "prefill p95": lambda f: f.prefill_p95,
    "decode median": lambda f: f.decode_median,
    "decode p95": lambda f: f.decode_p95,
}


def by_policy(draw: Draw, policy: str) -> list[Figures]:
    """One policy's figures, at every concurrency."""
    return [figures for figures in draw if figures.policy == policy]


def times_better(ours: Sequence[Figures], draw: Draw, rival: str) -> float:
    """Rival's median error / ours, at the concurrency where that is least; with company only."""
    errors = {figures.concurrency: figures.long_median for figures in ours}
    ratios = [
        figures.long_median / errors[figures.concurrency]
        for figures in by_policy(draw, rival)
        if figures.concurrency > 1
    ]
    return min((ratio for ratio in ratios if not math.isnan(ratio)), default=math.inf)


def short_ratio(figures: Sequence[Figures]) -> float:
    """Joules attributed to short requests / caused by them, all concurrencies together."""
    true = sum(each.short_true_joules for each in figures)
    return sum(each.short_joules for each in figures) / true if true else 1.0


Goal = Callable[[Sequence[Figures], Draw], bool]
"""Whether a policy's figures reach it, beside all others' of the draw."""
GOALS: Final[Mapping[str, Goal]] = {
    "median error of long requests <= 5 %, every concurrency": lambda ours, draw: all(
        not figures.long_median > 0.05 for figures in ours
    ),
    "p95 error of long requests <= 15 %, every concurrency": lambda ours, draw: all(
        not figures.long_p95 > 0.15 for figures in ours
    ),
    "median error 3 times lower than by tokens, concurrency > 1": lambda ours, draw: (
        times_better(ours, draw, "tokens") >= 3
    ),
    "median error 3 times lower than by time overlap, concurrency > 1": lambda ours, draw: (
        times_better(ours, draw, "time overlap") >= 3
    ),
    "no request that ran a step at 0 J": lambda ours, draw: (
        not any(figures.zeros for figures in ours)
    ),
    "short requests within 1 % in the sum": lambda ours, draw: abs(short_ratio(ours) - 1) <= 0.01,
    "conservation to 1e-9, every policy": lambda ours, draw: all(
        figures.conservation is None or figures.conservation <= 1e-9 for figures in draw
    ),
}


def goals(draws: Sequence[Draw], policy: str) -> dict[str, int]:
    """On how many draws a policy reaches each goal."""
    return {
        text: sum(holds(by_policy(draw, policy), draw) for draw in draws)
        for text, holds in GOALS.items()
    }


def pooled_short_ratio(draws: Sequence[Draw], policy: str) -> float:
    """`short_ratio` over all draws."""
    return short_ratio([each for draw in draws for each in by_policy(draw, policy)])


def table(draws: Sequence[Draw]) -> list[list[str]]:
    """One row per concurrency and policy: medians over the draws."""
    figures = [each for draw in draws for each in draw]
    rows = [["concurrency", "policy", *COLUMNS, "0 J"]]
    for concurrency in sorted({each.concurrency for each in figures}):
        for policy in POLICIES:
            cell = [f for f in figures if (f.concurrency, f.policy) == (concurrency, policy)]
            values = [_typical([value(each) for each in cell]) for value in COLUMNS.values()]
            zeros = sum(each.zeros for each in cell)
            rows.append([str(concurrency), policy, *values, str(zeros)])
    return rows


def overview(draws: Sequence[Draw]) -> list[list[str]]:
    """Median and 95 % quantile of the errors by policy and concurrency, as percent."""
    figures = [each for draw in draws for each in draw]
    levels = sorted({each.concurrency for each in figures})
    rows = [["requests at once", *map(str, levels)]]
    for policy in POLICIES:
        mine = [[f for f in figures if (f.concurrency, f.policy) == (n, policy)] for n in levels]
        rows.append([policy, *map(_percent, mine)])
    return rows


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
    alone = [draw for draw in draws if not draw[0].neighbour]
    lines += [*_goals(draws, "draws"), "", *_goals(alone, "draws without another process"), ""]
    lines += _table(table(draws))
    worst = max(each.truth_error for draw in draws for each in draw)
    lines += [
        "",
        _short_requests("Short requests of all draws together", draws),
        _short_requests("Of those without another process on the GPU", alone),
        f"Sampling error of the truth (95 % of requests, worst run): {worst:.4f}.",
        "",
        *_table(
            [["draw", "GPU, model, sensor", "median, p95 at each concurrency"]]
            + [_draw_cells(draw) for draw in draws]
        ),
    ]
    return "\n".join(lines) + "\n"


def _goals(draws: Sequence[Draw], which: str) -> list[str]:
    reached = [goals(draws, policy) for policy in SHAPLEYS]
    rows = [[text, *(str(each[text]) for each in reached)] for text in GOALS]
    return _table([[f"goal: of {len(draws)} {which}", *SHAPLEYS], *rows])


def _short_requests(which: str, draws: Sequence[Draw]) -> str:
    ratios = [f"{policy}: {pooled_short_ratio(draws, policy):.4f}" for policy in SHAPLEYS]
    return f"{which}, attributed / true: {'; '.join(ratios)}."


def _draw_cells(draw: Draw) -> list[str]:
    ours = by_policy(draw, LEARNT)
    errors = [f"{each.concurrency}: {each.long_median:.3f}, {each.long_p95:.3f}" for each in ours]
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
    """Median error of each draw, by policy and concurrency."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [each for draw in draws for each in draw]
    levels = sorted({each.concurrency for each in figures})
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for number, policy in enumerate(POLICIES):
        shift = (number - len(POLICIES) / 2) * 0.1
        mine = [each for each in figures if each.policy == policy]
        places = [levels.index(each.concurrency) + shift for each in mine]
        axes.scatter(places, [each.long_median for each in mine], s=12, label=policy, alpha=0.7)
    axes.axhline(0.05, color="grey", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.set_xlabel("concurrency")
    axes.set_ylabel("median relative error per request")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.18))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
