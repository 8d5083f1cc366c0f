"""Evaluation: splits are checked, figures follow from predictions, text and plots from figures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.rows import Flag, Row
from llm_carbon_meter.training.data.splits import Split
from llm_carbon_meter.training.fit.train import GATES
from llm_carbon_meter.training.study.ablation import FORMS
from llm_carbon_meter.training.study.baselines import BASELINES
from llm_carbon_meter.training.study.evaluate.evaluation import evaluate, figures, judge
from llm_carbon_meter.training.study.evaluate.figures import (
    Judged,
    accuracy,
    by_group,
    coverage,
    difference,
    own_figures,
    paper_family,
    reduction,
    split_figures,
)
from llm_carbon_meter.training.study.evaluate.goals import EBA10_GOALS, MAPE_GOALS, goals, reached
from llm_carbon_meter.training.study.evaluate.jobs import (
    CHEAP,
    FULL,
    GATE,
    OWN,
    QUICK,
    SLOW,
    Job,
    checked,
    checked_splits,
    modern_dense,
    plan,
    run,
)
from llm_carbon_meter.training.study.evaluate.names import (
    ENGINES,
    FOLDS,
    GPUS,
    MODERN,
    OURS,
    PHYSICS,
    PLOTS,
    RANDOM,
    RESULTS,
)
from llm_carbon_meter.training.study.evaluate.plots import banded_medians, draw
from llm_carbon_meter.training.study.evaluate.report import bounded, readme_section, report
from llm_carbon_meter.training.study.live_requests import Live
from llm_carbon_meter.training.study.own_rows import SHOWN, OwnRows
from tests.support.made.rows import grid, made_row, measured
from tests.support.made.synthetic import V3, tables, written

MODELS = ("Llama-3.1-8B-Instruct", "Qwen3-14B", "Llama-3.1-70B-Instruct", "Qwen3-30B-A3B")


def rows() -> list[Row]:
    """Two engines on two GPUs; a law without noise."""
    new = grid(MODELS, gpus=("H100",), concurrencies=(1.0, 2.0, 8.0, 64.0))
    old = grid(MODELS, gpus=("A100",), source="old", engine="hf_transformers", engine_version="5")
    return measured([*new, *old], lambda row: row.output_tokens * row.spec.hidden_size**0.5 / 9)


def judged(error: Callable[[int], float] = lambda number: 1.1) -> Judged:
    """Every row held out in one of two folds, predicted as measured times an error."""
    made = rows()
    joules = np.array([row.energy_joules for row in made])
    factor = np.array([error(number) for number in range(len(made))])
    folds = np.arange(len(made)) % 2
    predicted = {OURS: joules * factor, PHYSICS: joules * 1.2}
    return Judged(made, folds, ["one", "two"], predicted, np.full(len(made), 0.01))


def found_of(made: list[Row], ours: float = 1.05, others: float = 1.2) -> dict[Job, np.ndarray]:
    """What the jobs of a full evaluation would find, off by a factor each."""
    splits, found = checked_splits(made), {}
    for job in plan(splits, FULL):
        test = [made[place] for place in splits[job.split][job.fold].test]
        joules = np.array([row.energy_joules for row in test])
        if job.what == GATE:
            found[job] = np.array([0.5])
        elif job.what == OURS:
            at_gates = [joules * (others + gate * 2 * (ours - others)) for gate in GATES]
            found[job] = np.stack([*at_gates, np.full(len(joules), 0.01)])
        elif job.what == OWN:
            found[job] = np.full((3, len(SHOWN), len(joules)), 5.0)
        else:
            found[job] = joules * others
    return found


def results_of(made: list[Row]) -> tuple[dict, dict[str, Judged]]:
    """Figures of the above."""
    splits, found = checked_splits(made), found_of(made)
    judged = {name: judge(found, splits, made, name) for name in splits}
    tables = {1 / 3: made, 1.0: made, 3.0: made}
    played = {GPUS: [Live("H200", name, 0, np.full((3, 8, 20), 0.05)) for name in MODELS]}
    return {**figures(found, judged, splits, tables, FULL, played), "seconds": 1}, judged


def test_a_training_architecture_among_the_test_rows_is_an_error() -> None:
    """Nothing is fitted on a split that leaks."""
    made = [made_row(concurrency=1.0), made_row(concurrency=2.0)]
    leaking = Split("leaking", "all", np.array([0]), np.array([1]), ("architecture",), "")
    with pytest.raises(MeterError, match="1 values of architecture are on both sides"):
        checked({"leaking": [leaking]}, made)


def test_splits_without_rows_to_train_on_are_left_out() -> None:
    """A table of one architecture has no architecture to hold out."""
    assert MODERN not in checked_splits(grid(MODELS[:1]))
    assert MODERN in checked_splits(rows())


def test_modern_dense_is_what_it_says() -> None:
    """One engine version, one GPU, neither experts nor Mamba."""
    assert modern_dense(made_row())
    assert not modern_dense(made_row(gpu="A100"))
    assert not modern_dense(made_row(engine_version="0.5.4"))
    assert not modern_dense(made_row("Qwen3-30B-A3B"))
    assert not modern_dense(made_row(flags=frozenset({Flag.MAMBA})))


def test_the_plan_has_every_predictor_where_it_belongs() -> None:
    """Cheap baselines everywhere, slow ones and the ablation on the architecture folds."""
    splits = checked_splits(rows())
    jobs = plan(splits, FULL)
    assert len(jobs) == len(set(jobs))
    for name in splits:
        assert {*CHEAP, OURS} <= {job.what for job in jobs if job.split == name}
    on_folds = {job.what for job in jobs if job.split == FOLDS}
    assert on_folds == {GATE, OURS, *BASELINES, *FORMS}
    quick = {job.what for job in plan(splits, QUICK)}
    assert not quick & set(SLOW[FOLDS])
    assert {job.seed for job in plan(splits, QUICK)} == {0}


@pytest.mark.parametrize("what", [OURS, "two parameters", "+ roofline"])
def test_a_job_predicts_its_test_rows(what: str) -> None:
    """Above 0 joules for each; ours at every gate."""
    made = rows()
    found = run(Job(what, FOLDS, 0), made[:40:2], made[1:40:4])
    assert found.shape == ((len(GATES) + 1, 10) if what == OURS else (10,))
    assert (found > 0).all()


def test_a_gate_is_one_of_the_gates() -> None:
    """It is chosen on the training rows alone."""
    made = rows()
    (gate,) = run(Job(GATE, FOLDS, 0), made[::4], made[:1])
    assert gate in GATES


def test_accuracy_of_a_constant_error() -> None:
    """10 % too high is 10 % in the mean, in the median and within 10 %."""
    found = accuracy(judged(), OURS)
    assert found["mape"] == {"value": 10.0, "low": 10.0, "high": 10.0}
    assert found["median"] == pytest.approx(10.0)
    assert (found["eba5"], found["eba10"]["value"], found["eba30"]) == (0.0, 100.0, 100.0)
    assert found["bias"] == pytest.approx(np.log(1.1), abs=1e-3)


def test_weights_count() -> None:
    """Repeated runs that weigh nothing change nothing."""
    made = judged(lambda number: 1.5 if number == 0 else 1.1)
    light = [
        replace(row, weight=1e-9 if number == 0 else 1.0) for number, row in enumerate(made.rows)
    ]
    assert accuracy(replace(made, rows=light), OURS)["mape"]["value"] == pytest.approx(10.0)


def test_differences_have_a_verdict() -> None:
    """Better, worse, and no difference where the interval holds 0."""
    assert difference(judged(), OURS, PHYSICS)["verdict"] == "better"
    assert difference(judged(), PHYSICS, OURS)["verdict"] == "worse"
    assert difference(judged(), OURS, OURS)["verdict"] == "no difference"
    assert reduction(judged(), OURS, PHYSICS)["value"] == pytest.approx(50.0)


def test_low_precision_and_families_are_told_apart() -> None:
    """Rows of 8 bits and less have figures of their own, and so has each family."""
    made = judged()
    flagged = [replace(made.rows[0], flags=frozenset({Flag.LOW_PRECISION})), *made.rows[1:]]
    found = split_figures(replace(made, rows=flagged), OURS, (OURS, PHYSICS))
    assert found["precision"]["FP8, MXFP4"]["rows"] == 1
    assert found["precision"]["16 bits"]["rows"] == len(made.rows) - 1
    assert found["precision"]["FP8, MXFP4"][OURS]["mape"]["low"] is None
    assert set(found["families"]) == {"llama", "qwen3"}


def test_only_what_the_paper_measured_is_in_its_families() -> None:
    """Near relatives are not counted."""
    assert paper_family(made_row("Llama-3.1-8B-Instruct")) == "Llama3.1"
    assert paper_family(made_row(family="bloom")) == "Bloom"
    assert paper_family(made_row("Qwen2.5-7b", family="qwen2")) is None
    assert set(by_group(judged(), paper_family, (OURS,))) == {"Llama3.1"}


def test_own_figures_are_of_the_rows_that_were_judged() -> None:
    """Rows of deployments that are too small have none, and neither has a number without rows."""
    made = judged()
    ape = np.full((len(SHOWN), len(made.rows)), np.nan)
    ape[0], ape[3, :10] = 20.0, 5.0
    figures = own_figures(made, OwnRows(ape, 2 * ape, ape))["shown"]
    assert set(figures) == {"0", "3"}
    assert figures["3"]["rows"] == 10
    assert figures["3"]["posterior"]["value"] == pytest.approx(5.0)
    assert figures["3"]["one_factor"]["value"] == pytest.approx(10.0)


def test_a_job_of_own_rows_has_a_figure_for_every_row() -> None:
    """Errors at every number shown, where the deployment has rows enough."""
    made = rows()
    alike = [row for row in made if row.gpu == "A100" and row.model == made[-1].model]
    result = run(Job(OWN, GPUS, 0), made[:40:2], alike)
    assert result.shape == (3, len(SHOWN), len(alike))
    assert (result[0, 0] >= 0).all()


def test_intervals_of_one_fold_are_from_the_others() -> None:
    """Alike folds are covered as stated; a fold that errs otherwise is not covered at all."""
    generator = np.random.default_rng(0)
    noise = np.exp(generator.normal(0, 0.2, 200))
    alike = coverage(judged(lambda number: float(noise[number])), OURS)
    assert 65 < alike["value"] < 95
    assert np.all(np.diff([observed for _, observed in alike["curve"]]) >= 0)
    apart = coverage(judged(lambda number: 1.0 if number % 2 else 3.0), OURS)
    assert apart["value"] < 55


@pytest.mark.parametrize(
    ("value", "target", "at_least", "expected"),
    [
        (4.0, 5.0, False, True),
        (5.0, 5.0, False, True),
        (5.1, 5.0, False, False),
        (83.0, 82.0, True, True),
        (81.9, 82.0, True, False),
    ],
)
def test_a_goal_is_reached(value: float, target: float, at_least: bool, expected: bool) -> None:
    """At it or beyond: an interval that includes the goal does not reach it."""
    figure = {"value": value, "low": target - 10.0, "high": target + 10.0}
    assert reached(figure, target, at_least) is expected


def test_every_goal_has_its_figure() -> None:
    """Splits, reductions, baselines, own configurations, live requests, coverage."""
    results, _ = results_of(rows())
    named = [one["goal"] for one in goals(results)]
    assert len(named) == len(set(named)) == len(MAPE_GOALS) + len(EBA10_GOALS) + 10
    against = next(one for one in results["goals"] if one["goal"].startswith("never worse"))
    assert against["reached"]
    results["splits"][FOLDS]["minus"]["two parameters"]["value"] = 0.1
    against = next(one for one in goals(results) if one["goal"].startswith("never worse"))
    assert not against["reached"]


def test_figures_use_the_chosen_gate() -> None:
    """Half the correction here; physics alone has none."""
    results, judged = results_of(rows())
    predictors = results["splits"][FOLDS]["predictors"]
    assert predictors[OURS]["mape"]["value"] == pytest.approx(5.0)
    assert predictors[PHYSICS]["mape"]["value"] == pytest.approx(20.0)
    assert results["splits"][RANDOM]["gates"] == [0.5] * 5
    assert not results["splits"][RANDOM]["gate_of_every_fold"]
    assert results["reductions"]["NNLQP"]["value"] == pytest.approx(75.0)
    assert ENGINES in judged


def test_results_become_text_and_plots(tmp_path: Path) -> None:
    """The report and README's section read results.json alone."""
    results, judged = results_of(rows())
    again = json.loads(json.dumps(results, allow_nan=False))
    text = report(again)
    for name in (
        *BASELINES,
        *FORMS,
        "Table 3",
        "Table 4",
        "Table 5",
        "no data",
        "The live requests are simulated",
        "see What to measure next",
    ):
        assert name in text
    assert "below 1" in text
    section = readme_section(again, "folder", PLOTS)
    assert "folder/coverage.png" in section
    assert "| goal |" in section
    draw(tmp_path, judged[FOLDS], again)
    for file in PLOTS:
        assert 1000 < (tmp_path / file).stat().st_size < 200_000


