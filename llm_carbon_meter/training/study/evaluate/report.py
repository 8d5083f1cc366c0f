"""results.json as text: Markdown tables, for the terminal and for README."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from llm_carbon_meter.training.study.evaluate.goals import UNSEEN
from llm_carbon_meter.training.study.evaluate.names import FOLDS, OURS, PHYSICS, RESIDUAL_FORM
from llm_carbon_meter.training.study.live_requests import WAYS
from llm_carbon_meter.training.study.paper_tables import (
    ABLATION_EBA10,
    EBA,
    FAMILIES,
    MAPE,
    PrintedRow,
)

Figures = Mapping[str, Any]
Cells = Sequence[str]

SCHEMES: Final = {"LLMCarbon": "LLMCarbon", "DeepEn": "DeepEn", "NNLQP": "NNLQP", "LLMCO2": OURS}
"""The paper's -> ours."""
LINES: Final = {
    "plain GNN": "",
    "+ prefill/decode": "prefill/decode",
    "+ roofline": "+ roofline",
    RESIDUAL_FORM: "",
}
"""Of the ablation -> the paper's."""
COMPARABLE: Final = (
    "The two figures of a cell are not comparable, only the order of the schemes within each: "
    "requests, labels and families differ, the paper's test points come from the same sampling as "
    "its training points and ours are architectures that no fit has seen, and LLMCarbon, DeepEn "
    "and NNLQP are our ports, fitted to our rows."
)
FAMILY_NOTE: Final = (
    "Forms without physics are trained to convergence, a thousand passes. "
    "Bloom is Bloom-176B, of which only the splitwise set has measurements, and Phoenix-7B, made "
    "of BLOOMZ. Qwen2.5 is not Qwen2 and Llama-3.2 and 3.3 are not Llama-3.1: they are not "
    "counted in the paper's columns."
)
LIVE_NOTE: Final = (
    "The live requests are simulated: steps take as long as the measured kernels of the data "
    "folder do, under host times, gaps, noise and drift that are drawn for each world, and a "
    "counter with its period and lag shows the joules. Power is measured on H200, B200 and GB200, "
    "smoothed over kernels; on the others it is assumed to be that of H200 in shares of the "
    "board's. The engine is of a version without measurements everywhere; the predictor knows no "
    "kernel table here."
)

PUBLISHED: Final = (
    "Published by others, on their own data and not results of this package: SweetSpot 1.79 % MAPE "
    "(seen model and GPU, calibrated); WattGPU 5.5 % median error of mean power (random split), "
    "6.7 % (unseen model), 13.5 % (unseen GPU); EnergyLens 9.3 to 13.2 % MAPE (several GPUs)."
)


def report(results: Figures) -> str:
    """Everything that is printed."""
    parts = [
        _opening(results),
        splits_table(results),
        *(_split(name, split) for name, split in results["splits"].items()),
        _families(results),
        _reductions(results),
        *paper_tables(results),
        _own_families(results),
        _prompts(results),
        _own_rows(results),
        _live(results),
        _coverage(results),
        PUBLISHED,
        goals_table(results),
        f"{results['seconds']} s",
    ]
    return "\n\n".join(parts)


def readme_section(results: Figures, folder: str, plots: Mapping[str, str]) -> str:
    """The part of README."""
    parts = [
        _opening(results),
        splits_table(results),
        goals_table(results),
        _own_rows(results),
        _live(results),
        *paper_tables(results),
        "\n".join(f"![{words}]({folder}/{file})" for file, words in plots.items()),
    ]
    return "\n\n".join(parts)


def _opening(results: Figures) -> str:
    chosen = [gate for split in results["splits"].values() for gate in _chosen_gates(split)]
    below = sum(gate < 1 for gate in chosen)
    return (
        f"{results['rows']} measured configurations of {results['architectures']} architectures. "
        "Every figure is of rows held out from the fit, weighted so that repeated runs count once; "
        "brackets hold 95 % of draws of architectures (of other GPUs, engines or data sets, of "
        "which there are six or seven, they say nothing). No data set was kept unseen while the "
        "predictor was designed. Gate: how much of the network's correction is used, chosen by "
        "cross-validation within training rows; where the table says once, of the first fold, "
        "which hold other folds' test rows. It is below 1 in "
        f"{below} of {len(chosen)} choices."
    )


def _chosen_gates(split: Figures) -> Sequence[float]:
    gates: Sequence[float] = split["gates"]
    return gates if split["gate_of_every_fold"] else gates[:1]


def splits_table(results: Figures) -> str:
    """Ours on every split, beside physics alone and two parameters."""
    head = (
        *("split", "rows", "architectures", "MAPE %", "median %", "EBA 5/10/30 %", "p95 %", "bias"),
        *("physics alone", "two parameters", "noise floor", "gates", "new as well"),
    )
    return _table(head, [_split_cells(*split) for split in results["splits"].items()])


