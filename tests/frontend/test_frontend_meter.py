"""An API server's meter: which deployment it estimates, what it learns, and what it does not."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llm_carbon_meter.exporters.headers import estimate_headers
from llm_carbon_meter.exporters.receipts import public_key, verify
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.exchanges import Exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.physics.phases import PLAIN, Serving
from llm_carbon_meter.predictor import models as energy_models
from llm_carbon_meter.predictor.energy_model import Deployment, Numbers, PhaseEnergy
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import (
    AccountJoules,
    DeploymentFactors,
    EngineTotals,
    Outcome,
    Quality,
    RequestRecord,
    Source,
    Status,
)
from tests.support.made.energies import energy_of
from tests.support.made.records import TOTALS
from tests.support.servers.front_ends import front_end
from tests.support.signing_keys import make_keys

DEPLOYED = {
    "engine": "vllm",
    "engine_version": "0.32.0",
    "gpu": "NVIDIA A100-SXM4-80GB",
    "tensor_parallel_size": 2,
}


@dataclass(frozen=True)
class TenJoules:
    """Ten joules a request, shared, times what was learnt; remembers what it was bound to."""

    bound: list[Deployment]
    learnt: list[float] = field(default_factory=lambda: [1.0])
    out_of_domain: str = ""
    name: str = "gnn"
    facility: bool = False
    measured: bool = True

    def bind(self, deployment: Deployment) -> "TenJoules":
        self.bound.append(deployment)
        return self

    def phases(
        self, concurrency: Numbers, prompt: Numbers, output: Numbers, serving: Serving = PLAIN
    ) -> PhaseEnergy:
        (factor,) = self.learnt
        each = 5.0 * factor / concurrency
        return PhaseEnergy(each, each, calibration=factor)

    def adopt(self, factors: DeploymentFactors) -> None:
        self.learnt[:] = [math.exp(factors.mean[0])]


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
        self.shared: list[RequestRecord] = []
        self.meter = front_end(
            deployment,
            index,
            share=self.shared.append,
            faults=self.faults,
            registry=self.registry,
            **{"estimator": "gnn", **settings},
        )

    def serve(self, number: int, joules: float = 12.0, **changes: Any) -> Mapping[str, Any]:
        """A request from its begin to its final figure; its record."""
        exchange, name = Exchange(), f"request-{number}"
        self.meter.begin(exchange, name, f"chatcmpl-{number}", Prompt(10), 5)
        self.meter.end(exchange, answered=True)
        figures = {
            "source": Source.MEASURED,
            "quality": Quality.COUNTER,
            "outcome": Outcome.FINISHED,
            "accounts": AccountJoules(decode=joules),
            "mean_running": 1.0,
        }
        self.meter.receive_energies([energy_of(name, Status.FINAL, **{**figures, **changes})])
        (text,) = self.meter.find(name).values()
        record: Mapping[str, Any] = json.loads(text)
        return record

    def factor(self) -> float:
        """The calibration that the next request gets."""
        (estimate,) = self.meter.estimates([self.meter.query(Prompt(10), 5, concurrency=1)])
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


def test_an_engine_behind_a_proxy_is_not_one_that_was_measured(bound: list[Deployment]) -> None:
    """Public measurements of an engine that is not stated say nothing of it."""
    Frontend({"engine": "unknown", "gpu": "NVIDIA A100-SXM4-80GB"})
    assert bound[0].engine == ""


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
    frontend.meter.begin(exchange, "open", "chatcmpl-open", Prompt(10), 5)
    assert frontend.meter.record(exchange).conditional is None


def test_figures_that_come_together_are_finished_together(tmp_path: Path) -> None:
    """Each has its record, its line in the log and its count, whatever a proxy is told of one."""
    log = tmp_path / "requests.jsonl"
    frontend = Frontend(request_log=str(log))
    names = [f"request-{number}" for number in range(6)]
    for name in names:
        exchange = Exchange()
        frontend.meter.begin(exchange, name, f"chatcmpl-{name}", Prompt(10), 5)
        frontend.meter.end(exchange, answered=True)
    odd = {"prompt_tokens": 0, "cached_tokens": 7}
    frontend.meter.receive_energies(
        [energy_of(name, **(odd if name == names[2] else {})) for name in names]
    )
    frontend.meter.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["id"] for line in lines] == names
    assert all(line["conditional_joules"] > 0 for line in lines)
    assert all(frontend.meter.find(name) for name in names)
    labels = {"model_name": "llama", "engine": "0", "quality": "counter", "outcome": "finished"}
    counted = frontend.registry.get_sample_value("llm_carbon_meter_requests_total", labels)
    assert counted == len(names)


def finished(meter: FrontendMeter, name: str) -> dict[str, Any]:
    """The record of a request that an engine has settled."""
    exchange = Exchange()
    meter.begin(exchange, name, "mine", Prompt(10), 5)
    meter.end(exchange, answered=True)
    meter.receive_energies([energy_of(name)])
    (text,) = meter.find(name).values()
    found: dict[str, Any] = json.loads(text)
    return found


def test_records_say_what_the_engine_s_meter_could_open() -> None:
    """Before it is heard, what the settings say."""
    meter = front_end()
    assert finished(meter, "first")["covers"].startswith("energy of the GPUs alone")
    meter.receive_totals(replace(TOTALS, covers="energy of a CPU", boundary="cpu"))
    record = finished(meter, "second")
    assert (record["covers"], record["boundary"]) == ("energy of a CPU", "cpu")


def test_look_ups_and_lines_are_signed(tmp_path: Path) -> None:
    """Each verifies by itself; without a key there is no receipt."""
    keys, log = make_keys(tmp_path), tmp_path / "log"
    meter = front_end(request_log=str(log), receipt_key=str(keys.private))
    looked_up = finished(meter, "a")
    meter.stop()
    for record in (looked_up, json.loads(log.read_text())):
        verify(record, public_key(keys.public))
    assert "receipt" not in finished(front_end(), "a")


def learnt(factor: float) -> EngineTotals:
    """Totals of an engine whose meter has learnt that all costs so many times as much."""
    factors = DeploymentFactors((math.log(factor),), ((0.01,),), 30)
    return replace(TOTALS, factors=factors)


def test_estimates_follow_what_the_meter_has_learnt(bound: list[Deployment]) -> None:
    """From the next request on; raw stays raw, headers are corrected."""
    frontend = Frontend()
    first = frontend.serve(1)["estimate"]
    assert first["calibration"] == 1.0
    frontend.meter.receive_totals(learnt(1.2))
    last = frontend.serve(2)["estimate"]
    assert last["calibration"] == pytest.approx(1.2)
    assert last["energy_joules"] == pytest.approx(10.0)
    assert last["calibrated"]["energy_joules"] == pytest.approx(12.0)
    (estimate,) = frontend.meter.estimates([frontend.meter.query(Prompt(10), 5, concurrency=1)])
    told = float(estimate_headers(estimate)["LLM-Carbon-Estimated-Wh"])
    assert told == pytest.approx(12.0 / 3600, rel=1e-5)
    for stage in ("raw", "calibrated"):
        for basis in ("conditional", "end_to_end"):
            assert frontend.errors(stage, basis) == 2


def test_modelled_joules_show_no_error(bound: list[Deployment]) -> None:
    """However many there are."""
    frontend = Frontend()
    for number in range(40):
        frontend.serve(number, source=Source.MODELLED, quality=Quality.MODELLED)
    assert frontend.errors("raw", "conditional") is None


def test_the_facility_formula_is_not_calibrated() -> None:
    """Its error is shown, but no factor is put on it."""
    frontend = Frontend(estimator="flop")
    frontend.meter.receive_totals(learnt(1.2))
    for number in range(40):
        frontend.serve(number)
    assert frontend.factor() == 1.0
    assert frontend.errors("calibrated", "conditional") == 40


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
        first.meter.receive_record(record)
    first.meter._drift._looked_s = 0.0  # type: ignore[union-attr]
    for frontend in (first, second):
        frontend.meter.receive_totals(TOTALS)
    assert first.drift() == pytest.approx(-0.5)
    assert second.drift() is None


def test_pipeline_stages_are_not_passed_over(bound: list[Deployment]) -> None:
    """No energy model knows them: the estimate says so."""
    record = Frontend({**DEPLOYED, "pipeline_parallel_size": 2}).serve(1)
    assert record["estimate"]["out_of_domain"] == "2 pipeline stages counted as one"
