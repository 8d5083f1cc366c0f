"""One factor per deployment, learnt from measured joules alone, robust, bounded and kept."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.formats.kept_state import Identity, load, save
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.predictor.calibration import (
    MAX_LOG_FACTOR,
    MAX_LOG_STEP,
    MEMORY,
    MIN_REQUESTS,
    Calibration,
    State,
    error_ratios,
    huber_centre,
    identity,
    learnable_log_ratio,
)
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.records import (
    AccountJoules,
    EnergyEstimate,
    MeterError,
    Outcome,
    Quality,
    RequestRecord,
    Source,
    Status,
)
from tests.support.made.energies import energy_of
from tests.support.made.records import ESTIMATE, RECORD

DEPLOYMENT = Deployment(built_in_model("Llama-3.1-8B"), gpu_spec("H100"), 1, "vllm", "0.32.0")
WHO = identity(DEPLOYMENT, "gnn")


def taught(log_ratios: list[float]) -> Calibration:
    """A calibration that has seen some requests."""
    calibration = Calibration()
    for log_ratio in log_ratios:
        calibration.observe(log_ratio)
    return calibration


@pytest.mark.parametrize("bias", [0.75, 0.9, 1.0, 1.2, 1.5, 2.0])
def test_twenty_requests_of_an_unseen_version_bring_the_error_below_eight_percent(
    bias: float,
) -> None:
    """Log-normal noise of 6 % on a constant bias; one wild request in ten; mean of 40 starts."""
    errors = []
    for seed in range(40):
        noise = np.random.default_rng(seed)
        ratios = math.log(bias) + 0.06 * noise.standard_normal(20)
        ratios[[3, 11]] += noise.choice([-1.0, 1.0], 2)
        factor = taught(ratios.tolist()).factor
        measured = bias * np.exp(0.06 * noise.standard_normal(500))
        errors.append(float(np.abs(factor / measured - 1).mean()))
    assert np.mean(errors) <= 0.08
    assert max(errors) <= 0.12


def test_a_few_requests_teach_nothing() -> None:
    """Below the minimum the factor stays exactly 1."""
    assert taught([0.5] * (MIN_REQUESTS - 1)).factor == 1.0
    assert taught([0.5] * MIN_REQUESTS).factor > 1.0


def test_wild_requests_do_not_move_it() -> None:
    """One in five is off by a factor of a hundred; the others decide."""
    ratios = ([0.2] * 4 + [4.6]) * 30
    noise = np.random.default_rng(0).normal(0, 0.05, len(ratios))
    assert taught((ratios + noise).tolist()).factor == pytest.approx(math.exp(0.2), rel=0.04)


def test_the_centre_of_clean_ratios_is_their_mean_with_the_prior() -> None:
    """Within Huber's bound every ratio counts alike, and the prior as one at 0."""
    ratios = [-0.03, -0.02, 0.0, 0.02, 0.03]
    assert huber_centre([0.01 + ratio for ratio in ratios]) == pytest.approx(0.05 / 6, abs=1e-6)
    assert huber_centre([0.3]) == pytest.approx(0.3, abs=0.03)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=400))
def test_the_factor_and_its_steps_are_bounded(log_ratios: list[float]) -> None:
    """From a third to three, whatever comes, and some 10 % at a time."""
    calibration, before = Calibration(), 0.0
    for log_ratio in log_ratios:
        calibration.observe(log_ratio)
        now = math.log(calibration.factor)
        assert abs(now) <= MAX_LOG_FACTOR + 1e-12
        assert abs(now - before) <= MAX_LOG_STEP + 1e-12
        before = now


def test_old_requests_are_forgotten() -> None:
    """After a change that no version names, the new level is reached."""
    calibration = taught([0.4] * 500)
    assert calibration.factor == pytest.approx(math.exp(0.4), rel=0.02)
    for _ in range(MEMORY + 32):
        calibration.observe(-0.2)
    assert calibration.factor == pytest.approx(math.exp(-0.2), rel=0.02)


# What teaches

TOLD = EnergyEstimate("gnn", 10.0, 0.0, 10.0, 10.0, 1.0, False, 0.0)
FINISHED = replace(
    RECORD,
    energy=energy_of("a", joules={"prefill": 12.0, "decode": 0.0, "idle": 1.0}),
    conditional=TOLD,
)


def finished(**changes: Any) -> RequestRecord:
    """The same with what differs, of the record or of its energy."""
    if "conditional" in changes:
        return replace(FINISHED, **changes)
    assert FINISHED.energy is not None
    return replace(FINISHED, energy=replace(FINISHED.energy, **changes))


