"""The day's plots: ground truth against what the meter said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import truth
from rows import of_kind
from tables import Findings

from llm_carbon_meter.ledger.attribution import POLICIES

COLOURS = ("#222222", "#3b7dd8", "#7fb069", "#e8853a", "#b8b8b8")
"""Ground truth, then the policies."""
SIMULATED = "simulated (stub): "
LAYERS = (
    ("idle", "#b8b8b8"),
    ("overhead", "#d9c8f0"),
    ("decode", "#3b7dd8"),
    ("prefill", "#e8853a"),
    ("recompute", "#8a7fb0"),
    ("waste", "#7fb069"),
    ("unattributed", "#c0392b"),
)
"""Accounts from the bottom of the stack."""


def draw_all(out: Path, found: Findings) -> list[Path]:
    """Save every plot of which there are rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    for name, draw in PLOTS.items():
        figure = pyplot.figure(figsize=(10, 5), layout="constrained")
        if draw(figure, found):
            figure.suptitle((SIMULATED if found.simulated else "") + TITLES[name])
            drawn.append(out / f"{name}.png")
            figure.savefig(drawn[-1], dpi=110)
        pyplot.close(figure)
    return drawn


def _shares(figure: Any, found: Findings) -> bool:
    if not found.shares:
        return False
    panels = figure.subplots(1, len(found.shares), sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, found.shares, strict=True):
        series = {"exact": one.exact, **{policy: one.meter[policy] for policy in POLICIES}}
        places = np.arange(len(one.exact))
        for number, (label, values) in enumerate(series.items()):
            shift = (number - 2) * 0.17
            axes.bar(places + shift, values, 0.16, label=label, color=COLOURS[number])
        names = [f"{new} new\n+ {cached}" for new, cached in one.requests]
        axes.set_xticks(places, names, fontsize="xx-small")
        axes.set_title(one.batch)
    panels[0].set_ylabel("share of the step's joules")
    figure.supxlabel("requests of a step: new tokens + cached tokens", fontsize="small")
    panels[0].legend(fontsize="small")
    return True


def _served(figure: Any, found: Findings) -> bool:
    requests = [row for row in of_kind(found.rows, "served", "request") if row["estimate"]]
    if not requests:
        return False
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (basis, field) in zip(panels, truth.BASES.items(), strict=True):
        judged = [row for row in requests if row[field]]
        measured = [row["energy_joules"] - row["idle_joules"] for row in judged]
        for stage, colour in zip(truth.STAGES, ("#e8853a", "#3b7dd8"), strict=True):
            said = [row[field][stage]["energy_joules"] for row in judged]
            axes.loglog(measured, said, "o", ms=3, alpha=0.6, color=colour, label=stage)
        ends = [min(measured), max(measured)]
        axes.loglog(ends, ends, color="black", lw=0.8, label="equal")
        axes.set_title(f"estimate {basis}")
        axes.set_xlabel("record, J a request")
    panels[0].set_ylabel("estimated, J a request")
    panels[0].legend()
    return True


def _joules(figure: Any, found: Findings) -> bool:
    traces = [row for row in of_kind(found.rows, "served", "trace") if len(row["times_s"]) > 2]
    if not traces:
        return False
    axes, last = figure.subplots(), traces[-1]
    times_s = np.array(last["times_s"]) - last["times_s"][0]
    floor = np.zeros(len(times_s))
    for account, colour in LAYERS:
        joules = np.array(last["accounts_joules"][account])
        top = floor + joules - joules[0]
        if (top > floor).any():
            axes.fill_between(times_s, floor, top, step="post", color=colour, label=account)
        floor = top
    counter = np.array(last["counter_joules"])
    label = "counter, read independently"
    axes.plot(times_s, counter - counter[0], color="black", label=label)
    axes.set_xlabel("s")
    axes.set_ylabel("J since the beginning")
    axes.legend(fontsize="small", loc="upper left")
    return True


def _campaign(figure: Any, found: Findings) -> bool:
    if not found.configurations:
        return False
    panels = figure.subplots(1, 2)
    names = [f"{one.model}\n{one.batch} x {one.prompt_tokens}" for one in found.configurations]
    pairs = {
        "prefill": [one.prefill_joules for one in found.configurations],
        "decode": [one.decode_joules for one in found.configurations],
    }
    places = np.arange(len(names))
    for place, (axes, (phase, true)) in enumerate(zip(panels, pairs.items(), strict=True)):
        said = [estimate[place] for estimate in found.estimates]
        axes.bar(places - 0.2, true, 0.38, color=COLOURS[0], label="campaign row")
        axes.bar(places + 0.2, said, 0.38, color=COLOURS[1], label="estimate")
        axes.set_yscale("log")
        axes.set_xticks(places, names, fontsize="x-small", rotation=45)
        axes.set_title(phase)
        axes.set_ylabel("J a request")
    panels[0].legend()
    return True


def _sensor(figure: Any, found: Findings) -> bool:
    loads = list(of_kind(found.rows, "sensor", "load"))
    if not loads:
        return False
    left, right = figure.subplots(1, 2)
    for row in loads:
        counts = {float(ms): count for ms, count in row["intervals_ms"].items()}
        left.step(list(counts), list(counts.values()), where="mid", label=row["key"])
    left.set_xlabel("between two moves of the counter, ms")
    left.set_ylabel("how often")
    left.legend(fontsize="small")
    lags_ms = [1000 * lag_s for lag_s in truth.onset_lags_s(found.rows)]
    right.set_xticks(range(len(lags_ms)))
    right.plot(lags_ms, "o", color=COLOURS[0], label="onset of a load")
    learnt_s = truth.learnt_lag_s(found.rows)
    if learnt_s is not None:
        right.axhline(1000 * learnt_s, color=COLOURS[1], label="learnt by the ledger")
    right.set_xlabel("number of the onset")
    right.set_ylabel("lag of the counter, ms")
    right.legend(fontsize="small")
    return True


def _throughput(figure: Any, found: Findings) -> bool:
    ratios = truth.ratios(found.rows)
    if not ratios:
        return False
    axes = figure.subplots()
    axes.set_xticks(range(len(ratios)))
    axes.plot(ratios, "o", color=COLOURS[1], label="a pair of rounds")
    axes.axhline(float(np.median(ratios)), color=COLOURS[1], label="median")
    axes.axhline(1.0, color=COLOURS[0], lw=0.8, label="no cost")
    axes.set_xlabel("pair")
    axes.set_ylabel("tokens/s with the meter / without")
    axes.legend()
    return True


PLOTS: dict[str, Callable[[Any, Findings], bool]] = {
    "sensor": _sensor,
    "shares": _shares,
    "joules": _joules,
    "served": _served,
    "campaign": _campaign,
    "throughput": _throughput,
}
TITLES = {
    "sensor": "the counter: its period, and how late it shows a load",
    "shares": "requests' shares of a step: exact, and by policy",
    "joules": "joules while requests were served: the counter, and the accounts of the meter",
    "served": "served requests: estimated against the record",
    "campaign": "prefill and decode: campaign rows and estimates",
    "throughput": "what metering costs a server",
}