def _split_cells(name: str, split: Figures) -> Cells:
    ours, floor = split["predictors"][OURS], split["noise_floor"]
    return (
        name,
        str(split["rows"]),
        str(split["architectures"]),
        *_accuracy_cells(ours),
        _one(split["predictors"][PHYSICS]["mape"]["value"]),
        _one(split["predictors"]["two parameters"]["mape"]["value"]),
        f"{_one(floor['mape'])} ({floor['rows']} rows)" if floor["rows"] else "unknown",
        _gates(split),
        "; ".join(split["confounded"]) or "-",
    )


def _gates(split: Figures) -> str:
    values = sorted(set(_chosen_gates(split)))
    return " ".join(f"{gate:g}" for gate in values) + (
        "" if split["gate_of_every_fold"] else " (once)"
    )


def _accuracy_cells(found: Figures) -> Cells:
    return (
        bounded(found["mape"]),
        _one(found["median"]),
        f"{_one(found['eba5'])} / {bounded(found['eba10'])} / {_one(found['eba30'])}",
        _one(found["p95"]),
        f"{found['bias']:+.3f}",
    )


def _split(name: str, split: Figures) -> str:
    """All predictors on one split, and its weights of 8 bits and less apart."""
    head = (name, "MAPE %", "median %", "EBA 5/10/30 %", "p95 %", "bias", f"{OURS} minus it")
    rows = [
        (what, *_accuracy_cells(figures), _minus(split["minus"].get(what)))
        for what, figures in split["predictors"].items()
    ]
    for label, figures in split["precision"].items():
        counted = f"{figures['rows']} rows, {figures['architectures']} architectures"
        rows += [
            (f"{what}, {label} ({counted})", *_accuracy_cells(figures[what]), "")
            for what in (OURS, PHYSICS)
        ]
    return _table(head, rows)


def _minus(found: Figures | None) -> str:
    return f"{bounded(found)}: {found['verdict']}" if found else ""


def _families(results: Figures) -> str:
    """MAPE of ours for each family and split."""
    splits = results["splits"]
    names = sorted({family for split in splits.values() for family in split["families"]})
    rows = []
    for family in names:
        cells = [
            _one(split["families"][family][OURS]["mape"]["value"])
            if family in split["families"]
            else "-"
            for split in splits.values()
        ]
        rows.append((family, *cells))
    return _table((f"MAPE % of {OURS} by family", *splits), rows)


def _reductions(results: Figures) -> str:
    lines = [
        f"MAPE {bounded(reduction)} % below that of {name} on {FOLDS} (the paper claims "
        f"{_claimed(name):.0f} %)"
        for name, reduction in results["reductions"].items()
    ]
    seeds = ", ".join(bounded(reduction) for reduction in results["seeds"].values())
    return "\n".join([*lines, f"MAPE on {FOLDS} by seed: {seeds}"])


def _claimed(name: str) -> float:
    return 100 * (1 - MAPE["LLMCO2"].mean / MAPE[name].mean)


def paper_tables(results: Figures) -> list[str]:
    """Tables 3, 4 and 5 as the paper has them, its figure / ours on architectures held out."""
    tables = [_scheme_table("Table 3: MAPE %", "paper / ours", results, MAPE, _mape)]
    tables += [
        _scheme_table(f"Table 4: EBA({level} %)", "paper / ours", results, printed, _eba(level))
        for level, printed in EBA.items()
    ]
    return [*tables, _ablation_table(results), f"{FAMILY_NOTE} {COMPARABLE}"]


def _scheme_table(
    title: str,
    unit: str,
    results: Figures,
    printed: Mapping[str, PrintedRow],
    figure: Callable[[Figures], float],
) -> str:
    rows = []
    for scheme, line in printed.items():
        cells = {
            family: figure(group[SCHEMES[scheme]])
            for family, group in results["paper_families"].items()
            if SCHEMES[scheme] in group
        }
        rows.append((scheme, *_paired(line, cells)))
    return _table((f"{title}, {unit}", *FAMILIES, "mean (of how many)", "all our rows"), [
        (*row, _all_rows(results, row[0], figure)) for row in rows
    ])  # fmt: skip


def _all_rows(results: Figures, scheme: str, figure: Callable[[Figures], float]) -> str:
    predictors = results["splits"][FOLDS]["predictors"]
    return _one(figure(predictors[SCHEMES[scheme]])) if SCHEMES[scheme] in predictors else "-"


