"""Wires everything of one API server together: estimates before, records after, all exporters."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry

from llm_carbon_meter.carbon.emissions import coverage, embodied_rate
from llm_carbon_meter.carbon.grid import constant
from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.headers import record_json
from llm_carbon_meter.exporters.otel import SpanExporter
from llm_carbon_meter.exporters.prometheus import PrometheusExporter
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.drift_watch import DriftWatch
from llm_carbon_meter.frontend.exchanges import (
    Exchange,
    Member,
    RecordStore,
    Registry,
    stopped,
    sum_estimates,
)
from llm_carbon_meter.frontend.request_log import RequestLog
from llm_carbon_meter.physics.gpu_specs import GpuSpec, assumed_gpu, gpu_spec
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.predictor.calibration import error_ratios
from llm_carbon_meter.predictor.energy_model import Deployment, EnergyModel
from llm_carbon_meter.predictor.estimator import DeploymentEstimator
from llm_carbon_meter.predictor.live import LiveEstimator
from llm_carbon_meter.predictor.models import energy_model
from llm_carbon_meter.records import (
    HEARTBEAT_S,
    CarbonIntensity,
    EnergyEstimate,
    EngineTotals,
    EstimateQuery,
    Features,
    MeterError,
    Outcome,
    RequestEnergy,
    RequestRecord,
    SpecError,
    Status,
)

SILENT_S: Final = 3 * HEARTBEAT_S
"""Engines not heard for this long are not metered: answers must not wait for them."""

Share = Callable[[str, Sequence[str], Mapping[str, Any]], None]


class _Gpu(NamedTuple):
    spec: GpuSpec
    remark: str
    """Empty where it is the engine's own."""


