"""Every baseline finds the law that it can express, twice the same, and survives the unknown."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.phases import phase_totals
from llm_carbon_meter.physics.roofline import seconds
from llm_carbon_meter.training.data.physics_features import Physics, column, physics
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.fit.metrics import errors
from llm_carbon_meter.training.study.baselines import BASELINES, Baseline
from llm_carbon_meter.training.study.baselines.deepen import fit_deepen
from llm_carbon_meter.training.study.baselines.formulas import llmcarbon_flop
from llm_carbon_meter.training.study.baselines.nnlqp import NARROW_WIDTH, Budget, fit_nnlqp
from tests.support.made_rows import grid, made_row, measured

QUICK = {
    **BASELINES,
    "DeepEn": Baseline("DeepEn", partial(fit_deepen, trees=5)),
    "NNLQP": Baseline("NNLQP", partial(fit_nnlqp, width=32, budget=Budget(2, 2))),
    "NNLQP, 16 wide": Baseline("NNLQP, 16 wide", partial(fit_nnlqp, width=16, budget=Budget(2, 2))),
}
"""The slow ones with next to no training."""


def physical(law: Callable[[Physics], float]) -> Callable[[Row], float]:
    """A law of the physical columns, for one row."""
    return lambda row: float(np.squeeze(law(physics([row]))))


def fit(name: str, rows: Sequence[Row]) -> Callable[[Sequence[Row]], np.ndarray]:
    """How a fitted baseline predicts."""
    return BASELINES[name].fit(rows, 0).predict


def mape(rows: Sequence[Row], predicted: np.ndarray) -> float:
    """Of predictions for rows [%]."""
    return errors(column(rows, "energy_joules"), predicted).mape


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("baseline", QUICK.values(), ids=QUICK)
def test_every_baseline_is_repeatable_and_survives_the_unknown(baseline: Baseline) -> None:
    """The same rows and seed give the same joules; what is new costs some, above 0."""
    rows = measured(grid(outputs=(50.0, 400.0)), physical(lambda found: 2 * found.board_joules))
    unknown = [
        made_row(gpu="L40S"),
        made_row("gpt-oss-20b", num_gpus=2),
        made_row("DeepSeek-V3", num_gpus=8),
        made_row(engine="sglang", engine_version="0.5"),
        made_row(output_tokens=1.0),
        made_row(concurrency=1.0, prompt_tokens=1.0),
    ]
    state = torch.get_rng_state()
    first, second = (baseline.fit(rows, 7).predict([*rows, *unknown]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (len(rows) + len(unknown),)
    assert np.all(np.isfinite(first) & (first > 0))
    assert np.array_equal(first, second)


def test_names_are_keys() -> None:
    """A table of results is labelled as the registry is."""
    assert [baseline.name for baseline in BASELINES.values()] == list(BASELINES)


def test_llmcarbon_counts_as_published() -> None:
    """Its equation for Llama-3.1-8B with 1020 and 129 tokens."""
    assert llmcarbon_flop(built_in_model("Llama-3.1-8B"), 1020, 129) == 18453540347904


def test_llmcarbon_finds_the_efficiency_of_each_engine() -> None:
    """And pools both for an engine that it has not seen."""

    def law(row: Row) -> float:
        gpu = gpu_spec(row.gpu)
        efficiency = 0.4 if row.engine == "vllm" else 0.1
        flop = llmcarbon_flop(row.spec, row.prompt_tokens, row.output_tokens)
        return flop / (gpu.compute_ops_per_s * efficiency) * gpu.board_watts

    rows = measured([*grid(), *grid(engine="hf")], law)
    predict = fit("LLMCarbon", rows)
    assert predict(rows) == pytest.approx(column(rows, "energy_joules"))
    other, vllm, hf = predict([made_row(engine=engine) for engine in ("new", "vllm", "hf")])
    assert vllm < other < hf


def test_the_note_is_taken_as_it_is() -> None:
    """Watt-hours of its worked example, whatever the rows say."""
    row = made_row("Llama-3.1-8B", prompt_tokens=1020.0, output_tokens=129.0)
    predicted = fit("LLM-BENCH note", grid())([row, replace(row, concurrency=64.0, gpu="A100")])
    assert predicted / 3600 == pytest.approx([0.0230440091, 0.0230440091])


def test_tdp_times_roofline_is_taken_as_it_is() -> None:
    """Four GPUs at board power for the roofline time of all kernels, over the batch."""
    row, gpu = made_row("Llama-3.1-70B-Instruct", num_gpus=4), gpu_spec("H100")
    phases = phase_totals(row.spec, 4, 8.0, 300.0, 200.0)
    time_s = sum(
        kernel.count * seconds(kernel, gpu) for kernel in (*phases.prefill, *phases.decode)
    )
    expected = pytest.approx([4 * 700 * time_s / 8])
    assert fit("TDP x roofline", grid())([row]) == expected


def test_two_parameters_are_found() -> None:
    """1.5 times board power and 0.02 J per sequence and step, here and on a new GPU."""

    def law(row: Row) -> float:
        return 1.5 * float(physics([row]).board_joules[0]) + 0.02 * row.output_tokens

    predict = fit("two parameters", measured(grid(), law))
    new = measured(grid(gpus=("A40",), outputs=(333.0,)), law)
    assert predict(new) == pytest.approx(column(new, "energy_joules"))


def test_a_deployment_has_a_law_of_its_own() -> None:
    """Each is found where there are enough rows; elsewhere the two parameters hold."""

    def law(row: Row) -> float:
        n, context = row.output_tokens, row.prompt_tokens + row.output_tokens / 2
        return 3 * row.concurrency + 0.1 * n + (1e-5 if row.gpu == "H100" else 5e-5) * n * context

    lengths = (50.0, 100.0, 200.0, 400.0, 800.0, 1600.0)
    rows = measured(grid(concurrencies=(1.0, 8.0), outputs=lengths), law)
    few = measured([made_row(concurrency=100.0, output_tokens=n) for n in lengths[:5]], law)
    predict = fit("per deployment", [*rows, *few])
    new = measured(grid(concurrencies=(1.0, 8.0), outputs=(333.0,)), law)
    assert predict(new) == pytest.approx(column(new, "energy_joules"))
    pooled = fit("two parameters", [*rows, *few])
    unseen = [*few, made_row(gpu="A40"), made_row(concurrency=16.0), made_row(engine="hf")]
    assert np.array_equal(predict(unseen), pooled(unseen))


def test_pooled_physics_is_found_and_carried_to_a_new_gpu() -> None:
    """Every coefficient is in units of the data sheet."""
    law = physical(
        lambda found: (
            0.3 * found.board_joules
            + 0.2 * found.compute_board_joules
            + 0.5 * found.memory_board_joules
            + 0.4 * found.network_board_joules
            + 2e-3 * found.step_board_watts
            + 5e-5 * found.sequence_step_board_watts
        )
    )
    rows = measured([*grid(), *grid(num_gpus=4)], law)
    new = measured(grid(gpus=("A40",), outputs=(333.0,), num_gpus=2), law)
    assert fit("physics", rows)(new) == pytest.approx(column(new, "energy_joules"), rel=1e-3)


def test_joules_per_token_are_found() -> None:
    """A power law of active parameters and batch with a factor for each GPU."""

    def law(row: Row) -> float:
        factor = {"H100": 1.0, "A100": 2.0}[row.gpu]
        per_token = factor * (row.spec.active_parameters / 1e9) ** 0.8 * row.concurrency**-0.5
        return per_token * row.output_tokens

    new = measured(grid(concurrencies=(20.0,)), law)
    predicted = fit("J per token", measured(grid(), law))(new)
    assert predicted == pytest.approx(column(new, "energy_joules"), rel=1e-3)


def test_the_forest_knows_what_it_has_seen() -> None:
    """Each configuration between others of its kind, by names alone."""

    def law(row: Row) -> float:
        return (len(row.model) + 10 * (row.gpu == "A100")) * row.output_tokens / row.concurrency

    rows = measured(grid(outputs=tuple(np.geomspace(50, 800, 9))), law)
    assert mape(rows, fit("random forest", rows)(rows)) < 8


def test_boosting_corrects_what_physics_misses() -> None:
    """An engine that takes three times the energy is told from the other."""

    def law(row: Row) -> float:
        return (3.0 if row.engine == "hf" else 1.0) * float(physics([row]).board_joules[0])

    rows = measured([*grid(), *grid(engine="hf")], law)
    assert mape(rows, fit("physics", rows)(rows)) > 30
    assert mape(rows, fit("boosting on physics", rows)(rows)) < 3


def test_deepen_adds_up_kernels() -> None:
    """Joules in proportion to roofline time are a sum over kernels, on one GPU or four."""
    law = physical(lambda found: 1.3 * found.board_joules)
    rows = measured([*grid(), *grid(num_gpus=4)], law)
    assert mape(rows, fit_deepen(rows, 0, trees=10).predict(rows)) < 10


def test_deepen_deals_out_all_joules() -> None:
    """A forest that knows one row gives that row's energy back."""
    rows = [made_row(energy_joules=123.0, num_gpus=2, concurrency=5.0)]
    predicted = fit_deepen(rows * 3, 0, trees=1).predict(rows)
    assert predicted == pytest.approx([123.0], rel=0.02)


