"""An API server's meter: which deployment it estimates, what it learns, and what it does not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.headers import estimate_headers
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.exchanges import Exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.predictor import models as energy_models
from llm_carbon_meter.predictor.energy_model import Deployment, Numbers, PhaseEnergy
from llm_carbon_meter.records import EstimateQuery, Outcome, Quality, Source, Status
from tests.exporters.test_prometheus import TOTALS

from .test_exchanges import energy_of

DEPLOYED = {
    "engine": "vllm",
    "engine_version": "0.32.0",
    "gpu": "NVIDIA A100-SXM4-80GB",
    "tensor_parallel_size": 2,
}


@dataclass(frozen=True)
class TenJoules:
    """Ten joules a request, shared; remembers what it was bound to."""

    bound: list[Deployment]
    out_of_domain: str = ""
    interval: tuple[float, float] = (1.0, 1.0)
    name: str = "gnn"
    facility: bool = False

    def bind(self, deployment: Deployment) -> "TenJoules":
        self.bound.append(deployment)
        return self

    def phases(self, concurrency: Numbers, prompt: Numbers, output: Numbers) -> PhaseEnergy:
        return PhaseEnergy(5.0 / concurrency, 5.0 / concurrency)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[Deployment]:
    """The deployments of the energy model that is called gnn here."""
    deployments: list[Deployment] = []
    models = {**energy_models.ENERGY_MODELS, "gnn": lambda: TenJoules(deployments)}
    monkeypatch.setattr(energy_models, "ENERGY_MODELS", models)
    return deployments


class Frontend:
    """A meter with a registry and faults of its own, and what it shared."""

    def __init__(
        self,
        deployment: Mapping[str, str | int] = DEPLOYED,
        index: int = 0,
        **settings: Any,
    ) -> None:
        self.registry, self.faults = CollectorRegistry(), Faults()
        self.shared: list[Mapping[str, Any]] = []
        self.meter = FrontendMeter(
            Config(**{"estimator": "gnn", **settings}),
            "llama",
            built_in_model("Llama-3.1-8B"),
            deployment=deployment,
            index=index,
            tracing=False,
            share=lambda key, ids, record: self.shared.append(record),
            faults=self.faults,
            registry=self.registry,
        )

    def serve(self, number: int, joules: float = 12.0, **changes: Any) -> Mapping[str, Any]:
        """A request from its begin to its final figure; its record."""
        exchange, name = Exchange(), f"request-{number}"
        self.meter.begin(exchange, name, f"chatcmpl-{number}", 10, 5)
        self.meter.end(exchange, answered=True)
        nothing = dict.fromkeys(("prefill_joules", "recompute_joules", "waste_joules"), 0.0)
        figures = {
            "source": Source.MEASURED,
            "quality": Quality.COUNTER,
            "outcome": Outcome.FINISHED,
            **nothing,
            "decode_joules": joules,
            "idle_joules": 0.0,
            "mean_running": 1.0,
        }
        self.meter.receive_energy(energy_of(name, Status.FINAL, **{**figures, **changes}))
        (text,) = self.meter.find(name).values()
        record: Mapping[str, Any] = json.loads(text)
        return record

    def factor(self) -> float:
        """The calibration that the next request gets."""
        estimate = self.meter.estimate(EstimateQuery(10, 5))
        assert estimate is not None
        return estimate.calibration

    def drift(self) -> float | None:
        """Of what the model itself says, given the lengths."""
        labels = {"model_name": "llama", "engine": "0", "stage": "raw", "basis": "conditional"}
        return self.registry.get_sample_value("llm_carbon_meter_drift_ratio", labels)

    def errors(self, stage: str, basis: str) -> float | None:
        """How many were observed."""
        labels = {"model_name": "llama", "engine": "0", "stage": stage, "basis": basis}
        return self.registry.get_sample_value("llm_carbon_meter_estimate_error_ratio_count", labels)


def test_the_estimate_is_for_the_engine_s_own_deployment(bound: list[Deployment]) -> None:
    """GPU by CUDA's name, tensor parallelism, engine and version."""
    frontend = Frontend()
    (deployment,) = bound
    assert deployment.gpu.name == "A100"
    assert deployment.num_gpus == 2
    assert (deployment.engine, deployment.engine_version) == ("vllm", "0.32.0")
    assert frontend.serve(1)["estimate"]["out_of_domain"] == ""
    assert not frontend.faults.counts