class FrontendMeter:
    """Estimates, registry, look-ups and exporters of one API server.

    Args:
        config: settings.
        model_name: as clients know it.
        model: shape for the estimate; None where the architecture is not known.
        deployment: engine, version, GPU, number formats and parallelism, for estimate and records.
        index: of this API server; 0 exports the engine-wide metrics, keeps the calibration and
            watches for drift.
        tracing: whether the server makes spans.
        share: gives a record (key, ids, JSON) to the other API servers.
        faults: counts of what went wrong in this process.
        registry: of Prometheus.
    """

    def __init__(
        self,
        config: Config,
        model_name: str,
        model: ModelSpec | None,
        deployment: Mapping[str, str | int],
        index: int,
        tracing: bool,
        share: Share,
        faults: Faults,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.config = config
        self.model_name = model_name
        self.exchanges = Registry()
        self.records = RecordStore(config.records)
        self._deployment = deployment
        self._covers = coverage(config)
        self._intensity = constant(config, faults)
        self.spans = SpanExporter(self._intensity) if tracing else None
        self._heard_s = time.monotonic()
        self._share = share
        self._faults = faults
        self._metrics = PrometheusExporter(model_name, owns_totals=index == 0, registry=registry)
        faults.listen(self._metrics.error)
        self._metrics.intensity(self._intensity, 0.0)
        self._log = self._open_log(index)
        self._live = self._open_estimator(model, index) if model else None
        watches = index == 0 and self._live is not None
        self._drift = DriftWatch(config, model_name, self._metrics, faults) if watches else None

    def _open_log(self, index: int) -> RequestLog | None:
        path = self.config.request_log
        if not path:
            return None
        try:
            # Two processes must not rotate one file.
            path = path if index == 0 else f"{path}-{index}"
            return RequestLog(
                path, self.config.request_log_max_bytes, self.config.request_log_files
            )
        except MeterError as error:
            self._faults.note("request_log", error)
            return None

    def _open_estimator(self, model: ModelSpec, index: int) -> LiveEstimator | None:
        config = self.config
        if config.estimator == "none":
            return None
        gpu, remark = self._gpu()
        stages = int(self._deployment.get("pipeline_parallel_size", 1))
        if stages > 1:
            remark = "; ".join(filter(None, (remark, f"{stages} pipeline stages counted as one")))
        deployment = Deployment(
            model,
            gpu,
            int(self._deployment.get("tensor_parallel_size", 1)),
            str(self._deployment.get("engine", "")),
            str(self._deployment.get("engine_version", "")),
        )
        rate = embodied_rate(config.embodied, gpu, host=config.embodied_host)
        try:
            estimator = DeploymentEstimator(
                self._energy_model(), deployment, self._intensity, config.pue, remark, rate
            )
        except MeterError as error:
            self._faults.note("estimator", error, "Requests have no estimate.")
            return None
        file = Path(config.calibration_file) if config.calibration_file else None
        # Two processes must not write one file.
        return LiveEstimator(estimator, file, index == 0, self._faults)

    def _energy_model(self) -> EnergyModel:
        try:
            return energy_model(self.config.estimator)
        except MeterError as error:
            self._faults.note("estimator", error, "Estimates are those of the FLOP formula.")
            return energy_model("flop")

    def _gpu(self) -> _Gpu:
        """The data sheet of the engine's GPU, or the assumed one and why."""
        name = str(self._deployment.get("gpu", ""))
        if not name:
            assumed = assumed_gpu(self.config, self._faults)
            return _Gpu(assumed, f"no GPU was found, {assumed.name} is assumed")
        try:
            return _Gpu(gpu_spec(name), "")
        except SpecError as error:
            assumed = assumed_gpu(self.config, self._faults)
            self._faults.note("gpu", error, f"Estimates assume {assumed.name}.")
            return _Gpu(assumed, f"the GPU {name} is not known, {assumed.name} is assumed")

    @property
    def provisional_wait_s(self) -> float:
        """How long an answer may wait for its provisional figure: only while engines are heard."""
        return 0.0 if self._engines_are_silent() else self.config.provisional_wait_s

    @property
    def final_wait_s(self) -> float:
        """How long it may wait for its final one, likewise."""
        return 0.0 if self._engines_are_silent() else self.config.final_wait_s

    def _engines_are_silent(self) -> bool:
        return time.monotonic() - self._heard_s > SILENT_S

    # Before

    def estimate(self, query: EstimateQuery) -> EnergyEstimate | None:
        """Estimate a request; None where nothing can be said about this model.

        Raises:
            MeterError: the query makes no sense.
        """
        return self._live.estimate(query) if self._live else None

    def begin(
        self,
        exchange: Exchange,
        internal_id: str,
        external_id: str,
        prompt_tokens: int,
        max_tokens: int | None,
    ) -> None:
        """An engine request is about to be sent to an engine."""
        concurrency = self.exchanges.num_open + 1
        query = EstimateQuery(prompt_tokens, max_tokens, concurrency=concurrency)
        features = Features(time.time(), max_tokens, 1, concurrency)
        estimate = self._estimate_or_none(query) if prompt_tokens else None
        self.exchanges.begin(exchange, Member(internal_id, external_id, estimate), features)

    def _estimate_or_none(self, query: EstimateQuery) -> EnergyEstimate | None:
        """What it will use is measured all the same."""
        try:
            return self.estimate(query)
        except Exception as error:  # noqa: BLE001 - boundary: an energy model may be anybody's
            self._faults.note("estimate", error, "Requests have no estimate.")
            return None

    # After

    def receive_energy(self, energy: RequestEnergy) -> None:
        """An engine says what a request used, provisionally or finally."""
        exchange, finished = self.exchanges.receive(energy)
        if exchange is None:
            return
        if energy.status is Status.FINAL and self.spans is not None:
            self.spans.final(energy, exchange.members[energy.request_id].estimate)
        if finished:
            self._finish(exchange)

    def receive_totals(self, totals: EngineTotals) -> None:
        """An engine says what its GPUs have used so far; at least once per heartbeat."""
        self._heard_s = time.monotonic()
        self._metrics.totals(totals)
        self._use(totals.intensity)
        if self._drift is not None:
            self._drift.look()

    def _use(self, intensity: CarbonIntensity) -> None:
        """An engine's meter knows what the grid emits: nobody else asks for it."""
        self._metrics.intensity(intensity, intensity.age_s(time.monotonic()))
        self._intensity = intensity
        if self.spans is not None:
            self.spans.intensity = intensity
        if self._live is not None:
            self._live.intensity = intensity

    def receive_record(self, key: str, ids: Sequence[str], record: Mapping[str, Any]) -> None:
        """Another API server finished an exchange."""
        self.records.put(key, ids, json.dumps(record, separators=(",", ":")))
        self._learn(record)

    def end(self, exchange: Exchange, answered: bool) -> None:
        """The HTTP side of an exchange is over."""
        exchange.show()
        if self.exchanges.close(exchange, answered):
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        record = self.record(exchange)
        body = record_json(record)
        text = json.dumps(body, separators=(",", ":"))
        ids = (*record.internal_ids, *record.external_ids)
        self._metrics.record(record)
        self._metrics.estimate_errors(record, error_ratios(record))
        self._learn(body)
        self._learn_lengths(exchange)
        self.records.put(record.id, ids, text)
        self._share(record.id, ids, body)
        if self._log is not None:
            try:
                self._log.write(text)
            except OSError as error:
                self._faults.note("request_log", error, "The record is in the metrics only.")

    def _learn(self, record: Mapping[str, Any]) -> None:
        if self._live is not None:
            self._live.learn(record)
        if self._drift is not None:
            self._drift.observe(record)

    def _learn_lengths(self, exchange: Exchange) -> None:
        if self._live is None:
            return
        for member in exchange.members.values():
            energy = member.energy
            if energy is None or not energy.output_tokens:
                continue
            if energy.outcome is Outcome.FINISHED or exchange.answered:
                self._live.learn_length(energy.output_tokens)

    def _conditional(self, exchange: Exchange) -> EnergyEstimate | None:
        """The estimate once nothing is unknown any more; None before."""
        energies = [member.energy for member in exchange.members.values() if member.estimate]
        known = [energy for energy in energies if energy is not None]
        if self._live is None or not exchange.is_final() or len(known) < len(exchange.members):
            return None
        return sum_estimates([self._live.conditional(energy) for energy in known])

    def record(self, exchange: Exchange) -> RequestRecord:
        """An exchange as known now; it has at least one engine request."""
        assert exchange.features is not None
        energy = exchange.energy
        if energy is not None and exchange.answered:
            energy = stopped(energy)
        return RequestRecord(
            id=exchange.id,
            external_ids=exchange.external_ids(),
            internal_ids=tuple(exchange.members),
            model=self.model_name,
            deployment=self._deployment,
            energy=energy,
            provisional=exchange.provisional,
            estimate=exchange.estimate,
            conditional=self._conditional(exchange),
            features=dataclasses.replace(exchange.features, num_sequences=len(exchange.members)),
            intensity_g_per_kwh=self._intensity.grams_per_kwh,
            intensity_source=self._intensity.provider,
            zone=self._intensity.zone,
            pue=self.config.pue,
            covers=self._covers,
            tokens_from=exchange.tokens_from,
        )

    def find(self, request_id: str) -> Mapping[str, str]:
        """Records under an id of any kind: internal id to JSON text; in flight or finished."""
        open_records = {
            exchange.id: json.dumps(record_json(self.record(exchange)), separators=(",", ":"))
            for exchange in self.exchanges.find(request_id)
        }
        return {**self.records.find(request_id), **open_records}

    def knows(self, request_id: str) -> bool:
        """Whether an engine request of this id is in flight or on record."""
        return self.exchanges.is_open(request_id) or bool(self.records.find(request_id))

    def stop(self) -> None:
        """Finish what the engines have settled, answered or not; then close the files."""
        for exchange in self.exchanges.unfinished():
            if exchange.is_final():
                self.end(exchange, answered=False)
        if self._live is not None:
            self._live.save()
        if self._log is not None:
            self._log.close()
