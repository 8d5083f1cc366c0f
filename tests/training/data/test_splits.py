"""Splits keep apart what they promise, and a leak is caught."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.dataset import read_table
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.data.splits import (
    SPLITS,
    Split,
    architecture_folds,
    assert_no_leak,
    batch_down,
    batch_up,
    configuration,
    leave_architecture_out,
    leave_engine_out,
    leave_family_out,
    leave_gpu_out,
    leave_source_out,
    random_leaky,
)
from tests.support.made.rows import grid, made_row


def rows() -> list[Row]:
    """Two data sets, of which one has another engine and a GPU of its own; and repeated runs."""
    old = grid(gpus=("A100", "V100"), source="old", engine="hf", engine_version="4")
    return [*grid(), *grid()[:5], *old]


@pytest.mark.parametrize("splits", SPLITS.values(), ids=SPLITS)
def test_no_split_leaks(splits: Callable[[list[Row]], list[Split]]) -> None:
    """Nothing promised apart is shared, no row is on both sides, and both sides have rows."""
    made = rows()
    found = splits(made)
    assert found
    for split in found:
        assert_no_leak(split, made)
        assert len(split.train)
        assert len(split.test)
        assert not set(split.train) & set(split.test)


@pytest.mark.parametrize("splits", SPLITS.values(), ids=SPLITS)
def test_no_split_of_the_public_data_leaks(
    splits: Callable[[list[Row]], list[Split]], public_data: Path
) -> None:
    """The same of the real table."""
    table = list(read_table(public_data).for_training())
    for split in splits(table):
        assert_no_leak(split, table)


@pytest.mark.parametrize(
    ("apart", "train", "test", "what"),
    [
        (("architecture",), made_row(), made_row(concurrency=9.0), "architecture"),
        (("family",), made_row(), made_row("Llama-3.1-70B-Instruct"), "family"),
        (("gpu",), made_row(), made_row("Qwen3-8B"), "gpu"),
        (("engine",), made_row(), made_row("Qwen3-8B"), "engine"),
        ((), made_row(energy_joules=1.0), made_row(energy_joules=2.0), "configuration"),
    ],
)
def test_a_leak_is_caught(apart: tuple[str, ...], train: Row, test: Row, what: str) -> None:
    """Whatever is on both sides against the promise, and repeated runs always."""
    leaking = Split("leaking", "all", np.array([0]), np.array([1]), apart, "")
    with pytest.raises(MeterError, match=f"1 values of {what} are on both sides"):
        assert_no_leak(leaking, [train, test])


def test_random_folds_keep_repeated_runs_together() -> None:
    """Every row is held out once, and the seed decides where."""
    made = rows()
    found = random_leaky(made, seed=3)
    assert sorted(np.concatenate([split.test for split in found])) == list(range(len(made)))
    assert [list(split.test) for split in random_leaky(made, seed=3)] == [
        list(split.test) for split in found
    ]
    assert len({configuration(row) for row in made}) < len(made)


def test_architecture_folds_are_balanced_by_weight() -> None:
    """One group of weight 6 against three of weight 2; the order of the rows does not matter."""
    models = ("Llama-3.1-8B-Instruct", "Qwen3-8B", "Llama-3.1-70B-Instruct", "Qwen3-30B-A3B")
    made = [made_row(models[0], weight=6.0), *(made_row(name, weight=2.0) for name in models[1:])]
    weights = [sum(made[n].weight for n in split.test) for split in architecture_folds(made, 2)]
    assert weights == [6, 6]
    turned = architecture_folds(made[::-1], 2)
    assert [{made[::-1][n].model for n in split.test} for split in turned] == [
        {models[0]},
        set(models[1:]),
    ]


def test_an_architecture_is_judged_on_chosen_rows_and_left_out_whole() -> None:
    """Rows of the group that are not judged are not trained on either."""
    made = rows()
    (split, *others) = leave_architecture_out(made, only=lambda row: row.source == "made")
    assert len(others) == 3
    assert {made[n].source for n in split.test} == {"made"}
    assert {made[n].source for n in split.train} == {"made", "old"}
    assert split.held_out not in {made[n].architecture for n in split.train}


def test_a_family_takes_its_twins_with_it() -> None:
    """Without Llama there is no Mistral of the same shape, but another Qwen."""
    twin = replace(made_row(), model="Mistral-7B", family="mistral")
    made = [made_row(), twin, made_row("Qwen3-8B")]
    (llama,) = (split for split in leave_family_out(made) if split.held_out == "llama")
    assert [made[n].family for n in llama.train] == ["qwen3"]


def test_confounded_splits_say_so() -> None:
    """An engine that alone ran on a GPU, and a GPU that alone ran under an engine."""
    made = rows()
    by_engine = {split.held_out: split.confounded for split in leave_engine_out(made)}
    assert by_engine == {"hf_transformers 4": "gpu V100", "vllm 0.11.1": "gpu H100"}
    by_gpu = {split.held_out: split.confounded for split in leave_gpu_out(made)}
    assert by_gpu == {"A100": "", "V100": "", "H100": ""}
    (new, *_) = leave_gpu_out([*made, made_row(gpu="A40", engine="other", engine_version="")])
    assert (new.held_out, new.confounded) == ("A100", "")
    by_source = {split.held_out: split.confounded for split in leave_source_out(made)}
    assert by_source == {
        "made": "gpu H100; engine vllm 0.11.1",
        "old": "gpu V100; engine hf_transformers 4",
    }


def test_a_gpu_with_an_engine_of_its_own_is_confounded() -> None:
    """Its split also holds the engine out."""
    made = [*rows(), made_row(gpu="A40", engine="other", engine_version="")]
    (only,) = (split for split in leave_gpu_out(made) if split.held_out == "A40")
    assert only.confounded == "engine other"


@pytest.mark.parametrize(
    ("splits", "expected"), [(batch_up, {32.0, 64.0}), (batch_down, {1.0, 2.0})]
)
def test_a_third_of_the_concurrencies_is_held_out(
    splits: Callable[[list[Row]], list[Split]], expected: set[float]
) -> None:
    """Of every deployment its own third; one with a single concurrency is only trained on."""
    made = grid(gpus=("H100",), concurrencies=(1.0, 2.0, 4.0, 8.0, 32.0, 64.0))
    alone = made_row(gpu="A100", concurrency=500.0)
    (split,) = splits([*made, alone])
    assert {made[n].concurrency for n in split.test} == expected
    assert len(made) in split.train


def test_other_numbers_of_gpus_and_formats_are_other_configurations() -> None:
    """Tensor parallelism over 2, 4 and 8 GPUs is not one measurement repeated, nor is int8."""
    rows = [
        made_row(),
        made_row(num_gpus=2),
        made_row(quantisation="int8"),
        made_row(gpu="A100"),
        made_row(),
    ]
    assert len(set(map(configuration, rows))) == 4
    assert configuration(rows[0]) == configuration(rows[-1])