def test_deepen_knows_depth_as_a_number_of_launches() -> None:
    """A model of twice the layers of the same width costs about twice as much."""
    law = physical(lambda found: 1.3 * found.board_joules)
    rows = measured(grid(models=("Llama-3.1-8B-Instruct",)), law)
    layers = dict.fromkeys(("num_layers", "attention_layers", "dense_layers"), 64)
    deep = measured([replace(row, spec=replace(row.spec, **layers)) for row in rows], law)
    assert mape(deep, fit_deepen(rows, 0, trees=10).predict(deep)) < 10


def test_nnlqp_trains() -> None:
    """Labels over three decades, with the least budget that does it; less is far worse."""
    rows = measured(grid(), physical(lambda found: 2 * found.board_joules))
    narrow = partial(fit_nnlqp, rows, 0, NARROW_WIDTH)
    assert mape(rows, narrow(Budget(300, 300)).predict(rows)) < 25
    assert mape(rows, narrow(Budget(3, 3)).predict(rows)) > 60


def test_weights_count_when_fitting() -> None:
    """Ten repeated runs at a tenth each pull as one row does."""
    rows = measured(grid(), physical(lambda found: 2 * found.board_joules))
    odd = made_row(energy_joules=1000.0, concurrency=3.0)
    once = fit("physics", [*rows, odd])(rows)
    tenfold = fit("physics", [*rows, *[replace(odd, weight=0.1)] * 10])(rows)
    # Columns are scaled by their mean over rows before the fit, whatever their weight.
    assert tenfold == pytest.approx(once, rel=1e-6)


def test_serving_never_imports_training() -> None:
    """The plugin and the estimates load neither scikit-learn nor the training rows."""
    script = (
        "import sys, llm_carbon_meter.servers.vllm.plugin, llm_carbon_meter.predictor.estimator;"
        "bad = [n for n in sys.modules if n.startswith(('sklearn', 'llm_carbon_meter.training'))];"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