def test_a_model_that_fails_takes_no_measurement_with_it(
    bound: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has its energy and no estimate; the fault is counted."""

    def fail(*_: Any) -> PhaseEnergy:
        raise ZeroDivisionError

    monkeypatch.setattr(TenJoules, "phases", fail)
    frontend = Frontend()
    record = frontend.serve(1)
    assert (record["energy_joules"], record["estimate"]) == (12.0, None)
    assert frontend.faults.counts == {"estimate": 1}


@pytest.mark.parametrize(
    ("gpu", "faults", "words"),
    [("", {}, "no GPU was found, L4 is assumed"), ("Voodoo 2", {"gpu": 1}, "Voodoo 2 is not")],
)
def test_a_gpu_that_is_not_known_is_assumed_and_said(
    bound: list[Deployment], gpu: str, faults: Mapping[str, int], words: str
) -> None:
    """A host without one, and one that the table lacks: a fault, once."""
    frontend = Frontend({**DEPLOYED, "gpu": gpu}, assume_gpu="L4")
    assert bound[0].gpu.name == "L4"
    record = frontend.serve(1)
    assert words in record["estimate"]["out_of_domain"]
    assert record["deployment"]["gpu"] == gpu
    assert frontend.faults.counts == faults


def test_without_an_estimator_there_is_no_estimate(bound: list[Deployment]) -> None:
    """Switched off, or one that cannot be bound: served and metered all the same."""
    assert Frontend(estimator="none").serve(1)["estimate"] is None
    assert not bound


def test_the_conditional_estimate_knows_length_and_company(bound: list[Deployment]) -> None:
    """Two at a time cost half each; it is there only once the figures are final."""
    frontend = Frontend()
    record = frontend.serve(1, mean_running=2.0)
    assert record["estimate"]["energy_joules"] == pytest.approx(10.0)
    assert record["conditional"]["energy_joules"] == pytest.approx(5.0)
    exchange = Exchange()
    frontend.meter.begin(exchange, "open", "chatcmpl-open", 10, 5)
    assert frontend.meter.record(exchange).conditional is None


def test_measured_requests_calibrate_the_following_ones(bound: list[Deployment]) -> None:
    """The factor approaches measured / estimated; raw stays raw, headers are calibrated."""
    frontend = Frontend()
    records = [frontend.serve(number, joules=12.0) for number in range(40)]
    assert records[0]["estimate"]["calibration"] == 1.0
    assert frontend.factor() == pytest.approx(1.2, rel=0.02)
    last = records[-1]["estimate"]
    assert last["energy_joules"] == pytest.approx(10.0)
    assert last["calibrated"]["energy_joules"] == pytest.approx(12.0, rel=0.02)
    estimate = frontend.meter.estimate(EstimateQuery(10, 5))
    assert estimate is not None
    told = float(estimate_headers(estimate)["LLM-Carbon-Estimated-Wh"])
    assert told == pytest.approx(12.0 / 3600, rel=0.02)
    for stage in ("raw", "calibrated"):
        for basis in ("conditional", "end_to_end"):
            assert frontend.errors(stage, basis) == 40


def test_modelled_joules_teach_nothing_and_show_no_error(bound: list[Deployment]) -> None:
    """However many there are."""
    frontend = Frontend()
    for number in range(40):
        frontend.serve(number, source=Source.MODELLED, quality=Quality.MODELLED)
    assert frontend.factor() == 1.0
    assert frontend.errors("raw", "conditional") is None


def test_the_facility_formula_is_not_calibrated() -> None:
    """Its error is shown, but no factor is put on it."""
    frontend = Frontend(estimator="flop")
    for number in range(40):
        frontend.serve(number)
    assert frontend.factor() == 1.0
    assert frontend.errors("calibrated", "conditional") == 40


def test_all_api_servers_learn_from_each_other_s_records(bound: list[Deployment]) -> None:
    """One that answers nothing has the factor of the one that answers all."""
    busy, idle = Frontend(index=0), Frontend(index=1)
    for number in range(30):
        busy.serve(number)
    for record in busy.shared:
        idle.meter.receive_record(record["id"], [], json.loads(json.dumps(record)))
    assert idle.factor() == busy.factor() != 1.0
    assert idle.errors("raw", "conditional") is None


def test_the_first_api_server_watches_all_of_them_for_drift(bound: list[Deployment]) -> None:
    """Its own requests and those that others share; they themselves say nothing."""
    settings = {"drift_min_requests": 20}
    first, second = (Frontend(index=index, **settings) for index in (0, 1))
    for number in range(10):
        first.serve(number, joules=20.0)
        second.serve(100 + number, joules=20.0)
    first.meter.receive_totals(TOTALS)
    assert first.drift() is None
    for record in second.shared:
        first.meter.receive_record(record["id"], [], record)
    first.meter._drift._looked_s = 0.0  # type: ignore[union-attr]
    for frontend in (first, second):
        frontend.meter.receive_totals(TOTALS)
    assert first.drift() == pytest.approx(-0.5)
    assert second.drift() is None


def test_all_go_on_after_a_restart_and_only_the_first_server_writes(
    bound: list[Deployment], tmp_path: Path
) -> None:
    """The file is there after a stop; another engine version does not take it."""
    file = tmp_path / "calibration.json"
    for index in (1, 0):
        frontend = Frontend(index=index, calibration_file=str(file))
        for number in range(30):
            frontend.serve(number)
        frontend.meter.stop()
        assert file.exists() == (index == 0)
    for index in (0, 1):
        restarted = Frontend(index=index, calibration_file=str(file))
        assert restarted.factor() == frontend.factor() != 1.0
    newer = Frontend({**DEPLOYED, "engine_version": "0.33.0"}, calibration_file=str(file))
    assert newer.factor() == 1.0
    assert not newer.faults.counts


def test_a_damaged_or_unwritable_file_is_counted_and_served_without(
    bound: list[Deployment], tmp_path: Path
) -> None:
    """It begins at 1, learns, and replaces what was damaged."""
    file = tmp_path / "calibration.json"
    file.write_text("{", "utf-8")
    frontend = Frontend(calibration_file=str(file))
    assert frontend.faults.counts == {"calibration": 1}
    assert frontend.factor() == 1.0
    frontend.serve(1)
    frontend.meter.stop()
    assert json.loads(file.read_text("utf-8"))["deployment"]["gpu"] == "A100"
    nowhere = Frontend(calibration_file=str(tmp_path / "no" / "file.json"))
    nowhere.serve(1)
    nowhere.meter.stop()
    assert nowhere.faults.counts == {"calibration": 1}


def test_pipeline_stages_are_not_passed_over(bound: list[Deployment]) -> None:
    """No energy model knows them: the estimate says so."""
    record = Frontend({**DEPLOYED, "pipeline_parallel_size": 2}).serve(1)
    assert record["estimate"]["out_of_domain"] == "2 pipeline stages counted as one"
