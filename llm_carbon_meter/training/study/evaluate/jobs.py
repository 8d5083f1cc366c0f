"""What is fitted, on which rows; each job by itself, so that they run in several processes."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from llm_carbon_meter.progress import progress
from llm_carbon_meter.training.data.rows import Flag, Row
from llm_carbon_meter.training.data.splits import (
    ATTRIBUTES,
    SPLITS,
    Split,
    assert_no_leak,
    leave_architecture_out,
)
from llm_carbon_meter.training.fit.examples import examples
from llm_carbon_meter.training.fit.kernel_rates import NO_RATES, KernelRates
from llm_carbon_meter.training.fit.train import GATES, choose_gate, fit, fit_physics, prior_variance
from llm_carbon_meter.training.study.ablation import FORMS, fit_form
from llm_carbon_meter.training.study.baselines import BASELINES
from llm_carbon_meter.training.study.evaluate.names import (
    ENGINES,
    FOLDS,
    GPUS,
    MODERN,
    OURS,
    RANDOM,
)
from llm_carbon_meter.training.study.live_requests import SEEDS as WORLDS
from llm_carbon_meter.training.study.own_rows import from_own_rows

Floats = npt.NDArray[np.float64]

PROCESSES: Final = 2
GATE: Final = "gate"
OWN: Final = "own rows"
CHEAP: Final = tuple(
    name for name in BASELINES if name != "DeepEn" and not name.startswith("NNLQP")
)
SLOW: Final[Mapping[str, tuple[str, ...]]] = {
    FOLDS: ("NNLQP", "NNLQP, 16 wide", "DeepEn"),
    MODERN: ("DeepEn",),
}
"""Baselines that take seconds to minutes a fit, and the splits that they are fitted for."""
HELD_OUT: Final = {GPUS: ATTRIBUTES["gpu"], ENGINES: ATTRIBUTES["engine"]}
"""What the choice of a gate holds out of the training rows; architectures for other splits."""
GATE_EVERY_FOLD: Final = (FOLDS,)
"""The split whose gate is chosen on every fold's own training rows; else on the first fold's."""
SEEDS: Final = (0, 1)
PROMPT_SCALES: Final = (1 / 3, 1.0, 3.0)
"""Of the assumed prompt lengths; all other figures are with the middle one."""


@dataclass(frozen=True, slots=True)
class Job:
    """One fit."""

    what: str
    """`OURS`, `GATE`, `OWN`, a form of the ablation or a baseline."""
    split: str
    fold: int
    seed: int = 0
    prompt_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is fitted."""

    slow_baselines: bool = True
    gate_every_fold: bool = True
    seeds: tuple[int, ...] = SEEDS
    worlds: Sequence[int] = WORLDS
    """Seeds of the worlds of each GPU and model in which live requests are played."""


FULL: Final = Effort()
QUICK: Final = Effort(
    slow_baselines=False, gate_every_fold=False, seeds=SEEDS[:1], worlds=WORLDS[:1]
)

Splits = Mapping[str, Sequence[Split]]


def modern_dense(row: Row) -> bool:
    """Measured with vLLM 0.11.1 on H100; neither experts nor Mamba."""
    engine = row.gpu, row.engine, row.engine_version
    dense = not row.spec.num_experts and Flag.MAMBA not in row.flags
    return engine == ("H100", "vllm", "0.11.1") and dense


def checked_splits(rows: Sequence[Row]) -> Splits:
    """All splits of some rows, the easiest last.

    Raises:
        MeterError: a split leaks.
    """
    apart = ("leave-architecture-out", RANDOM)
    made = {MODERN: leave_architecture_out(rows, modern_dense)}
    made |= {name: split(rows) for name, split in SPLITS.items() if name not in apart}
    made[RANDOM] = SPLITS[RANDOM](rows)
    return checked(made, rows)


def checked(made: Splits, rows: Sequence[Row]) -> Splits:
    """The splits that have rows on both sides.

    Raises:
        MeterError: a split leaks.
    """
    valid = {
        name: [split for split in splits if len(split.train) and len(split.test)]
        for name, splits in made.items()
    }
    for splits in valid.values():
        for split in splits:
            assert_no_leak(split, rows)
    return {name: splits for name, splits in valid.items() if splits}