def test_a_measured_finished_request_teaches() -> None:
    """The logarithm of measured over estimated, without idle joules that were spread."""
    assert learnable_log_ratio(FINISHED) == pytest.approx(math.log(1.2))
    assert learnable_log_ratio(finished(quality=Quality.POWER)) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"source": Source.MODELLED, "quality": Quality.MODELLED},
        {"source": Source.MODELLED},
        {"status": Status.PROVISIONAL},
        {"outcome": Outcome.ABORTED},
        {"outcome": Outcome.STOPPED},
        {"outcome": Outcome.FAILED},
        *(
            {"quality": quality}
            for quality in (Quality.CONTENDED, Quality.MIG_PARENT, Quality.RESET, Quality.OUTSIDE)
        ),
        {"conditional": None},
        {"conditional": replace(TOLD, facility=True)},
        {"conditional": replace(TOLD, prefill_joules=0.0)},
        {"accounts": AccountJoules(idle=1.0)},
    ],
)
def test_nothing_else_teaches(change: Mapping[str, Any]) -> None:
    """Modelled joules above all; and what is doubtful, unfinished, or of a whole data centre."""
    assert learnable_log_ratio(finished(**change)) is None


def test_a_record_without_energy_teaches_nothing() -> None:
    """Look-ups of requests in flight are records too."""
    assert learnable_log_ratio(replace(FINISHED, energy=None)) is None


# What is kept


def load_state(file: Path, holds_for: Identity) -> State | None:
    """What a file keeps of a correction, of our version."""
    return load(file, State, holds_for, pytest.fail)


def test_a_correction_survives_a_restart(tmp_path: Path) -> None:
    """The same deployment goes on with the same factor; the file is written in one piece."""
    file = tmp_path / "calibration.json"
    before = taught([0.3] * 30)
    save(file, before.state, WHO)
    state = load_state(file, WHO)
    assert state is not None
    assert Calibration(state).factor == before.factor
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "other",
    [
        identity(DEPLOYMENT, "other"),
        identity(replace(DEPLOYMENT, engine_version="0.33.0"), "gnn"),
        identity(replace(DEPLOYMENT, gpu=gpu_spec("A100")), "gnn"),
        identity(replace(DEPLOYMENT, num_gpus=2), "gnn"),
        identity(replace(DEPLOYMENT, model=built_in_model("Llama-3-8B")), "gnn"),
    ],
)
def test_another_deployment_begins_anew(tmp_path: Path, other: Mapping[str, Any]) -> None:
    """Engine version, GPU, their number, model and method each end a correction."""
    file = tmp_path / "calibration.json"
    save(file, State(0.3, (0.3,) * 30), WHO)
    assert load_state(file, other) is None


def test_no_file_is_no_error(tmp_path: Path) -> None:
    """The first start has none."""
    assert load_state(tmp_path / "none.json", WHO) is None


def kept_text(**changes: Any) -> str:
    """A file as it is written, but for some fields."""
    body = {"version": 1, "deployment": dict(WHO), "log_factor": 0.1, "log_ratios": [0.1]}
    return json.dumps({**body, **changes})


def test_a_file_of_the_first_version_need_not_name_it(tmp_path: Path) -> None:
    """Files were written before they carried a version."""
    file = tmp_path / "calibration.json"
    body = json.loads(kept_text())
    del body["version"]
    file.write_text(json.dumps(body), "utf-8")
    assert load_state(file, WHO) == State(0.1, (0.1,))


def test_a_file_of_another_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    """And that is said; within one version an unknown field is refused."""
    file, said = tmp_path / "calibration.json", list[str]()
    file.write_text(kept_text(version=2, centre=0.2), "utf-8")
    assert load(file, State, WHO, said.append) == State(0.1, (0.1,))
    assert said == ["it has version 2, expected 1; what is known of it is read"]
    file.write_text(kept_text(centre=0.2), "utf-8")
    with pytest.raises(MeterError, match=r"version 1 has no fields centre"):
        load_state(file, WHO)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        "[" * 100_000,
        kept_text(log_factor=9.0),
        kept_text(log_factor=math.nan),
        kept_text(log_factor=None),
        kept_text(log_ratios=[0.1, math.inf]),
        kept_text(log_ratios="no"),
        kept_text(log_ratios=7),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with it."""
    file = tmp_path / "calibration.json"
    file.write_text(text, "utf-8")
    with pytest.raises(MeterError, match=r"calibration\.json cannot be used"):
        load_state(file, WHO)


# The error that is shown


def test_errors_are_signed_and_of_four_kinds() -> None:
    """(estimated - measured) / measured, before and after the factor, on both bases."""
    measured = RECORD.energy.joules - RECORD.energy.accounts.idle  # type: ignore[union-attr]
    told = replace(ESTIMATE, prefill_joules=0.0, decode_joules=measured / 2, calibration=1.5)
    known = replace(told, decode_joules=measured * 2, calibration=0.5)
    assert error_ratios(replace(RECORD, estimate=told, conditional=known)) == pytest.approx(
        {
            ("raw", "conditional"): 1.0,
            ("calibrated", "conditional"): 0.0,
            ("raw", "end_to_end"): -0.5,
            ("calibrated", "end_to_end"): -0.25,
        }
    )


def test_modelled_joules_show_no_error() -> None:
    """What is compared must have been measured; nor does an aborted request say anything."""
    energy = RECORD.energy
    assert energy is not None
    assert error_ratios(replace(RECORD, energy=replace(energy, source=Source.MODELLED))) == {}
    assert error_ratios(replace(RECORD, energy=replace(energy, outcome=Outcome.ABORTED))) == {}
    assert error_ratios(replace(RECORD, energy=None)) == {}
    assert len(error_ratios(replace(RECORD, conditional=None))) == 2
