"""What ``pytest -m gpu`` does, without a GPU: its sums, its file, and its loads on the CPU."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.campaign.measuring import repeated
from llm_carbon_meter.campaign.sensors_file import row, write
from llm_carbon_meter.campaign.subsets import StepMember, exact_shares, modelled_shares, subsets
from llm_carbon_meter.campaign.torch_work import (
    Decoder,
    SteadyLoad,
    bursts,
    decode_like,
    prefill_like,
)
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml

TINY = dataclasses.replace(
    built_in_model("Llama-3.1-8B"),
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=64,
)


@given(st.floats(0.1, 100), st.lists(st.floats(0, 100), min_size=2, max_size=4))
def test_fixed_and_additive_costs_have_the_known_shapley_value(
    fixed: float, own: list[float]
) -> None:
    """An equal part of what is fixed, and all of one's own."""
    joules = {members: fixed + sum(own[m] for m in members) for members in subsets(len(own))}
    whole = joules[tuple(range(len(own)))]
    expected = [(fixed / len(own) + mine) / whole for mine in own]
    assert exact_shares(joules, len(own)) == pytest.approx(expected)


@given(st.lists(st.floats(0.1, 100), min_size=7, max_size=7))
def test_exact_shares_of_any_game_add_up(values: list[float]) -> None:
    """Whatever the subsets cost."""
    joules = dict(zip(subsets(3), values, strict=True))
    assert sum(exact_shares(joules, 3)) == pytest.approx(1, rel=1e-6, abs=1e-6)


def test_every_subset_once() -> None:
    """2^n - 1, the whole last."""
    assert list(subsets(3)) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


def test_modelled_shares_are_the_meters() -> None:
    """They add up, and a longer context costs more."""
    model = CostModel(gpu_spec("H100"), step_costs(built_in_model("Llama-3.1-8B")))
    pair = [StepMember(1, 500), StepMember(1, 16000)]
    found = modelled_shares(pair, 0.01, model)
    assert sum(found) == pytest.approx(1)
    assert found[0] < found[1]
    assert modelled_shares([StepMember(1, 500), StepMember(1, 16000)], 0.01, model, "equal") == [
        0.5,
        0.5,
    ]


def test_a_row_has_the_medians() -> None:
    """Period of the loads, lag of the onsets, never below 0; the rest stands beside."""
    loads = {
        name: {"period_s": period_s}
        for name, period_s in zip("abc", (0.1, 0.02, None), strict=True)
    }
    found = {"driver": "580", "loads": loads, "onset_lags_s": [-0.01, -0.02, 0.5]}
    summary = row(found)
    assert summary["period_s"] == pytest.approx(0.06)
    assert summary["lag_s"] == 0.0
    assert summary["driver"] == "580"


def test_findings_keep_the_rows_of_other_gpus(tmp_path: Path) -> None:
    """A run that was cut short writes nothing; the file is that of the package."""
    path = tmp_path / "sensors.json"
    whole = {"loads": {"idle": {"period_s": 0.02}}, "onset_lags_s": [0.015]}
    write(path, "cut short", {"onset_lags_s": [0.1]})
    assert not path.exists()
    write(path, "NVIDIA A", whole)
    write(path, "NVIDIA B", whole)
    gpus = json.loads(path.read_text())["gpus"]
    assert list(gpus) == ["NVIDIA A", "NVIDIA B"]
    assert (gpus["NVIDIA A"]["period_s"], gpus["NVIDIA A"]["lag_s"]) == (0.02, 0.015)


@pytest.mark.parametrize("members", [(0,), (0, 1), (0, 1, 2)])
def test_a_step_gives_the_logits_of_each_request(members: tuple[int, ...]) -> None:
    """Prefill and decode in one batch."""
    decoder = Decoder(TINY, [StepMember(5, 0), StepMember(1, 3), StepMember(1, 9)], "cpu")
    assert decoder.step(members).shape == (len(members), 64)


def test_the_measurement_runs_end_to_end_on_the_stub(stub: Any) -> None:
    """At constant power the joules of a repetition are its time x the power."""
    stub.steady(200)
    meter = open_nvml(["0"])
    decoder = Decoder(TINY, [StepMember(1, 3), StepMember(1, 9)], "cpu")
    one = repeated(meter, lambda: decoder.step((0, 1)), "cpu", 0.2)
    meter.close()
    assert one.joules == pytest.approx(200 * one.seconds, rel=0.05)


def test_loads_run_until_they_are_stopped() -> None:
    """Each kind of work repeats in its thread."""
    for work in (prefill_like("cpu", 8), decode_like("cpu", 8)):
        with SteadyLoad(bursts(work, "cpu", 0.002), "cpu") as load:
            while load.count < 8:
                pass
