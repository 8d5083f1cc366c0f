"""What a meter's process learns of its deployment's estimates, and keeps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_carbon_meter.carbon.grid import constant
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.gpu_specs import at_limit, gpu_spec
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.phases import phase_sums
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.estimator import DeploymentEstimator
from llm_carbon_meter.predictor.gnn import GnnModel, shipped_weights
from llm_carbon_meter.predictor.live import MOST_STEPS, LiveEstimator, LiveLearner, identity
from llm_carbon_meter.records import EstimateQuery

MODEL = built_in_model("Llama-3.1-8B")
PLACE = Deployment(MODEL, gpu_spec("H100"), 1, "vllm", "0.32.0")
QUERY = EstimateQuery(300, 100, concurrency=8, output_tokens=100)


def learner(file: Path | None = None, place: Deployment = PLACE, faults: Any = None) -> LiveLearner:
    """Of the shipped weights."""
    return LiveLearner(shipped_weights(), place, file, faults or Faults())


def decode_steps(number: int) -> np.ndarray:
    """Sums of equal decode steps of eight requests."""
    sums = phase_sums(MODEL, *(np.array([x]) for x in (8.0, 300.0, 2.0)))[0, 1]
    return np.tile(sums, (number, 1))


def teach(one: LiveLearner, ticks: int = 40, watts: float = 600.0, steps: int = 100) -> None:
    """Seconds of decoding at some power."""
    for _ in range(ticks):
        one.see_tick(decode_steps(steps), np.ones(steps), 1.0, watts)


def test_an_estimate_follows_its_meter() -> None:
    """What decoding cost is what a request is told to cost: 600 J for a hundred steps of eight."""
    meter = learner()
    assert meter.factors is None
    teach(meter, ticks=100, watts=600.0)
    estimator = DeploymentEstimator(GnnModel(), PLACE, constant(Config(), Faults()))
    live = LiveEstimator(estimator)
    (before,) = live.estimates([QUERY])
    assert before.calibration == pytest.approx(1.0)
    assert meter.factors is not None
    live.adopt(meter.factors)
    (after,) = live.estimates([QUERY])
    assert after.calibrated.decode_joules == pytest.approx(99 * 600 / 100 / 8, rel=0.03)
    assert after.joules == pytest.approx(before.joules)
    assert after.calibrated.joules == pytest.approx(after.joules * after.calibration)


def test_an_estimate_at_a_lower_limit_follows_its_meter() -> None:
    """Both ends take the limit for the law's unit: 400 J for a hundred steps of eight at 450 W."""
    place = replace(PLACE, gpu=at_limit(PLACE.gpu, 450.0))
    meter = learner(place=place)
    teach(meter, ticks=100, watts=400.0)
    live = LiveEstimator(DeploymentEstimator(GnnModel(), place, constant(Config(), Faults())))
    assert meter.factors is not None
    live.adopt(meter.factors)
    (after,) = live.estimates([QUERY])
    assert after.calibrated.decode_joules == pytest.approx(99 * 400 / 100 / 8, rel=0.05)


def test_a_tick_of_many_steps_is_looked_at_in_part() -> None:
    """Every n-th step stands for n: the same is learnt of equal steps."""
    few, many = learner(), learner()
    teach(few, steps=MOST_STEPS)
    teach(many, steps=8 * MOST_STEPS, watts=600.0)
    same = learner()
    for _ in range(40):
        same.see_tick(decode_steps(8 * MOST_STEPS)[::8], np.full(MOST_STEPS, 8.0), 1.0, 600.0)
    assert many.factors == same.factors != few.factors


@pytest.mark.parametrize(("seconds", "joules"), [(np.nan, 1.0), (1.0, np.inf)])
def test_a_tick_without_numbers_is_refused(seconds: float, joules: float) -> None:
    """It would spoil all that comes after it."""
    one = learner()
    with pytest.raises(ValueError, match="a tick of"):
        one.see_tick(decode_steps(3), np.ones(3), seconds, joules)
    teach(one, ticks=1)
    assert one.factors is not None
    assert np.isfinite(one.factors.mean).all()


def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    """The same deployment goes on with the same factors, and counts on."""
    file = tmp_path / "calibration.json"
    before = learner(file)
    teach(before)
    before.save()
    after = learner(file)
    assert after.factors == before.factors
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    written = file.read_bytes()
    after.save()
    assert file.read_bytes() == written, "nothing new was learnt"


@pytest.mark.parametrize(
    "change",
    [
        {"engine_version": "0.33.0"},
        {"gpu": gpu_spec("A100")},
        {"gpu": at_limit(gpu_spec("H100"), 500.0)},
        {"num_gpus": 2},
        {"model": built_in_model("Llama-3-8B")},
    ],
)
def test_another_deployment_begins_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    """Engine version, GPU, its limit, GPUs and model each end what was learnt; so do weights."""
    file, faults = tmp_path / "calibration.json", Faults()
    first = learner(file)
    teach(first)
    first.save()
    assert learner(file, replace(PLACE, **change), faults).factors is None
    assert not faults.counts
    assert identity(PLACE, "one") != identity(PLACE, "other")


def kept(**changes: Any) -> str:
    """A file as it is written, but for some fields of its factors."""
    factors = learner()
    teach(factors, ticks=1)
    assert factors.factors is not None
    body = {
        "version": 1,
        "deployment": dict(identity(PLACE, shipped_weights().checksum)),
        "factors": {
            "mean": factors.factors.mean,
            "covariance": factors.factors.covariance,
            "ticks": 1,
            **changes,
        },
    }
    return json.dumps(body)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        kept(mean=[0.0]),
        kept(mean="no"),
        kept(covariance=[[0.0] * 8] * 8),
        kept(covariance=[[1.0]]),
        kept(mean=[None] * 8),
    ],
)
def test_a_damaged_file_is_counted_and_replaced(tmp_path: Path, text: str) -> None:
    """It begins anew, learns, and writes a good one."""
    file, faults = tmp_path / "calibration.json", Faults()
    file.write_text(text, "utf-8")
    one = learner(file, faults=faults)
    assert faults.counts == {"calibration": 1}
    assert one.factors is None
    teach(one, ticks=1)
    one.save()
    assert learner(file).factors == one.factors


def test_a_file_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    """Estimates are corrected all the same."""
    faults = Faults()
    one = learner(tmp_path / "no" / "file.json", faults=faults)
    teach(one, ticks=1)
    one.save()
    assert faults.counts == {"calibration": 1}
    assert one.factors is not None
