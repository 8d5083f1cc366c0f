"""What metrics are called. Receives finished records and counts them; the registry is a parameter.

Ordinary counters, gauges and histograms only, so that they also work in multi-process mode.
One process exports the engine-wide totals; each exports the exchanges that it answered.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from tempfile import TemporaryFile
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

from llm_carbon_meter.carbon.money import Prices
from llm_carbon_meter.config import metrics_folder
from llm_carbon_meter.exporters.shares import COST, COST_TEXT, FIGURES, Share, Shares
from llm_carbon_meter.records import (
    Account,
    CarbonIntensity,
    ConfigError,
    EnergyEstimate,
    EngineTotals,
    GpuTotals,
    RequestEnergy,
    RequestRecord,
    Source,
)
from llm_carbon_meter.units import watt_hours

PREFIX: Final = "llm_carbon_meter_"
COMMON: Final = ("model_name", "engine")


def _decades(low: int, high: int) -> tuple[float, ...]:
    """1, 2, 5 of every decade from 10^low to 10^high."""
    steps = (float(f"{base}e{power}") for power in range(low, high) for base in (1, 2, 5))
    return (*steps, 10.0**high)


ENERGY_BUCKETS: Final = _decades(-7, 1)
"""Wh"""
GRAM_BUCKETS: Final = _decades(-8, 1)
ERROR_BUCKETS: Final = (
    *(-0.9, -0.75, -0.5, -0.4, -0.3, -0.2, -0.15, -0.1, -0.05, -0.02, 0.0),
    *(0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
"""Signed: (estimated - measured) / measured, -1 at the least."""


def check_metrics_folder() -> None:
    """Try the folder in which prometheus_client keeps the metrics of several processes, if any.

    Raises:
        ConfigError: nothing can be written there.
    """
    folder = metrics_folder()
    if folder is None:
        return
    try:
        with TemporaryFile(dir=folder or "."):
            pass
    except OSError as error:
        raise ConfigError(
            f"PROMETHEUS_MULTIPROC_DIR={folder}: metrics cannot be written there "
            f"({error.strerror}); make it a folder that can be written, or unset it"
        ) from None


class PrometheusExporter:
    """The metrics of one process.

    Args:
        model_name: label of every metric, as vLLM's own.
        owns_totals: whether this process exports the engine-wide metrics.
        registry: where they are registered.
        prices: of energy and GPUs; None where none is known.
        tenants: that are shown from the start; None where requests have none.
        models: of a server that has several: their requests have their names.

    Raises:
        ConfigError: metrics cannot be written to the folder that the environment names.

    Example:
        >>> registry = CollectorRegistry()
        >>> exporter = PrometheusExporter("m", owns_totals=True, registry=registry)
        >>> exporter.error("channel")
        >>> registry.get_sample_value(
        ...     "llm_carbon_meter_errors_total",
        ...     {"model_name": "m", "engine": "", "where": "channel"},
        ... )
        1.0
    """

    def __init__(
        self,
        model_name: str,
        *,
        owns_totals: bool,
        registry: CollectorRegistry = REGISTRY,
        prices: Prices | None = None,
        tenants: Sequence[str] | None = None,
        models: Collection[str] = (),
    ) -> None:
        check_metrics_folder()
        self._model_name = model_name
        self._updating = threading.RLock()
        self._metrics: list[Counter | Gauge | Histogram] = []
        self._known: dict[tuple[object, ...], Any] = {}
        """Series that were counted."""
        self._seen: dict[tuple[Any, ...], float] = {}
        """Last cumulative value of each series, by engine session."""
        self._request_metrics()
        self._prices = prices
        self._models = models
        self._by_adapter = self._shares("adapter")
        self._by_tenant = None if tenants is None else self._shares("tenant")
        self._tenants = tenants or ()
        self._grid: tuple[str, ...] | None = None
        """Labels of the intensity that is shown."""
        self._errors = self._counter("errors_total", "Errors of the meter by place", "where")
        self._owns_totals = owns_totals
        self._cost: Counter | None = None
        if owns_totals:
            self._total_metrics()
        registry.register(_Together(self._metrics, self._updating, self.tell))

    def _request_metrics(self) -> None:
        self._request_energy = self._histogram(
            "request_energy_watt_hours",
            "Energy of an exchange by phase; `total` is all phases",
            ENERGY_BUCKETS,
            "phase",
            "source",
        )
        self._request_grams = self._histogram(
            "request_emissions_grams", "gCO2eq of an exchange", GRAM_BUCKETS, "scope", "source"
        )
        self._requests = self._counter("requests_total", "Finished exchanges", "quality", "outcome")
        self._unmetered = self._counter(
            "unmetered_requests_total", "Requests that a proxy passed on without metering", "path"
        )
        self._errors_of_estimates = self._histogram(
            "estimate_error_ratio",
            "(estimated - measured) / measured; `conditional`: given length and company",
            ERROR_BUCKETS,
            "stage",
            "basis",
        )

    def _total_metrics(self) -> None:
        self._joules = self._counter(
            "energy_joules_total", "Energy of the GPUs by account", "gpu", "source", "account"
        )
        self._watt_hours = self._counter(
            "energy_watt_hours_total", "The same in watt-hours", "gpu", "source", "account"
        )
        self._host_joules = self._counter(
            "host_energy_joules_total",
            "This engine's share of the host's energy beside its GPUs; in no other metric",
            "domain",
            "source",
            "account",
        )
        self._allreduce = self._counter(
            "allreduce_modelled_joules_total",
            "Part of the accounts' energy that went by while GPUs exchanged results, as modelled; "
            "never to be added to them",
            "gpu",
        )
        self._grams = self._counter(
            "emissions_grams_total", "gCO2eq by account", "scope", "account", "source"
        )
        self._litres = self._counter(
            "water_litres_total", "Water consumed for the energy, by account", "account", "source"
        )
        if self._prices is not None:
            self._cost = self._counter(
                "cost_total",
                "Money for the energy (PUE included) and for the time of the GPUs by account",
                "kind",
                "account",
                "currency",
                "source",
            )
        self._watts = self._gauge("gpu_power_watts", "Power of a GPU now", "gpu", "source")
        self._lag = self._gauge(
            "gpu_energy_lag_seconds",
            "How late a GPU's counter shows what was drawn: learnt, set, or known of its type",
            "gpu",
        )
        self._steps = self._counter("steps_total", "Engine steps", "phase")
        self._tokens = self._counter("tokens_total", "Tokens computed", "phase")
        self._ratio = self._gauge(
            "accounted_ratio", "Sum of all accounts / increments of the counters"
        )
        self._drift_metrics()
        self._sampler_metrics()

    def _drift_metrics(self) -> None:
        self._drift_ratio = self._gauge(
            "drift_ratio",
            "(sum estimated - sum measured) / sum measured of the latest requests; NaN where too "
            "few are left",
            "stage",
            "basis",
        )
        self._drift_alert = self._gauge(
            "drift_alert", "1 while drift_ratio is beyond the threshold, else 0", "stage", "basis"
        )

    def _sampler_metrics(self) -> None:
        self._gap = self._gauge("sampler_gap_seconds", "Seconds since the last reading")
        self._read = self._gauge(
            "sampler_read_seconds", "Seconds that a reading of all GPUs takes, of late"
        )
        self._intensity = self._gauge(
            "carbon_intensity_grams_per_kwh", "gCO2eq per kWh in use", "zone", "provider"
        )
        self._intensity_age = self._gauge(
            "carbon_intensity_age_seconds",
            "Age of that figure; 0 for a constant",
            "zone",
            "provider",
        )

    def _shares(self, whose: str) -> Shares:
        counters = {
            name: self._counter(f"{whose}_{name}", text.format(whose), whose, "source")
            for name, text in FIGURES.items()
        }
        cost = None
        if self._prices is not None:
            labels = (whose, "source", "kind", "currency")
            cost = self._counter(f"{whose}_{COST}", COST_TEXT.format(whose), *labels)
        return Shares(counters, cost)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        metric = Counter(PREFIX + name, text, (*COMMON, *labels), registry=None)
        self._metrics.append(metric)
        return metric

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        metric = Gauge(
            PREFIX + name,
            text,
            (*COMMON, *labels),
            registry=None,
            multiprocess_mode="livemostrecent",
        )
        self._metrics.append(metric)
        return metric

    def _series(self, metric: Any, *labels: str) -> Any:
        """One series of a metric; the library's own look-up takes most of the time to count."""
        key = (id(metric), *labels)
        series = self._known.get(key)
        if series is None:
            series = self._known[key] = metric.labels(*labels)
        return series

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        metric = Histogram(PREFIX + name, text, (*COMMON, *labels), registry=None, buckets=buckets)
        self._metrics.append(metric)
        return metric

    # What comes in

    def totals(self, totals: EngineTotals) -> None:
        """Count an engine's cumulative totals, where this process is the one that does."""
        self.tell()  # once a second, for those who read several processes' files
        if self._owns_totals:
            with self._updating:
                self._count_totals(totals)

    def error(self, where: str) -> None:
        """Count an error of this process."""
        self._series(self._errors, self._model_name, "", where).inc()

    def intensity(self, intensity: CarbonIntensity, age_s: float) -> None:
        """Show the grid's intensity, where this process exports the engine-wide metrics."""
        if not self._owns_totals:
            return
        labels = (self._model_name, "", intensity.zone, intensity.provider)
        with self._updating:
            if self._grid not in (None, labels):  # what held before holds no more
                self._series(self._intensity, *self._grid).set(float("nan"))
                self._series(self._intensity_age, *self._grid).set(float("nan"))
            self._grid = labels
            self._series(self._intensity, *labels).set(intensity.grams_per_kwh)
            self._series(self._intensity_age, *labels).set(age_s)

    def record(self, record: RequestRecord) -> None:
        """Count a finished exchange."""
        energy = record.energy
        if energy is None:
            return
        common = (self._model_of(record), str(energy.engine))
        self._series(self._requests, *common, energy.quality, energy.outcome).inc()
        self._observe(common, _phases(energy), energy.source)
        self._observe_grams(common, energy, energy.source)
        if record.estimate is not None:
            shown = record.estimate.calibrated
            self._observe(common, _estimated_phases(shown), Source.ESTIMATED)
            self._observe_grams(common, shown, Source.ESTIMATED)

    def _model_of(self, record: RequestRecord) -> str:
        """One that the server told; clients may ask for any."""
        return record.model if record.model in self._models else self._model_name

    def unmetered(self, path: str) -> None:
        """Count a request that nobody meters."""
        self._series(self._unmetered, self._model_name, "", path).inc()

    def tenant(self, record: RequestRecord, label: str) -> None:
        """Count a finished exchange for its tenant, where requests have one."""
        if self._by_tenant is not None:
            self._add(self._by_tenant, record, label)

    def adapter(self, record: RequestRecord, label: str) -> None:
        """Count a finished exchange for its adapter."""
        self._add(self._by_adapter, record, label)

    def _add(self, shares: Shares, record: RequestRecord, label: str) -> None:
        energy = record.energy
        if energy is not None:
            share = Share(self._model_of(record), str(energy.engine), label, energy.source)
            shares.add(share, energy, record.cost)

    def tell(self) -> None:
        """Let scrapes see what tenants and adapters have had since the last time."""
        with self._updating:
            self._by_adapter.tell()
            if self._by_tenant is not None:
                self._by_tenant.tell()

    def estimate_errors(
        self, record: RequestRecord, ratios: Mapping[tuple[str, str], float]
    ) -> None:
        """Count how far the estimates of a finished exchange were off, by stage and basis."""
        if record.energy is None:
            return
        for (stage, basis), ratio in ratios.items():
            labels = (self._model_of(record), str(record.energy.engine), stage, basis)
            self._series(self._errors_of_estimates, *labels).observe(ratio)

    def drift(
        self,
        engine: int,
        ratios: Mapping[tuple[str, str], float],
        alerts: Mapping[tuple[str, str], float],
    ) -> None:
        """Show how far an engine's estimates have drifted, by stage and basis."""
        for gauge, values in ((self._drift_ratio, ratios), (self._drift_alert, alerts)):
            for series, value in values.items():
                self._series(gauge, self._model_name, str(engine), *series).set(value)

    def _observe_grams(
        self, common: tuple[str, str], figures: RequestEnergy | EnergyEstimate, source: Source
    ) -> None:
        grams = {"operational": figures.operational_grams, "embodied": figures.embodied_grams}
        for scope, value in grams.items():
            if value is not None:
                self._series(self._request_grams, *common, scope, source).observe(value)

    def _observe(
        self, common: tuple[str, str], phases: Mapping[str, float], source: Source
    ) -> None:
        for phase, joules in phases.items():
            self._series(self._request_energy, *common, phase, source).observe(watt_hours(joules))

    def _count_totals(self, totals: EngineTotals) -> None:
        common, session = (self._model_name, str(totals.engine)), totals.session
        if self._by_tenant is not None:
            self._by_tenant.begin(Share(*common, tenant, totals.source) for tenant in self._tenants)
        for gpu in totals.gpus:
            self._count_gpu(session, (*common, gpu.gpu, totals.source), gpu)
        scopes = {"operational": totals.account_grams, "embodied": totals.embodied_grams}
        for scope, grams in scopes.items():
            for account, amount in zip(Account, grams, strict=False):  # none where it is left out
                series = (*common, scope, account.label, totals.source.value)
                self._raise(self._grams, session, series, amount)
        for domain in totals.host:
            for account in Account:
                series = (*common, domain.domain, domain.source.value, account.label)
                self._raise(self._host_joules, session, series, domain.account_joules[account])
        for account, litres in zip(Account, totals.account_litres, strict=False):
            labels = (*common, account.label, totals.source.value)
            self._raise(self._litres, session, labels, litres)
        for counter, values in (
            (self._steps, totals.steps),
            (self._tokens, totals.tokens),
            (self._errors, totals.errors),
        ):
            for label, value in values.items():
                self._raise(counter, session, (*common, label), value)
        if totals.accounted_ratio is not None:
            self._series(self._ratio, *common).set(totals.accounted_ratio)
        self._series(self._gap, *common).set(totals.sampler_gap_s)
        self._series(self._read, *common).set(totals.sampler_read_s)

    def _count_gpu(self, session: str, labels: tuple[str, ...], gpu: GpuTotals) -> None:
        for account in Account:
            joules, series = gpu.account_joules[account], (*labels, account.label)
            if self._cost is not None:
                self._count_cost(session, series, joules, gpu.account_seconds[account])
            self._raise(self._joules, session, series, joules)
            self._raise(self._watt_hours, session, series, watt_hours(joules))
        model_name, engine, name, _source = labels
        allreduce = gpu.allreduce_modelled_joules
        if allreduce is not None:
            self._raise(self._allreduce, session, (model_name, engine, name), allreduce)
        if gpu.watts is not None:
            self._series(self._watts, *labels).set(gpu.watts)
        if gpu.counter_lag_s is not None:
            self._series(self._lag, model_name, engine, name).set(gpu.counter_lag_s)

    def _count_cost(
        self, session: str, series: tuple[str, ...], joules: float, seconds: float
    ) -> None:
        """At the prices of now."""
        assert self._prices is not None
        assert self._cost is not None
        cost = self._prices.cost(
            self._growth((session, "cost of joules", *series), joules) or 0.0,
            self._growth((session, "cost of seconds", *series), seconds) or 0.0,
            time.time(),
        )
        model_name, engine, _gpu, source, account = series
        for kind, money in cost.by_kind.items():
            labels = (model_name, engine, kind, account, cost.currency, source)
            self._series(self._cost, *labels).inc(money)

    def _raise(self, counter: Counter, session: str, labels: tuple[str, ...], value: float) -> None:
        """Bring a counter up to a cumulative value; an engine's new session begins at 0 again."""
        grown = self._growth((session, id(counter), *labels), value)
        if grown is not None:
            self._series(counter, *labels).inc(grown)

    def _growth(self, series: tuple[Any, ...], value: float) -> float | None:
        """By how much a cumulative value is more than what was counted of it.

        A message that comes late is older than that, and gives None.
        """
        before = self._seen.get(series)
        if before is not None and value <= before:
            return None
        self._seen[series] = value
        return value - (before or 0.0)


class _Together(Collector):
    """Metrics whose values change together: a scrape sees all of an update or nothing of it."""

    def __init__(
        self,
        metrics: Sequence[Counter | Gauge | Histogram],
        updating: threading.RLock,
        before: Callable[[], None],
    ) -> None:
        self._before = before
        self._metrics = metrics
        self._updating = updating

    def describe(self) -> Iterable[Metric]:
        """The metrics' names, so that nobody else registers them."""
        return [family for metric in self._metrics for family in metric.describe()]

    def collect(self) -> Iterable[Metric]:
        """The metrics' values at one moment."""
        with self._updating:
            self._before()
            return [family for metric in self._metrics for family in metric.collect()]


def _phases(energy: RequestEnergy) -> Mapping[str, float]:
    joules = energy.accounts
    phases = {"prefill": joules.prefill, "decode": joules.decode, "total": joules.total}
    rare = {"recompute": joules.recompute, "waste": joules.waste}
    return phases | {name: value for name, value in rare.items() if value}


def _estimated_phases(estimate: EnergyEstimate) -> Mapping[str, float]:
    return {
        "prefill": estimate.prefill_joules,
        "decode": estimate.decode_joules,
        "total": estimate.joules,
    }
