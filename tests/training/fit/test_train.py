"""Training: the physics is found again, the network learns the rest, and nothing gets lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.predictor.gnn import CARD, WEIGHTS, GnnModel, read_weights, shipped_weights
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.fit.examples import deployment_of, examples, merge_repeats
from llm_carbon_meter.training.fit.ship import quantiles, write
from llm_carbon_meter.training.fit.train import (
    Trained,
    fit_network,
    fit_physics,
    group_folds,
    log_joules,
    phase_joules,
    residuals,
)

MODELS = ("Llama-3.1-8B", "Qwen3-14B", "Qwen3-32B", "Llama-3.2-3B", "Qwen2.5-7b", "Llama-2-13b")


def row(model: str, batch: float, output: float = 300.0, joules: float = 1.0) -> Row:
    """A request on vLLM and an H100."""
    spec = built_in_model(model)
    return Row(
        source="synthetic",
        model=model,
        spec=spec,
        architecture=model,
        family="llama",
        task="",
        gpu="H100",
        num_gpus=1,
        tensor_parallel=1,
        expert_parallel=1,
        data_parallel=1,
        dtype="bfloat16",
        quantisation="none",
        engine="vllm",
        engine_version="0.11.1",
        concurrency=batch,
        prompt_tokens=500.0,
        prompt_tokens_assumed=False,
        output_tokens=output,
        energy_joules=joules,
        power_watts=None,
        output_tokens_per_s=None,
        time_per_output_token_s=None,
        noise=None,
        weight=1.0,
        flags=frozenset(),
    )


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Rows whose energy follows the shipped physics."""
    physics = shipped_weights().physics
    made = [
        row(model, batch, output)
        for model in MODELS
        for batch in (1.0, 4.0, 16.0, 64.0)
        for output in (50.0, 300.0, 900.0)
    ]
    joules = np.exp(log_joules(examples(made), physics, np.zeros((len(made), 2))))
    return [
        replace(one, energy_joules=float(energy)) for one, energy in zip(made, joules, strict=True)
    ]


def test_the_physics_is_found_again(rows: list[Row]) -> None:
    """Fitted on five models, it predicts the sixth."""
    data = examples(rows)
    seen = np.flatnonzero([one.model != MODELS[0] for one in rows])
    unseen = np.flatnonzero([one.model == MODELS[0] for one in rows])
    physics = fit_physics(data.of(seen))
    found = phase_joules(data.of(unseen), physics).sum(-1) / data.of(unseen).joules
    assert abs(np.log(found)).mean() < 0.06


def test_the_network_learns_what_is_left(rows: list[Row]) -> None:
    """Large batches cost 30 % more than the physics says: seen in other models, it is corrected."""
    dearer = [
        replace(one, energy_joules=one.energy_joules * (1.3 if one.concurrency > 10 else 1))
        for one in rows
    ]
    data, physics = examples(dearer), shipped_weights().physics
    seen = np.flatnonzero([one.model != MODELS[1] for one in rows])
    unseen = data.of(np.flatnonzero([one.model == MODELS[1] for one in rows]))
    network = fit_network(data.of(seen), phase_joules(data.of(seen), physics))
    trained = Trained(physics, network, 1.0)
    before = abs(np.log(trained.without_network(unseen) / unseen.joules)).mean()
    after = abs(np.log(trained.predict(unseen) / unseen.joules)).mean()
    assert after < 0.6 * before


def test_exchanged_phases_are_noticed(rows: list[Row]) -> None:
    """With prefill taken for decode, energy is far off."""
    data, physics = examples(rows), shipped_weights().physics
    exchanged = replace(data, terms=data.terms[:, ::-1])
    right = phase_joules(data, physics)
    np.testing.assert_allclose(right.sum(-1), data.joules, rtol=1e-9)
    wrong = phase_joules(exchanged, physics).sum(-1)
    assert abs(np.log(wrong / data.joules)).mean() > 0.01
    served = GnnModel().bind(deployment_of(rows[0]))
    each = [np.array([one]) for one in (rows[0].concurrency, 500.0, rows[0].output_tokens)]
    assert served.phases(*each).decode_joules > served.phases(*each).prefill_joules


def test_training_and_serving_say_the_same(rows: list[Row], tmp_path: Path) -> None:
    """What is written, read and served in numpy is what was trained in torch."""
    data = examples(rows)
    physics = fit_physics(data, steps=60)
    trained = Trained(physics, fit_network(data, phase_joules(data, physics)), 0.75)
    card = {
        "engines": sorted(physics.engines),
        "interval": {"low": -0.2, "high": 0.2, "wider_outside": 1.5},
        "gate": trained.gate,
        "largest": trained.network.largest,
        "gpus": sorted(physics.gpus),
    }
    write(trained, card, tmp_path)
    weights = read_weights((tmp_path / WEIGHTS).read_bytes(), (tmp_path / CARD).read_text())
    model = GnnModel(weights)
    assert abs(residuals(trained.network, data)).max() > 1e-3
    for one, expected in zip(rows[::7], trained.predict(data)[::7], strict=True):
        each = (np.array([v]) for v in (one.concurrency, one.prompt_tokens, one.output_tokens))
        energy = model.bind(deployment_of(one)).phases(*each)
        assert energy.prefill_joules[0] + energy.decode_joules[0] == pytest.approx(
            expected, rel=1e-4
        )


def test_no_architecture_is_on_both_sides() -> None:
    """Folds hold whole groups, each row in one of them."""
    groups = ["a", "a", "b", "c", "c", "c", "d", "e"]
    outside: list[int] = []
    for train, test in group_folds(groups, np.ones(len(groups)), 3):
        assert not {groups[place] for place in train} & {groups[place] for place in test}
        assert sorted([*train, *test]) == list(range(len(groups)))
        outside += test.tolist()
    assert sorted(outside) == list(range(len(groups)))


def test_repeated_runs_are_one_example() -> None:
    """Their mean, with all their weight."""
    runs = [replace(row("Llama-3.1-8B", 4.0, joules=joules), weight=0.5) for joules in (10.0, 14.0)]
    (merged,) = merge_repeats(runs)
    assert (merged.energy_joules, merged.weight) == (12.0, 1.0)


def test_weighted_quantiles() -> None:
    """A heavy value is many values."""
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 8.0])
    assert quantiles(values, weights) == (1.0, 2.0)
