"""What a campaign draws: models of the paper and neighbours that run, requests of the traces."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

from llm_carbon_meter.physics.model_list import built_in_config
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.training.data.configurations import PAPER_RADIUS, Configuration, lock, within
from llm_carbon_meter.training.data.physics_features import column
from llm_carbon_meter.training.data.priors import (
    DTYPES,
    PAPER_MODELS,
    TracePrior,
    fits,
    in_context,
    request,
    resized,
    sizes,
)
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.study.baselines.baseline import Predict
from llm_carbon_meter.training.study.sampling import Measured, Plan, rounds
from tests.support.made_rows import made_row

PRIOR = TracePrior(("H100", "A100", "L4", "T4"), "vllm", "0.11.1")


@pytest.fixture(scope="module")
def drawn() -> list[Configuration]:
    """Some hundreds of configurations."""
    return PRIOR.draw(400, (), np.random.default_rng(0))


def test_draws_are_distinct_and_repeatable(drawn: list[Configuration]) -> None:
    """As many as asked for; the same seed gives the same; what is taken does not come again."""
    assert len(set(drawn)) == len(drawn) == 400
    assert PRIOR.draw(400, (), np.random.default_rng(0)) == drawn
    again = PRIOR.draw(50, drawn, np.random.default_rng(0))
    assert not set(again) & set(drawn)


def test_every_architecture_and_gpu_of_the_paper_is_drawn(drawn: list[Configuration]) -> None:
    """17 models in all number formats on all GPUs, half of them with other sizes."""
    assert {one.model.name for one in drawn} == set(PAPER_MODELS)
    assert len(PAPER_MODELS) == 17
    assert {one.gpu for one in drawn} == {"H100", "A100", "L4", "T4"}
    assert {one.dtype for one in drawn} == set(DTYPES)
    assert 0.35 < np.mean([bool(one.changes) for one in drawn]) < 0.6


def test_what_is_drawn_can_be_run(drawn: list[Configuration]) -> None:
    """The weights fit, the heads divide, the request fits the context, and config.json says it."""
    for one in drawn:
        assert fits(one.model, one.gpu, one.num_gpus)
        assert in_context(one)
        assert 1 <= one.num_gpus <= 4
        assert model_spec(one.config, one.model.name) == one.model


def test_a_large_model_is_not_drawn_for_a_small_gpu() -> None:
    """A 70B model in 16 bits needs more than one H100, and more than four T4."""
    llama = model_spec(built_in_config("Llama-3.1-70B"))
    assert not fits(llama, "H100", 1)
    assert fits(llama, "H100", 4)
    assert not fits(llama, "T4", 4)
    assert not fits(llama, "H100", 3)
    none = TracePrior(("T4",), "vllm", "0.11.1", models=("Llama-3.1-70B",), dtypes=("",))
    assert none.draw(3, (), np.random.default_rng(0)) == []


def test_neighbours_are_within_c_and_can_be_run(drawn: list[Configuration]) -> None:
    """Of configurations as they are and of changed ones; never the centre itself."""
    rng, varied = np.random.default_rng(1), set()
    for centre in drawn[:60]:
        near = PRIOR.around(centre, 5, (), rng)
        assert centre not in near
        assert near
        for one in near:
            assert within(one, centre, PAPER_RADIUS)
            assert fits(one.model, one.gpu, one.num_gpus)
            assert model_spec(one.config, one.model.name) == one.model
            varied |= {key for key, _ in set(one.changes) ^ set(centre.changes)}
    assert {"num_hidden_layers", "n_layer", "n_head", "hidden_size", "intermediate_size"} <= varied


def test_nothing_near_a_locked_test_set_is_drawn(drawn: list[Configuration]) -> None:
    """Neither from the priors nor around what is at its edge."""
    rng = np.random.default_rng(2)
    locked = lock(drawn, 0.2, PAPER_RADIUS, rng)
    guarded = replace(PRIOR, admits=locked.admits)
    outside = next(one for one in drawn if locked.admits(one))
    for one in [*guarded.draw(100, (), rng), *guarded.around(outside, 20, (), rng)]:
        assert one.group not in locked.groups
        assert not any(within(one, test, PAPER_RADIUS) for test in locked.configurations)


def test_requests_are_those_of_the_traces() -> None:
    """Conversations and code as one: prompts of a thousand tokens, answers of tens."""
    rng = np.random.default_rng(0)
    prompts, outputs = zip(*(request(rng) for _ in range(4000)), strict=True)
    assert 1000 < median(prompts) < 1600
    assert 13 < median(outputs) < 129
    assert min(prompts) >= 1
    assert min(outputs) >= 1


def test_hidden_sizes_follow_the_heads_unless_the_model_says_how_wide_they_are() -> None:
    """Bloom's heads keep their width; Gemma's hidden size is a size of its own."""
    bloom, gemma = built_in_config("Bloom-560m"), built_in_config("Gemma-2b")
    assert [size.key for size in sizes(bloom)] == ["n_layer", "n_head"]
    assert "hidden_size" in [size.key for size in sizes(gemma)]
    more = dict(resized(bloom, lambda size: size.value + size.step))
    assert more == {"n_layer": 25, "n_head": 17, "hidden_size": 17 * 64}
    assert resized(bloom, lambda size: size.value) == ()


def test_the_loop_runs_on_the_priors(drawn: list[Configuration]) -> None:
    """With anything that measures: around errors, never at what is locked away."""
    locked = lock(drawn, 0.2, PAPER_RADIUS, np.random.default_rng(3))

    def measure(wanted: Sequence[Configuration]) -> Measured:
        return {one: made_row(spec=one.model, energy_joules=one.output_tokens) for one in wanted}

    def fit(rows: Sequence[Row]) -> Predict:
        mean = column(rows, "energy_joules").mean()
        return lambda asked: np.full(len(asked), mean)

    plan = Plan(first=20, per_round=20, per_point=5, budget=60)
    *_, last = rounds(replace(PRIOR, admits=locked.admits), measure, fit, plan)
    assert len(last.taken) == 60
    assert last.num_near >= 30
    assert all(locked.admits(one) for one in last.taken)