def test_the_paper_is_printed_beside_ours() -> None:
    """Its figure first; where nothing was measured there is no data."""
    results, _ = results_of(rows())
    line = next(line for line in report(results).splitlines() if line.startswith("| LLMCO2 |"))
    assert "15.8 / no data" in line
    assert "18.3 / 5.0" in line


def test_a_figure_of_one_architecture_has_no_interval() -> None:
    """Brackets only where there is something in them."""
    assert bounded({"value": 1.0, "low": None, "high": None}) == "1.0"
    assert bounded({"value": 1.0, "low": 0.5, "high": 2.0}) == "1.0 [0.5, 2.0]"


def test_banded_medians() -> None:
    """Bands hold equal numbers of rows, in the order of the value."""
    values, errors = banded_medians(np.arange(16.0), np.arange(16.0) * 2)
    assert values.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5]
    assert errors.tolist() == (values * 2).tolist()
    values, _ = banded_medians(np.array([1.0] * 50 + [2.0, 3.0]), np.zeros(52))
    assert len(values) == len(set(values.tolist()))


@pytest.mark.slow
def test_the_verb_on_a_small_data_folder(tmp_path: Path) -> None:
    """From files to results.json, plots and a report that tells how long it took."""
    content = tables()
    (one,) = content[V3]
    content[V3] = [
        {
            **one,
            "model": model,
            "tensor_parallel": 2,
            "expert_parallel": 1,
            "batch_size_mean": batch,
        }
        for model in ("Qwen/Qwen3-8B", "Qwen/Qwen3-14B")
        for batch in (8.0, 32.0, 64.0, 128.0)
    ]
    accepted = written(tmp_path / "data", content)
    text = evaluate(tmp_path / "data", tmp_path / "out", quick=True, accepted=accepted)
    results = json.loads((tmp_path / "out" / RESULTS).read_text("utf-8"))
    assert text == report(results)
    assert results["splits"][MODERN]["architectures"] == 2
    assert "NNLQP" not in results["splits"][FOLDS]["predictors"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {RESULTS, *PLOTS}
