"""Wires everything of one API server together: estimates before, records after, all exporters."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry

from llm_carbon_meter.carbon.emissions import coverage
from llm_carbon_meter.carbon.grid import constant
from llm_carbon_meter.carbon.money import open_prices
from llm_carbon_meter.config import Config, place
from llm_carbon_meter.exporters.headers import record_text
from llm_carbon_meter.exporters.log_line import Line, request_line
from llm_carbon_meter.exporters.otel import SpanExporter
from llm_carbon_meter.exporters.otlp_logs import OtlpLogs, open_otlp_logs
from llm_carbon_meter.exporters.prometheus import PrometheusExporter
from llm_carbon_meter.exporters.receipts import open_signer
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.account_lines import AccountLines
from llm_carbon_meter.frontend.concurrency import SILENT_S, Concurrency
from llm_carbon_meter.frontend.drift_watch import DriftWatch
from llm_carbon_meter.frontend.estimating import open_estimator
from llm_carbon_meter.frontend.exchanges import Exchange, Member, Registry, bounded_id
from llm_carbon_meter.frontend.losses import Losses
from llm_carbon_meter.frontend.record_making import Surroundings, conditionals, record_of
from llm_carbon_meter.frontend.record_store import RecordStore
from llm_carbon_meter.frontend.request_log import RequestLog, open_log, text_of
from llm_carbon_meter.frontend.tenants import Labels, RawHeaders, Tenants
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.predictor.drift import error_ratios
from llm_carbon_meter.predictor.live import LiveEstimator
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import (
    CarbonIntensity,
    EnergyEstimate,
    EngineLoad,
    EngineTotals,
    EstimateQuery,
    Features,
    MeterError,
    Outcome,
    RequestEnergy,
    RequestRecord,
    Status,
    Whose,
)

Sink = Callable[[RequestRecord], None]
"""Takes the record of a finished exchange."""
MOST_UNMETERED: Final = 50
"""Paths of requests that nobody meters are told by name."""
MOST_FOUND: Final = 10
"""Records of one id that are told; clients repeat theirs."""


class FrontendMeter:
    """Estimates, registry, look-ups and exporters of one API server.

    Args:
        config: settings.
        model_name: as clients know it.
        model: shape for the estimate; None where the architecture is not known.
        deployment: engine, version, GPU, number formats and parallelism, for estimate and records.
        index: of this API server; 0 exports the engine-wide metrics, keeps the calibration and
            watches for drift.
        concurrency: counts the requests that share the engines.
        tracing: whether the server makes spans.
        share: gives a record to the other API servers; None where there are none.
        faults: counts of what went wrong in this process.
        registry: of Prometheus.
        cache_block_tokens: of the engines' prefix cache; 0 where they have none.
        models: all that the server has, by name, where it has several; shapes as of `model`.
    """

    def __init__(
        self,
        config: Config,
        model_name: str,
        model: ModelSpec | None,
        deployment: Mapping[str, str | float],
        index: int,
        concurrency: Concurrency,
        tracing: bool,
        share: Sink | None,
        faults: Faults,
        registry: CollectorRegistry = REGISTRY,
        cache_block_tokens: int = 0,
        models: Mapping[str, ModelSpec | None] = MappingProxyType({}),
    ) -> None:
        first = index == 0
        self.config = config
        self.model_name = model_name
        self.concurrency = concurrency
        self.tenants = Tenants(config, faults)
        self._adapters = Labels((), config.tenant_limit)
        self.exchanges = Registry()
        self.records: RecordStore[RequestRecord] = RecordStore(config.records)
        here, covers, prices = place(), coverage(config), open_prices(config, faults)
        self._surroundings = Surroundings(model_name, deployment, config.pue, covers, prices, here)
        self._intensity = constant(config, faults)
        self.spans = SpanExporter(self._intensity) if tracing else None
        self._heard_s = time.monotonic()
        self._losses = Losses(self.exchanges)
        self._faults = faults
        self._metrics = PrometheusExporter(
            model_name,
            owns_totals=first,
            registry=registry,
            prices=prices,
            tenants=self.tenants.named if self.tenants.are_told else None,
            models=models,
        )
        faults.listen(self._metrics.error)
        self._metrics.intensity(self._intensity, 0.0)
        self._log: RequestLog | None = open_log(config, index, faults)
        self._sign = open_signer(config, faults)
        self._otlp_logs: OtlpLogs | None = open_otlp_logs(config.otlp_logs, faults)
        self._account_lines = (
            AccountLines(model_name, here, config.pue, covers, time.time()) if first else None
        )
        self._live: LiveEstimator | None = open_estimator(
            config, deployment, model, self._intensity, faults, cache_block_tokens
        )
        self._lives = {
            name: open_estimator(config, deployment, other, self._intensity, faults)
            for name, other in models.items()
        }
        self._unmetered = Labels((), MOST_UNMETERED)
        watches = first and self._live is not None
        self._drift = DriftWatch(config, model_name, self._metrics, faults) if watches else None
        self._share = share
        sinks = self._count, self._judge, self._keep, share
        self._sinks: Sequence[Sink] = [sink for sink in sinks if sink is not None]

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

    @property
    def estimates_requests(self) -> bool:
        """Whether anything can be said about this model before a request runs."""
        return self._live is not None

    def query(
        self,
        prompt: Prompt,
        max_tokens: int | None,
        *,
        concurrency: int,
        num_sequences: int = 1,
        output_tokens: int | None = None,
    ) -> EstimateQuery:
        """What is known of a request that is not sent; arguments as of `LiveEstimator.ask`.

        Raises:
            MeterError: it is longer than the model's context, or nothing can be estimated.
        """
        asked = self._estimator.ask(
            prompt,
            max_tokens,
            concurrency,
            num_sequences=num_sequences,
            output_tokens=output_tokens,
        )
        self._estimator.check_context(asked.query)
        return asked.query

    def estimates(self, queries: Sequence[EstimateQuery]) -> list[EnergyEstimate]:
        """Estimate requests that are not sent.

        Raises:
            MeterError: one of them makes no sense, or nothing can be estimated.
        """
        return self._estimator.estimates(queries)

    @property
    def _estimator(self) -> LiveEstimator:
        if self._live is None:
            raise MeterError(f"the architecture of {self.model_name} has no estimate")
        return self._live

    def begin(
        self,
        exchange: Exchange,
        internal_id: str,
        external_id: str,
        prompt: Prompt,
        max_tokens: int | None,
    ) -> None:
        """An engine request is about to be sent to an engine."""
        concurrency = self.concurrency.with_more(1)
        features = Features(time.time(), max_tokens, 1, concurrency)
        tenant = self.tenants.of(exchange.headers, prompt.adapter, exchange.claim)
        whose = Whose(tenant, prompt.adapter)
        member = Member(bounded_id(internal_id), bounded_id(external_id), None, whose=whose)
        live = self._live_of(exchange)
        if prompt.num_tokens and live is not None:
            try:
                member.asked = live.ask(prompt, max_tokens, concurrency, comes=True)
                (member.estimate,) = live.estimates([member.asked.query])
            except Exception as error:  # noqa: BLE001 - boundary: an energy model may be anybody's
                # What it will use is measured all the same.
                self._faults.note("estimate", error, "Requests have no estimate.")
        self.exchanges.begin(exchange, member, features)
        if surplus := self.exchanges.surplus():
            self._lose(surplus)

    def _live_of(self, exchange: Exchange) -> LiveEstimator | None:
        """Of the model that is asked for; None where there is no estimate of it."""
        return self._lives.get(exchange.model) if exchange.model else self._live

    def unmetered(self, path: str) -> None:
        """A request passes that nobody meters."""
        self._metrics.unmetered(self._unmetered.of(bounded_id(path)))

    # After

    def receive_energies(self, energies: Sequence[RequestEnergy]) -> None:
        """An engine says what requests used, provisionally or finally."""
        finished = []
        for told in energies:
            name = bounded_id(told.request_id)
            energy = told if name == told.request_id else replace(told, request_id=name)
            exchange, is_finished = self.exchanges.receive(energy)
            if exchange is None:
                continue
            if energy.status is Status.FINAL and self.spans is not None:
                member = exchange.members[name]
                self.spans.final(energy, member.estimate, member.whose)
            if is_finished:
                finished.append(exchange)
        if finished:
            self._finish(finished)

    def receive_totals(self, totals: EngineTotals) -> None:
        """An engine says what its GPUs have used so far; at least once per heartbeat."""
        self._heard_s = time.monotonic()
        self._metrics.totals(totals)
        if totals.covers:  # the meter knows which sensors answer
            self._surroundings = self._surroundings._replace(
                covers=totals.covers, boundary=totals.boundary
            )
        self._use(totals.intensity)
        if self._account_lines is not None:
            self._write(self._account_lines.hear(totals, time.time()))
        if self._drift is not None:
            self._drift.look()
        if totals.factors is not None and self._live is not None:
            self._live.adopt(totals.factors)
        for exchange in self._losses.hear(totals):
            self._lose(exchange)

    def receive_load(self, load: EngineLoad) -> None:
        """An engine says whose requests it holds."""
        self.concurrency.receive(load)

    def _use(self, intensity: CarbonIntensity) -> None:
        """An engine's meter knows what the grid emits: nobody else asks for it."""
        self._metrics.intensity(intensity, intensity.age_s(time.monotonic()))
        self._intensity = intensity
        if self.spans is not None:
            self.spans.intensity = intensity
        for live in filter(None, (self._live, *self._lives.values())):
            live.intensity = intensity

    def receive_record(self, record: RequestRecord) -> None:
        """Another API server answered an exchange, or has its final figures."""
        known = self.records.get(record.id)
        if known is None or not known.is_final:
            self._keep(record)
        if record.is_final:
            self._judge(record)

    def answer(self, exchange: Exchange, answer_id: str) -> None:
        """The client is told an id of its answer."""
        self.exchanges.answer(exchange, answer_id)

    def end(self, exchange: Exchange, answered: bool) -> None:
        """The HTTP side of an exchange is over."""
        exchange.show()
        if self.exchanges.close(exchange, answered):
            self._finish([exchange])
        elif self._share is not None and not exchange.finished:
            self._faults.attempt("record", self._tell, self._share, exchange)

    def _tell(self, share: Sink, exchange: Exchange) -> None:
        """Other API servers know it from now on, whatever is still to come."""
        share(self.record(exchange))

    def _lose(self, exchange: Exchange) -> None:
        """Its final figures will not come: record what is known."""
        self._faults.note("requests_lost", f"the figures of {exchange.id!r} are incomplete")
        self.exchanges.close(exchange, answered=False)
        self.receive_energies(self._losses.figures(exchange))

    def _finish(self, exchanges: Sequence[Exchange]) -> None:
        attempt, given = self._faults.attempt, self._conditionals(exchanges)
        pairs = zip(exchanges, given, strict=True)
        made = [attempt("record", self._record, *pair) for pair in pairs]
        records = [record for record in made if record is not None]
        if self._log is not None or self._otlp_logs is not None:
            lines = [attempt("request_log", request_line, record) for record in records]
            attempt("request_log", self._write, [line for line in lines if line is not None])
        for record in records:
            for sink in self._sinks:
                attempt("record", sink, record)
        for exchange in exchanges:
            attempt("estimator", self._learn, exchange)
            self.exchanges.forget(exchange)

    def _learn(self, exchange: Exchange) -> None:
        live = self._live_of(exchange)
        for member in exchange.members.values():
            if live and member.asked is not None and member.energy is not None:
                whole = exchange.ended_whole(member.energy)
                live.learn(member.asked, member.energy, whole=whole)

    # Sinks of finished records

    def _count(self, record: RequestRecord) -> None:
        self._metrics.record(record)
        self._metrics.estimate_errors(record, error_ratios(record))
        if self.tenants.are_told:
            # Of a request that was refused, nobody checked whose it is.
            is_new = record.energy is None or record.energy.outcome is not Outcome.FAILED
            self._metrics.tenant(record, self.tenants.label(record.whose.tenant, new=is_new))
        if record.whose.adapter:
            self._metrics.adapter(record, self._adapters.of(record.whose.adapter))

    def _judge(self, record: RequestRecord) -> None:
        if self._drift is not None:
            self._drift.observe(record)

    def _keep(self, record: RequestRecord) -> None:
        ids = (*record.internal_ids, *record.external_ids)
        self.records.put(record.id, ids, record)

    def _write(self, made: Sequence[Line]) -> None:
        signed = [self._faults.attempt("receipts", self._sign, line) for line in made]
        lines = [line for line in signed if line is not None]
        if not lines:
            return
        if self._otlp_logs is not None:
            self._faults.attempt("otlp_logs", self._otlp_logs.send, lines)
        if self._log is None:
            return
        written = [self._faults.attempt("request_log", text_of, line) for line in lines]
        texts = [text for text in written if text is not None]
        if not texts:
            return
        try:
            self._log.write("\n".join(texts))
        except OSError as error:
            for _ in texts:
                self._faults.note("request_log", error, "The records are in the metrics only.")

    # Look-ups

    def record(self, exchange: Exchange) -> RequestRecord:
        """An exchange as known now; it has at least one engine request."""
        (conditional,) = self._conditionals([exchange])
        return self._record(exchange, conditional)

    def _record(self, exchange: Exchange, conditional: EnergyEstimate | None) -> RequestRecord:
        return record_of(exchange, self._surroundings, self._intensity, conditional)

    def _conditionals(self, exchanges: Sequence[Exchange]) -> Sequence[EnergyEstimate | None]:
        """Exchanges of one model together."""
        made: dict[int, EnergyEstimate | None] = {}
        for name in {exchange.model for exchange in exchanges}:
            same = [exchange for exchange in exchanges if exchange.model == name]
            live = self._live_of(same[0])
            if live is not None:
                given = self._faults.attempt("estimate", conditionals, same, live) or ()
                made.update(zip(map(id, same), given, strict=False))
        return [made.get(id(exchange)) for exchange in exchanges]

    def find(self, request_id: str, headers: RawHeaders = ()) -> Mapping[str, str]:
        """At most `MOST_FOUND` records under an id: internal id to JSON text.

        An engine's own id leads to its record alone, whatever ids clients have chosen. Where
        requests say whose they are, who asks finds none but those of the same tenant.

        Args:
            request_id: of any kind.
            headers: of who asks.
        """
        name = bounded_id(request_id)
        found: dict[str, Exchange | RequestRecord] = {
            **self.records.find(name),
            **{exchange.id: exchange for exchange in self.exchanges.find(name)},
        }
        may_read = self.tenants.reader(headers)
        found = {key: one for key, one in found.items() if may_read(one.whose.tenant)}
        own = {key: one for key, one in found.items() if name in _internal_ids(one)}
        return {key: self._text(one) for key, one in islice((own or found).items(), MOST_FOUND)}

    def _text(self, found: Exchange | RequestRecord) -> str:
        record = self.record(found) if isinstance(found, Exchange) else found
        return record_text(record, self._sign)

    def knows(self, request_id: str) -> bool:
        """Whether an engine request of this id is in flight or on record."""
        name = bounded_id(request_id)
        return self.exchanges.is_open(name) or bool(self.records.find(name))

    def member(self, internal_id: str) -> Member | None:
        """An engine request in flight."""
        name = bounded_id(internal_id)
        exchanges = self.exchanges.find(name)
        return exchanges[0].members.get(name) if exchanges else None

    @property
    def is_waiting(self) -> bool:
        """Whether final figures may still come."""
        unfinished = self.exchanges.unfinished()
        return not self._engines_are_silent() and not all(one.is_final() for one in unfinished)

    def stop(self) -> None:
        """Finish what the engines have settled, answered or not; then close the files."""
        for exchange in self.exchanges.unfinished():
            if exchange.is_final():
                self._faults.attempt("record", self.end, exchange, answered=False)
            else:
                self._faults.attempt("record", self._lose, exchange)
        self._metrics.tell()
        if self._account_lines is not None:
            self._write(self._account_lines.rest(time.time()))
        if self._log is not None:
            self._log.close()
        if self._otlp_logs is not None:
            self._otlp_logs.stop()


def _internal_ids(found: Exchange | RequestRecord) -> Collection[str]:
    return found.members if isinstance(found, Exchange) else found.internal_ids