def plan(splits: Splits, effort: Effort = FULL) -> list[Job]:
    """All jobs, the longest first."""
    return [
        *_baselines(splits, SLOW if effort.slow_baselines else {}),
        *_gates(splits, effort.gate_every_fold),
        *_ours(splits, effort.seeds),
        *(Job(form, FOLDS, fold) for form in FORMS for fold in range(len(splits[FOLDS]))),
        *_baselines(splits, dict.fromkeys(splits, CHEAP)),
    ]


def _baselines(splits: Splits, wanted: Mapping[str, Sequence[str]]) -> Iterator[Job]:
    for split, names in wanted.items():
        for name in names:
            for fold in range(len(splits.get(split, ()))):
                yield Job(name, split, fold)


def _gates(splits: Splits, every_fold: bool) -> Iterator[Job]:
    for name, folds in splits.items():
        for fold in range(len(folds) if every_fold and name in GATE_EVERY_FOLD else 1):
            yield Job(GATE, name, fold)


def _ours(splits: Splits, seeds: Sequence[int]) -> Iterator[Job]:
    for name, folds in splits.items():
        for fold in range(len(folds)):
            yield Job(OURS, name, fold)
            if name in (GPUS, ENGINES):
                yield Job(OWN, name, fold)
    for fold in range(len(splits[FOLDS])):
        for seed in seeds[1:]:
            yield Job(OURS, FOLDS, fold, seed=seed)
        for scale in PROMPT_SCALES:
            if scale != 1.0:
                yield Job(OURS, FOLDS, fold, prompt_scale=scale)


def run(
    job: Job, train: Sequence[Row], test: Sequence[Row], rates: KernelRates = NO_RATES
) -> Floats:
    """What a job finds.

    Returns:
        Joules of the test rows, shape (n,); of `OURS` at every one of `GATES` and then the variance
        of their logarithms by the priors, shape (gates + 1, n); of `GATE` the gate alone, shape
        (1,); of `OWN` see `own_rows.OwnRows.stacked`.
    """
    if job.what in BASELINES:
        return BASELINES[job.what].fit(train, job.seed).predict(test)
    data = examples(train)
    if job.what == GATE:
        groups = [HELD_OUT.get(job.split, ATTRIBUTES["architecture"])(row) for row in train]
        return np.array([choose_gate(data, groups, job.seed, rates)])
    asked = examples(test)
    if job.what in FORMS:
        return fit_form(FORMS[job.what], data, asked, job.seed)
    if job.what == OWN:
        return from_own_rows(asked, fit_physics(data, rates)).stacked()
    whole = fit(data, 1.0, job.seed, rates)
    joules = [replace(whole, gate=gate).predict(asked) for gate in GATES]
    return np.stack([*joules, prior_variance(asked, whole.physics, whole.factors(asked))])


def run_all(
    jobs: Sequence[Job],
    tables: Mapping[float, Sequence[Row]],
    rates: KernelRates = NO_RATES,
    processes: int = PROCESSES,
) -> dict[Job, Floats]:
    """All jobs in some processes of one thread each, with a progress bar.

    Args:
        jobs: in the order to start them.
        tables: the rows for each scale of the assumed prompt lengths.
        rates: of measured kernels.
        processes: at once.
    """
    splits = {scale: checked_splits(rows) for scale, rows in tables.items()}
    results = {}
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=one_thread
    ) as pool:
        running = {}
        for job in jobs:
            split = splits[job.prompt_scale][job.split][job.fold]
            rows = tables[job.prompt_scale]
            train, test = ([rows[place] for place in side] for side in (split.train, split.test))
            running[pool.submit(run, job, train, test, rates)] = job
        try:
            for done in progress(
                as_completed(running), desc="evaluation", total=len(running), unit="fit"
            ):
                results[running[done]] = done.result()
        finally:  # also where one fails, or is interrupted
            pool.shutdown(cancel_futures=True)
    return results


def one_thread() -> None:
    """Keep a process to one core."""
    torch.set_num_threads(1)
    threadpool_limits(1)
