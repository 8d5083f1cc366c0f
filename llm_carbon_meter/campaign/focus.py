"""Focused sampling (Algorithm 1 of LLMCO2) on live GPUs: errors decide what is measured next.

The loop is training/sampling.py; this measures what it asks for, and at last the test set, which
was locked away before the first measurement.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

import numpy as np

from llm_carbon_meter.campaign.job import Job
from llm_carbon_meter.campaign.plan import Load, Plan
from llm_carbon_meter.campaign.rows import Measurements
from llm_carbon_meter.campaign.runner import installed_version, lacking, measure
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.campaign_columns import PREFILL
from llm_carbon_meter.training.data.campaigns import table_of
from llm_carbon_meter.training.data.configurations import PAPER_RADIUS, Configuration, lock
from llm_carbon_meter.training.data.physics_features import column
from llm_carbon_meter.training.data.priors import TracePrior
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.fit.metrics import errors
from llm_carbon_meter.training.study import sampling
from llm_carbon_meter.training.study.recorded import fit_predictor

SEED: Final = 0
DRAWN: Final = 200
"""Configurations of which whole groups are locked away for the test."""
TEST_SHARE: Final = 0.2
"""Of what is drawn, and of the time."""
FIRST: Final = 20
"""Configurations before the first training."""
PER_ROUND: Final = 10
PER_POINT: Final = 5
"""Around a point of large error."""
MOST: Final = 10_000
"""Time ends a campaign, not its number of measurements."""


def focus(plan: Plan, file: Measurements, gpu: str, end_s: float) -> None:
    """Measure where the predictor errs until the time is up; print what it learnt.

    Args:
        plan: whose models the architectures are near to; its loads are not used.
        file: of the rows.
        gpu: as NVML names it.
        end_s: monotonic.

    Raises:
        MeterError: there is no sensor, or too little could be measured to learn from.
    """
    if not plan.gpus:
        raise MeterError(
            "--focused learns from what it measures, and there is no GPU here; on one, run it "
            "again, or try the loop on public measurements: examples/focused_sampling"
        )
    rng = np.random.default_rng(SEED)
    prior = TracePrior(
        gpus=[gpu_spec(gpu).name],
        engine=plan.engine,
        engine_version=installed_version(plan.engine),
        max_gpus=plan.tensor_parallel,
        models=plan.models,
        dtypes=("",),
    )
    locked = lock(prior.draw(DRAWN, (), rng), TEST_SHARE, PAPER_RADIUS, rng)
    search_end_s = end_s - TEST_SHARE * (end_s - time.monotonic())

    def ask(configurations: Sequence[Configuration]) -> sampling.Measured:
        return _measured(configurations, plan, file, gpu, search_end_s)

    steps = sampling.Plan(
        FIRST, PER_ROUND, PER_POINT, MOST, limit_s=search_end_s - time.monotonic()
    )
    for done in sampling.rounds(
        replace(prior, admits=locked.admits), ask, fit_predictor, steps, seed=SEED
    ):
        print(
            f"{len(done.train)} trained on, {done.num_near} of {len(done.taken)} drawn near a "
            f"large error; error on {len(done.search)} others {done.error_percent:.1f} %",
            flush=True,
        )
    test = _measured(locked.configurations, plan, file, gpu, end_s)
    if test:
        rows = list(test.values())
        judged = errors(column(rows, "energy_joules"), done.predict(rows), column(rows, "weight"))
        print(f"on {len(rows)} of the test set, locked away before: MAPE {judged.mape:.1f} %")


def _measured(
    configurations: Sequence[Configuration],
    plan: Plan,
    file: Measurements,
    gpu: str,
    end_s: float,
) -> Mapping[Configuration, Row]:
    """Whole answers of those that could be measured in time; prefill is in the file."""
    by_model = sorted(configurations, key=_served)
    jobs = []
    for _, same in groupby(by_model, key=_served):
        alike = list(same)
        jobs.append(lacking(_job(plan, alike[0], gpu), map(_load, alike), plan.repetitions, file))
    measure(jobs, file, end_s)
    rows: dict[tuple[Any, ...], Row] = {}
    for row in table_of(file.rows).rows:
        if row.task != PREFILL:
            rows[_key(Configuration.of(row))] = row
    return {
        configuration: rows[_key(configuration)]
        for configuration in configurations
        if _key(configuration) in rows
    }


def _served(one: Configuration) -> tuple[str, str, int]:
    """What one worker can measure."""
    return one.model.name, json.dumps(dict(one.changes)), one.num_gpus


def _load(one: Configuration) -> Load:
    return Load(int(one.batch), int(one.prompt_tokens), int(one.output_tokens))


def _key(one: Configuration) -> tuple[Any, ...]:
    """What a configuration has in common with the row that was measured of it."""
    place = one.gpu, one.num_gpus, one.engine, one.engine_version
    shape = one.model.hidden_size, one.model.num_layers, one.model.num_heads
    wide = one.model.num_kv_heads, one.model.intermediate_size, one.model.name
    return (*place, *shape, *wide, *_load(one))


def _job(plan: Plan, one: Configuration, gpu: str) -> Job:
    job = Job.of(plan, one.model.name, one.config, gpu, installed_version(plan.engine))
    return replace(
        job,
        changes=json.dumps(dict(one.changes)) if one.changes else "",
        tensor_parallel=one.num_gpus,
        gpus=plan.gpus[: one.num_gpus],
    )
