"""The verb: fit, judge, write results.json and the plots, and print the report."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llm_carbon_meter.predictor.gnn import shipped_weights
from llm_carbon_meter.training.data.dataset import read_table
from llm_carbon_meter.training.data.files import Manifest
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.fit.examples import merge_repeats
from llm_carbon_meter.training.fit.kernel_rates import kernel_rates
from llm_carbon_meter.training.fit.train import GATES
from llm_carbon_meter.training.study.ablation import FORMS
from llm_carbon_meter.training.study.evaluate.figures import (
    Figures,
    Floats,
    Judged,
    accuracy,
    by_group,
    coverage,
    live_figures,
    own_figures,
    paper_family,
    reduction,
    size,
    split_figures,
)
from llm_carbon_meter.training.study.evaluate.goals import CLAIMED_REDUCTIONS, goals
from llm_carbon_meter.training.study.evaluate.jobs import (
    FULL,
    GATE,
    GATE_EVERY_FOLD,
    OWN,
    PROMPT_SCALES,
    QUICK,
    Effort,
    Job,
    Splits,
    checked_splits,
    plan,
    run_all,
)
from llm_carbon_meter.training.study.evaluate.names import (
    ENGINES,
    FOLDS,
    GPUS,
    OURS,
    PHYSICS,
    RESIDUAL_FORM,
    RESULTS,
)
from llm_carbon_meter.training.study.evaluate.plots import draw
from llm_carbon_meter.training.study.evaluate.report import report
from llm_carbon_meter.training.study.kernel_curves import has_kernels
from llm_carbon_meter.training.study.live_requests import MODELS, Live, live_errors
from llm_carbon_meter.training.study.own_rows import OwnRows

Found = Mapping[Job, Floats]


def evaluate(
    data: Path, output: Path, quick: bool = False, accepted: Manifest | None = None
) -> str:
    """Judge the predictor on a data folder.

    Args:
        data: the folder of the data sets.
        output: folder for ``results.json`` and the plots.
        quick: one seed, one gate a split, and no baseline that takes long.
        accepted: the files' checksums; of the package if not given.

    Returns:
        The report.

    Raises:
        ConfigError: a file of the data folder is missing.
        MeterError: a split leaks.
    """
    started_s, effort = time.monotonic(), QUICK if quick else FULL
    rates = kernel_rates(data, accepted)
    tables = {
        scale: merge_repeats(read_table(data, scale, accepted).for_evaluation())
        for scale in PROMPT_SCALES
    }
    splits = checked_splits(tables[1.0])
    fitted = run_all(plan(splits, effort), tables, rates)
    judged = {name: judge(fitted, splits, tables[1.0], name) for name in splits}
    played = live_worlds(data, effort, accepted)
    results = figures(fitted, judged, splits, tables, effort, played)
    results["seconds"] = round(time.monotonic() - started_s)
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    (output / RESULTS).write_text(text, "utf-8")
    draw(output, judged[FOLDS], results)
    return report(results)


def judge(
    found: Found,
    splits: Splits,
    rows: Sequence[Row],
    name: str,
    seed: int = 0,
    prompt_scale: float = 1.0,
) -> Judged:
    """What all predictors say of the rows that a split holds out."""
    folds = splits[name]
    wanted = dict.fromkeys(
        job.what
        for job in found
        if (job.split, job.seed, job.prompt_scale) == (name, seed, prompt_scale)
        and job.what not in (GATE, OURS, OWN)
    )
    joules: dict[str, list[Floats]] = {what: [] for what in (OURS, PHYSICS, *wanted)}
    variance = []
    for fold, gate in enumerate(gates_of(found, splits, name)):
        every_gate = found[Job(OURS, name, fold, seed, prompt_scale)]
        joules[OURS].append(every_gate[GATES.index(gate)])
        joules[PHYSICS].append(every_gate[GATES.index(0.0)])
        variance.append(every_gate[len(GATES)])
        for what in wanted:
            joules[what].append(found[Job(what, name, fold, seed, prompt_scale)])
    return Judged(
        [rows[place] for split in folds for place in split.test],
        np.repeat(np.arange(len(folds)), [len(split.test) for split in folds]),
        [split.held_out for split in folds],
        {what: np.concatenate(parts) for what, parts in joules.items()},
        np.concatenate(variance),
    )


def gates_of(found: Found, splits: Splits, name: str) -> list[float]:
    """The gate of every fold; the first fold's where it alone was chosen."""
    gates = [
        float(found[job][0])
        for fold in range(len(splits[name]))
        if (job := Job(GATE, name, fold)) in found
    ]
    return gates if len(gates) == len(splits[name]) else gates * len(splits[name])