def _ablation_table(results: Figures) -> str:
    rows = []
    for form, printed in LINES.items():
        ablation = results["ablation"][form]
        families = {name: _eba(10)(group) for name, group in ablation["families"].items()}
        line = ABLATION_EBA10.get(printed)
        rows.append((form, *_paired(line, families), _one(_eba(10)(ablation["all"])),
                     bounded(ablation["all"]["mape"])))  # fmt: skip
    focused = ABLATION_EBA10["+ focused sampling"]
    rows.append(("+ focused sampling", *_paired(focused, {}), "see What to measure next", "-"))
    head = (
        "Table 5: EBA(10 %), paper / ours",
        *FAMILIES,
        "mean (of how many)",
        "all our rows",
        "MAPE %",
    )
    return _table(head, rows)


def _paired(printed: PrintedRow | None, found: Mapping[str, float]) -> Cells:
    """Cells ``paper / ours`` of the families and of their mean, which only the paper has all of."""
    values = printed.values if printed else (None,) * len(FAMILIES)
    cells = [
        f"{_printed(value)} / {_one(found[family]) if family in found else 'no data'}"
        for family, value in zip(FAMILIES, values, strict=True)
    ]
    mean = sum(found.values()) / len(found) if found else None
    ours = f"{_one(mean)} ({len(found)})" if mean is not None else "no data"
    return (*cells, f"{_printed(printed.mean if printed else None)} / {ours}")


def _printed(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _own_families(results: Figures) -> str:
    """The paper's schemes on all families that we have."""
    schemes = [name for name in SCHEMES.values() if name in results["splits"][FOLDS]["predictors"]]
    rows = [
        (
            family,
            f"{group['rows']} / {group['architectures']}",
            *(
                f"{_one(group[name]['mape']['value'])}, {_one(_eba(10)(group[name]))}"
                for name in schemes
            ),
        )
        for family, group in results["own_families"].items()
    ]
    return _table(("MAPE %, EBA(10 %) by our families", "rows / architectures", *schemes), rows)


def _prompts(results: Figures) -> str:
    rows = [
        (
            f"assumed prompts {scale}",
            bounded(prompt_figures["mape"]),
            bounded(prompt_figures["eba10"]),
        )
        for scale, prompt_figures in results["prompts"].items()
    ]
    return _table((f"{OURS} on {FOLDS}", "MAPE %", "EBA(10 %)"), rows)


def _own_rows(results: Figures) -> str:
    """Errors by the number of a deployment's own measurements."""
    head = (
        *(
            "unseen",
            "own configurations",
            "rows",
            "MAPE %",
            "one factor %",
            "inside 80 % interval %",
        ),
    )
    rows = [
        (
            split.removeprefix("leave-").removesuffix("-out"),
            shown,
            str(figures["rows"]),
            bounded(figures["posterior"]),
            bounded(figures["one_factor"]),
            _one(figures["inside"]["value"]),
        )
        for split, own in results["own_rows"].items()
        for shown, figures in own["shown"].items()
    ]
    return _table(head, rows)


def _live(results: Figures) -> str:
    """Errors by the number of live requests."""
    head = ("unseen", "live requests", "worlds", "MAPE %", "one factor %", "nothing learnt %")
    rows = [
        (
            UNSEEN[split],
            shown,
            str(live["worlds"]),
            *(bounded(figures[way]) for way in WAYS),
        )
        for split, live in results["live"].items()
        for shown, figures in live["shown"].items()
    ]
    return f"{_table(head, rows)}\n\n{LIVE_NOTE}"


def _coverage(results: Figures) -> str:
    return "\n".join(
        f"The 80 % interval holds {bounded(coverage)} % of the rows of unseen {UNSEEN[split]}; it "
        f"is {_one(coverage['mean_width'])} % of the measurement wide."
        for split, coverage in results["coverage"].items()
    )


def goals_table(results: Figures) -> str:
    """Every goal, its figure and whether it is reached."""
    rows = [
        (
            goal["goal"],
            goal["target"],
            bounded(goal),
            "reached" if goal["reached"] else "not reached",
        )
        for goal in results["goals"]
    ]
    return _table(("goal", "target", "found", ""), rows)


def bounded(found: Figures) -> str:
    """A figure and its interval, which a single architecture does not have."""
    if found["low"] is None:
        return _one(found["value"])
    return f"{_one(found['value'])} [{_one(found['low'])}, {_one(found['high'])}]"


def _mape(found: Figures) -> float:
    return float(found["mape"]["value"])


def _eba(level: int) -> Callable[[Figures], float]:
    def figure(found: Figures) -> float:
        share = found[f"eba{level}"]
        return float(share["value"] if level == 10 else share)

    return figure


def _one(value: float) -> str:
    return f"{value:.1f}"


def _table(head: Cells, rows: Sequence[Cells]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
