"""Focused sampling on GPUs that answer at once: what it asks for, learns from, and judges on."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_carbon_meter.campaign import focus as focus_module
from llm_carbon_meter.campaign.focus import focus
from llm_carbon_meter.campaign.job import PHASES, Job
from llm_carbon_meter.campaign.plan import Plan, make_plan
from llm_carbon_meter.campaign.rows import Measurements, Status
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.campaigns import read_campaigns
from llm_carbon_meter.training.data.rows import architecture_group

SEARCH_S = 25.0
GPU = "NVIDIA H100 80GB HBM3"


def plan(gpus: str) -> Plan:
    """Small models under a given number of GPUs."""
    return make_plan(
        "transformers",
        ["Qwen2-0.5b", "Bloom-560m", "Llama-3.1-8B"],
        dtype="bfloat16",
        gpus=gpus,
        least_s=None,
        repetitions=1,
        tiny=False,
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Job]]:
    """The jobs of every round; they cost a joule a token and layer."""
    rounds: list[Sequence[Job]] = []

    def measure(jobs: Sequence[Job], file: Measurements, _end_s: float) -> None:
        rounds.append(jobs)
        for job in jobs:
            for each in job.occasions:
                output = each.load.output_tokens if each.phase == PHASES[1] else 1
                layers = job.config.get("num_hidden_layers") or job.config["n_layer"]
                joules = layers * (each.load.prompt_tokens / 50 + output / each.load.batch)
                found = {"status": Status.OK, "joules_per_request": joules, "seconds": 5}
                what = {**each.load._asdict(), "phase": each.phase, "batches": 1}
                file.append({**job.identity, **what, **found})

    monkeypatch.setattr(focus_module, "measure", measure)
    return rounds


@pytest.mark.slow
def test_errors_decide_and_the_locked_groups_come_last(
    tmp_path: Path, asked: list[Sequence[Job]], capsys: pytest.CaptureFixture[str]
) -> None:
    """No group of architecture that is judged was measured while there was something to learn."""
    file = Measurements(tmp_path / "m.csv")
    focus(plan("0"), file, GPU, time.monotonic() + SEARCH_S / 0.8)
    file.close()
    printed = capsys.readouterr().out.splitlines()
    assert len(asked) >= 3
    assert len(printed) == len(asked)
    assert "trained on, 0 of 20 drawn near a large error" in printed[0]
    assert not printed[-2].split("trained on, ")[1].startswith("0 ")
    assert "of the test set, locked away before: MAPE" in printed[-1]
    whole = [row for row in read_campaigns([file.path]).rows if row.task == PHASES[1]]
    last = sum(len(job.occasions) for job in asked[-1]) // 2
    learnt, judged = whole[:-last], whole[-last:]
    assert not {architecture_group(row.spec) for row in learnt} & {
        architecture_group(row.spec) for row in judged
    }


def test_modelled_joules_teach_nothing(tmp_path: Path) -> None:
    """Said before anything is measured, with where to try it."""
    file = Measurements(tmp_path / "m.csv")
    with pytest.raises(MeterError, match=r"there is no GPU here; .*examples/focused_sampling"):
        focus(plan(""), file, "H100", time.monotonic() + 60)
    file.close()