def figures(
    found: Found,
    judged: Mapping[str, Judged],
    splits: Splits,
    tables: Mapping[float, Sequence[Row]],
    effort: Effort,
    played: Mapping[str, Sequence[Live]],
) -> Figures:
    """All of results.json, but the time it took."""
    folds = judged[FOLDS]
    results: Figures = {
        "rows": len(tables[1.0]),
        "architectures": len({row.architecture for row in tables[1.0]}),
        "splits": {
            name: {
                **split_figures(
                    judgement, OURS, [what for what in judgement.joules if what not in FORMS]
                ),
                "gates": gates_of(found, splits, name),
                "gate_of_every_fold": effort.gate_every_fold and name in GATE_EVERY_FOLD,
                "confounded": sorted({split.confounded for split in splits[name]} - {""}),
            }
            for name, judgement in judged.items()
        },
        "coverage": {name: coverage(judged[name], OURS) for name in (FOLDS, ENGINES, GPUS)},
        "own_rows": {
            name: own_figures(judged[name], _own(found, splits, name)) for name in (GPUS, ENGINES)
        },
        "live": {name: live_figures(worlds) for name, worlds in played.items() if worlds},
        **_of_folds(found, splits, tables, effort, folds),
    }
    return {**results, "goals": goals(results)}


def _of_folds(
    found: Found,
    splits: Splits,
    tables: Mapping[float, Sequence[Row]],
    effort: Effort,
    folds: Judged,
) -> Figures:
    """What is told of the architecture folds alone."""
    predictors = [name for name in folds.joules if name not in FORMS]
    return {
        "seeds": {
            str(seed): accuracy(judge(found, splits, tables[1.0], FOLDS, seed), OURS)["mape"]
            for seed in effort.seeds
        },
        "reductions": {
            name: reduction(folds, OURS, name) for name in CLAIMED_REDUCTIONS if name in predictors
        },
        "paper_families": by_group(folds, paper_family, predictors),
        "own_families": by_group(folds, lambda row: row.family, predictors),
        "ablation": _ablation(folds),
        "prompts": {
            f"x {scale:.3g}": accuracy(
                judge(found, splits, tables[scale], FOLDS, prompt_scale=scale), OURS
            )
            for scale in PROMPT_SCALES
        },
    }


def live_worlds(
    data: Path, effort: Effort, accepted: Manifest | None = None
) -> Mapping[str, Sequence[Live]]:
    """Live requests on the GPUs whose kernel tables are there, apart by what was never measured."""
    weights = shipped_weights()
    played: dict[str, list[Live]] = {ENGINES: [], GPUS: []}
    for gpu in MODELS:
        if has_kernels(gpu, accepted):
            unseen = ENGINES if gpu in weights.physics.gpus else GPUS
            played[unseen] += live_errors(data, weights, gpu, effort.worlds, accepted)
    return played


def _own(found: Found, splits: Splits, name: str) -> OwnRows:
    """What own measurements do for the rows of a split, in the order of `judge`."""
    folds = [found[Job(OWN, name, fold)] for fold in range(len(splits[name]))]
    return OwnRows(*np.concatenate(folds, axis=-1))


def _ablation(folds: Judged) -> Figures:
    forms = {**{form: form for form in FORMS}, RESIDUAL_FORM: OURS}
    return {
        form: {
            **size(folds),
            "all": accuracy(folds, name),
            "families": {
                label: group[name] for label, group in by_group(folds, paper_family, [name]).items()
            },
        }
        for form, name in forms.items()
    }
