"""A campaign's file as rows to learn from."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter import cli
from llm_carbon_meter.campaign.rows import Measurements
from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.training.data.campaigns import read_campaigns
from llm_carbon_meter.training.data.files import Refused

REPETITION: dict[str, Any] = {
    "model": "Llama-3.1-8B",
    "changes": "",
    "dtype": "bfloat16",
    "quantisation": "none",
    "tensor_parallel": 1,
    "batch": 4,
    "prompt_tokens": 100,
    "output_tokens": 50,
    "phase": "prefill+decode",
    "gpu": "NVIDIA H100 80GB HBM3",
    "engine": "transformers",
    "engine_version": "5.19.0",
    "status": "ok",
    "source": "measured",
    "joules": 800.0,
    "seconds": 4.0,
    "batches": 2,
    "joules_per_request": 100.0,
}


def written(folder: Path, *changes: dict[str, Any]) -> Path:
    """A campaign's file of repetitions that differ."""
    file = Measurements(folder / "m.csv")
    for each in changes:
        file.append({**REPETITION, **each})
    file.close()
    return file.path


def test_repetitions_become_one_row_with_their_median_and_noise(tmp_path: Path) -> None:
    """Power and speed are those of the batch."""
    joules = (90.0, 100.0, 140.0)
    path = written(tmp_path, *({"joules_per_request": each} for each in joules))
    (row,) = read_campaigns([path]).rows
    assert (row.energy_joules, row.gpu, row.engine) == (100.0, "H100", "transformers")
    assert row.power_watts == pytest.approx(4 * 100.0 / 2.0)
    assert row.output_tokens_per_s == pytest.approx(4 * 50 / 2.0)
    assert row.noise == pytest.approx(0.240, abs=0.001)
    assert (row.concurrency, row.prompt_tokens, row.output_tokens) == (4.0, 100.0, 50.0)


def test_prefill_alone_is_a_request_of_one_token(tmp_path: Path) -> None:
    """Whatever the whole answer's length was."""
    path = written(tmp_path, {}, {"phase": "prefill", "joules_per_request": 10.0})
    whole, prefill = read_campaigns([path]).rows
    assert (whole.output_tokens, prefill.output_tokens) == (50.0, 1.0)
    assert prefill.energy_joules == 10.0


def test_a_neighbour_of_a_model_has_its_own_shape(tmp_path: Path) -> None:
    """Fields that were changed are those of the row's model."""
    path = written(tmp_path, {"changes": '{"num_hidden_layers": 30}'})
    (row,) = read_campaigns([path]).rows
    assert (row.spec.num_layers, row.spec.hidden_size) == (30, 4096)


def test_what_teaches_nothing_is_counted_with_its_reason(tmp_path: Path) -> None:
    """Modelled and simulated joules never teach; nor do runs that went wrong."""
    path = written(
        tmp_path,
        {},
        {"source": "modelled"},
        {"source": "simulated"},
        {"status": "throttled"},
        {"status": "out_of_memory", "joules": "", "seconds": ""},
        {"model": "Nobody-7b"},
    )
    table = read_campaigns([path])
    assert len(table.rows) == 1
    assert table.refused == [
        Refused("campaign", reason, 1)
        for reason in (
            "modelled, not measured",
            "simulated, not measured",
            "status throttled",
            "status out_of_memory",
            "model 'Nobody-7b' is not in data/models.json; nearest is OLMo-3-7B; "
            "give the path of its config.json",
        )
    ]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ""])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    """With what it lacks, and what to give."""
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"has no column model; give the file that"):
        read_campaigns([path])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before anything is fitted."""
    with pytest.raises(ConfigError, match=r"m\.csv: it cannot be read"):
        read_campaigns([tmp_path / "m.csv"])


@pytest.mark.slow
def test_training_takes_a_campaign_in(tmp_path: Path, public_data: Path) -> None:
    """Its engine version is known to the weights, and its checksum is on their card."""
    loads = [{"batch": 2**n, "joules_per_request": 400.0 / 2**n} for n in range(4)]
    path = written(tmp_path, *loads)
    output = tmp_path / "weights"
    options = ("--data", str(public_data), "--output", str(output), "--campaign", str(path))
    assert cli.main(["train", *options]) == 0
    card = json.loads((output / "card.json").read_text())
    assert "hf_transformers 5.19.0" in card["engines"]
    assert "m.csv" in card["data"]
