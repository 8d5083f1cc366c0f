"""Training: the physics is found again, the network learns the rest, and nothing gets lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_carbon_meter.predictor.gnn import CARD, WEIGHTS, GnnModel, read_weights, shipped_weights
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.fit.examples import deployment_of, examples, merge_repeats
from llm_carbon_meter.training.fit.ship import deviation, multiple, write
from llm_carbon_meter.training.fit.train import (
    Trained,
    corrections,
    fit_network,
    fit_physics,
    group_folds,
    joules,
    phases,
    prior_factors,
    prior_variance,
)
from tests.support.made.rows import made_row

MODELS = ("Llama-3.1-8B", "Qwen3-14B", "Qwen3-32B", "Llama-3.2-3B", "Qwen2.5-7b", "Llama-2-13b")


def row(model: str, batch: float, output: float = 300.0, joules: float = 1.0) -> Row:
    """A request on vLLM and an H100."""
    return made_row(
        model, concurrency=batch, prompt_tokens=500.0, output_tokens=output, energy_joules=joules
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
    data = examples(made)
    energies = joules(data, physics, prior_factors(data, physics)).tolist()
    return [replace(row, energy_joules=energy) for row, energy in zip(made, energies, strict=True)]


def test_the_physics_is_found_again(rows: list[Row]) -> None:
    """Fitted on five models, it predicts the sixth."""
    data = examples(rows)
    seen = np.flatnonzero([one.model != MODELS[0] for one in rows])
    unseen = np.flatnonzero([one.model == MODELS[0] for one in rows])
    physics = fit_physics(data.of(seen))
    rest = data.of(unseen)
    predicted = joules(rest, physics, prior_factors(rest, physics))
    assert abs(np.log(predicted / rest.joules)).mean() < 0.06


def test_the_network_learns_what_is_left(rows: list[Row]) -> None:
    """Large models launch slower than the law says: seen in others, it is corrected."""
    large = {"Qwen3-14B", "Qwen3-32B", "Llama-2-13b"}
    dearer = [
        replace(row, energy_joules=row.energy_joules * (1.3 if row.model in large else 1.0))
        for row in rows
    ]
    data, physics = examples(dearer), shipped_weights().physics
    seen = np.flatnonzero([row.model != MODELS[1] for row in rows])
    unseen = data.of(np.flatnonzero([row.model == MODELS[1] for row in rows]))
    network = fit_network(data.of(seen), physics)
    errors = [
        abs(np.log(Trained(physics, network, gate).predict(unseen) / unseen.joules)).mean()
        for gate in (0.0, 1.0)
    ]
    assert errors[1] < 0.65 * errors[0]


def test_exchanged_phases_are_noticed(rows: list[Row]) -> None:
    """With prefill taken for decode, time is far off."""
    data, physics = examples(rows), shipped_weights().physics
    factors = prior_factors(data, physics)
    right = phases(data, physics, factors)
    exchanged = phases(replace(data, terms=data.terms[:, ::-1]), physics, factors)
    np.testing.assert_allclose(exchanged.seconds[:, ::-1], right.seconds)
    served = GnnModel().bind(deployment_of(rows[0]))
    asked = [np.array([number]) for number in (rows[0].concurrency, 500.0, rows[0].output_tokens)]
    assert served.phases(*asked).decode_joules > served.phases(*asked).prefill_joules
    assert (right.boards[:, 1] > right.boards[:, 0]).mean() > 0.6


def test_training_and_serving_say_the_same(rows: list[Row], tmp_path: Path) -> None:
    """What is written, read and served in numpy is what was trained in torch."""
    data = examples(rows)
    physics = fit_physics(data, steps=60)
    trained = Trained(physics, fit_network(data, physics), 0.75)
    card = {
        "engines": sorted(physics.engines),
        "gpus": sorted(physics.gpus),
        "kernels": sorted(physics.kernels),
        "formats": sorted({row.spec.number_format for row in rows}),
        "widths": {"measured": 1.0, "engine": 1.5, "gpu": 2.0},
        "gates": {"measured": trained.gate, "elsewhere": 0.0},
    }
    write(trained, card, tmp_path)
    weights = read_weights((tmp_path / WEIGHTS).read_bytes(), (tmp_path / CARD).read_text())
    model = GnnModel(weights)
    assert abs(corrections(trained.network, data)).max() > 1e-3
    for row, expected in zip(rows[::7], trained.predict(data)[::7], strict=True):
        asked = (np.array([v]) for v in (row.concurrency, row.prompt_tokens, row.output_tokens))
        energy = model.bind(deployment_of(row)).phases(*asked)
        assert energy.prefill_joules[0] + energy.decode_joules[0] == pytest.approx(
            expected, rel=1e-4
        )


def test_the_spread_of_factors_is_that_of_energies(rows: list[Row]) -> None:
    """Drawn from the prior, a row's energy varies as the linearised law says."""
    data, physics = examples(rows[:4]), shipped_weights().physics
    middle = prior_factors(data, physics)
    prior = physics.prior("vllm", "0.11.1", "H100")
    drawn = np.random.default_rng(0).multivariate_normal(prior.mean, prior.covariance, 400)
    logs = [np.log(joules(data, physics, np.tile(one, (4, 1)))) for one in drawn]
    linear = np.sqrt(prior_variance(data, physics, middle))
    np.testing.assert_allclose(np.std(logs, axis=0), linear, rtol=0.15)


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


def test_the_multiple_makes_intervals_hold_their_share() -> None:
    """Residuals twice as wide as the prior says ask for twice the width."""
    rng, variance = np.random.default_rng(0), np.full(4000, 0.04)
    residual = rng.normal(0, 0.4, 4000)
    wider = multiple(residual, variance, np.ones(4000))
    assert wider == pytest.approx(2.0, rel=0.06)
    inside = np.abs(residual) <= 1.2816 * deviation(variance, wider)
    assert inside.mean() == pytest.approx(0.8, abs=0.01)
    assert multiple(rng.normal(0, 0.01, 4000), variance, np.ones(4000)) < 0.01
