"""A plan as text for people and as CSV for programs."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from llm_carbon_meter.estimate.plan import Choice, Plan, Planner, Range, Refused
from llm_carbon_meter.exporters.columns import aligned, figure, first_unmeasured, yes_or_no
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.units import MILLI


def best_sizes(choices: Sequence[Choice]) -> list[Choice]:
    """The first of each model, GPU and power limit, in their order."""
    best: dict[tuple[str, str, float], Choice] = {}
    for choice in choices:
        best.setdefault((choice.model, choice.gpu, choice.power_limit_watts), choice)
    return list(best.values())


def plan_text(plan: Plan, shown: Sequence[Choice], planner: Planner) -> str:
    """The table, what holds for all of it, and what is no choice.

    Args:
        plan: whose choices are sorted.
        shown: of its choices.
        planner: that made it.
    """
    parts = []
    if shown:
        parts.append("\n".join([_choices(shown, planner), *_remarks(plan, shown, planner)]))
    if plan.refused:
        parts.append(_refused(plan.refused))
    return "\n\n".join(parts)


def _choices(shown: Sequence[Choice], planner: Planner) -> str:
    currency = planner.site.prices.currency
    priced = planner.site.prices.known
    heading = ["model", "GPU", "GPUs", "batch", "limit W", "TTFT ms", "TPOT ms", "kWh", "10-90 %"]
    heading += ["idle kWh", "kg CO2eq", "10-90 %", *([currency, "10-90 %"] if priced else [])]
    rows = [[*heading, "measured", "out_of_domain"]]
    rows += map(_cells, shown)
    return aligned(rows, left=(0, 1, len(rows[0]) - 2, len(rows[0]) - 1))


def _cells(choice: Choice) -> list[str]:
    money = choice.money
    return [
        choice.model,
        choice.gpu,
        f"{choice.replicas.value:g} x {choice.num_gpus}",
        str(choice.batch),
        figure(choice.power_limit_watts),
        figure(choice.ttft_s.value / MILLI),
        figure(choice.tpot_s.value / MILLI),
        figure(choice.kwh.value),
        _interval(choice.kwh),
        figure(choice.idle_kwh),
        figure(choice.kilograms.value),
        _interval(choice.kilograms),
        *([] if money is None else [figure(money.value), _interval(money)]),
        yes_or_no(choice.measured),
        choice.out_of_domain,
    ]


def _interval(amount: Range) -> str:
    return f"{figure(amount.low)}-{figure(amount.high)}"


def _remarks(plan: Plan, shown: Sequence[Choice], planner: Planner) -> list[str]:
    traffic, site = planner.traffic, planner.site
    first = shown[0]
    lines = first_unmeasured(
        first.measured, f"{first.model} on {first.gpu}", f"{figure(first.kilograms.value)} kg"
    )
    lines += [
        f"a month of {traffic.requests:,.0f} requests, {traffic.lengths.name}, "
        f"at most {traffic.peak:g} x the mean rate",
        "GPUs: replicas x GPUs of each; batch: requests at once in a replica at most",
        "TTFT, TPOT: means in full replicas; kWh: of all GPUs, idle (without requests) included",
        f"all figures are estimated; {figure(site.intensity.grams_per_kwh)} gCO2eq/kWh "
        f"({site.intensity.zone}), PUE {site.pue:g} in kg and money",
    ]
    if len(shown) < len(plan.choices):
        lines.append(
            f"the best size of each model, GPU and limit of {len(plan.choices)} choices; "
            "--num-gpus or --csv for all"
        )
    return lines


def _refused(refused: Sequence[Refused]) -> str:
    rows = [["refused", "GPU", "GPUs", "reason"]]
    rows += [[answer.model, answer.gpu, _size(answer), answer.reason] for answer in refused]
    return aligned(rows, left=(0, 1, 3))


def _size(answer: Refused) -> str:
    return "" if answer.num_gpus is None else str(answer.num_gpus)


COLUMNS: Final = (
    *("model", "gpu", "num_gpus", "replicas", "replicas_low", "replicas_high", "gpus"),
    *("batch", "mean_batch", "power_limit_watts", "mean_watts", "busy"),
    *("ttft_ms", "ttft_low_ms", "ttft_high_ms", "tpot_ms", "tpot_low_ms", "tpot_high_ms"),
    *("active_kwh", "idle_kwh", "kwh", "kwh_low", "kwh_high", "kg", "kg_low", "kg_high"),
    *("currency", "money", "money_low", "money_high", "measured", "out_of_domain", "error"),
)


def write_csv(path: Path, plan: Plan, currency: str) -> None:
    """Every choice, and every refusal with its reason in ``error``.

    Raises:
        MeterError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(_row(choice, currency) for choice in plan.choices)
            writer.writerows(
                {
                    "model": refused.model,
                    "gpu": refused.gpu,
                    "num_gpus": _size(refused),
                    "error": refused.reason,
                }
                for refused in plan.refused
            )
    except OSError as error:
        raise MeterError(f"the file {path} cannot be written: {error}") from error


def _row(choice: Choice, currency: str) -> dict[str, object]:
    ranges = {
        "replicas{}": choice.replicas,
        "ttft{}_ms": choice.ttft_s.times(1 / MILLI),
        "tpot{}_ms": choice.tpot_s.times(1 / MILLI),
        "kwh{}": choice.kwh,
        "kg{}": choice.kilograms,
        **({} if choice.money is None else {"money{}": choice.money}),
    }
    columns: dict[str, object] = {
        name: getattr(choice, name)
        for name in COLUMNS
        if name in Choice.__dataclass_fields__ or name in ("gpus", "mean_watts")
    }
    for name, amount in ranges.items():
        for suffix, value in (("", amount.value), ("_low", amount.low), ("_high", amount.high)):
            columns[name.format(suffix)] = f"{value:.10g}"
    return {
        **columns,
        "active_kwh": f"{choice.active_kwh.value:.10g}",
        "measured": yes_or_no(choice.measured),
        "currency": "" if choice.money is None else currency,
        **({"money": ""} if choice.money is None else {}),
    }
