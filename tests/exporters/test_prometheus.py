"""Metrics as a scraper sees them: exposition text of a fresh registry, parsed again."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from llm_carbon_meter.carbon.money import Prices
from llm_carbon_meter.exporters.prometheus import (
    ENERGY_BUCKETS,
    GRAM_BUCKETS,
    PREFIX,
    PrometheusExporter,
)
from llm_carbon_meter.records import (
    Account,
    CarbonIntensity,
    Cost,
    EnergyEstimate,
    Features,
    GpuTotals,
    RequestRecord,
    Source,
)
from tests.support.made.energies import ENERGY, booked
from tests.support.made.records import ACCOUNT_JOULES, TOTALS

# Names that others rely on. The parser cuts _total off counters.
SPINE = {
    "energy_joules",
    "energy_watt_hours",
    "request_energy_watt_hours",
    "request_emissions_grams",
    "emissions_grams",
    "gpu_power_watts",
    "water_litres",
    "host_energy_joules",
    "carbon_intensity_grams_per_kwh",
    "carbon_intensity_age_seconds",
    "steps",
    "tokens",
    "requests",
    "accounted_ratio",
    "sampler_gap_seconds",
    "sampler_read_seconds",
    "allreduce_modelled_joules",
    "gpu_energy_lag_seconds",
    "errors",
    "estimate_error_ratio",
}
SHARES = ("energy_joules", "emissions_grams", "tokens", "requests")
SOMETIMES = {"unmetered_requests", *(f"adapter_{name}" for name in SHARES)}
DRIFT = {"drift_ratio", "drift_alert"}

RECORD = RequestRecord(
    id="a",
    external_ids=("chatcmpl-1",),
    internal_ids=("a",),
    model="llama",
    deployment={},
    energy=ENERGY,
    provisional=None,
    estimate=EnergyEstimate("flop", 36.0, 36.0, 40.0, 80.0, 5.0, True, 0.02),
    conditional=None,
    features=Features(0.0, 5, 1, 1),
    intensity_g_per_kwh=475.0,
    intensity_source="static",
    zone="world",
    pue=1.0,
    covers="energy of the GPUs alone",
)


def exporter_of(owns_totals: bool = True) -> tuple[PrometheusExporter, CollectorRegistry]:
    """An exporter with a registry of its own."""
    registry = CollectorRegistry()
    return PrometheusExporter("llama", owns_totals=owns_totals, registry=registry), registry


def families(registry: CollectorRegistry) -> Mapping[str, Metric]:
    """What a scraper reads, by name without the prefix."""
    text = generate_latest(registry).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(name.startswith(PREFIX) for name in found)
    return {
        name.removeprefix(PREFIX): family
        for name, family in found.items()
        if not name.endswith("_created")
    }


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """One sample of model llama and engine 0."""
    return registry.get_sample_value(
        PREFIX + name, {"model_name": "llama", "engine": "0", **labels}
    )


def test_every_metric_of_the_contract_is_there_after_one_of_each() -> None:
    """One total and one record feed every name marked spine, and no drift."""
    exporter, registry = exporter_of()
    exporter.totals(TOTALS)
    exporter.record(RECORD)
    exporter.intensity(CarbonIntensity(475.0, "world", "static"), 0.0)
    exporter.estimate_errors(RECORD, {("raw", "conditional"): -0.07})
    found = families(registry)
    assert set(found) == SPINE | DRIFT | SOMETIMES
    assert all(found[name].samples for name in SPINE)
    assert not DRIFT & {name for name, family in found.items() if family.samples}


MODEL = 'model_name="llama"'
MEASURED = 'source="measured"'


def test_golden_exposition_of_the_totals() -> None:
    """Names, types, labels and values of the engine-wide metrics, line by line."""
    exporter, registry = exporter_of()
    exporter.totals(TOTALS)
    lines = [
        line
        for line in generate_latest(registry).decode().splitlines()
        if not line.startswith("# HELP") and "_created" not in line
    ]
    names = ["prefill", "decode", "recompute", "waste", "overhead", "idle", "unattributed"]
    assert [line for line in lines if "meter_energy_joules" in line] == [
        "# TYPE llm_carbon_meter_energy_joules_total counter",
        *(
            "llm_carbon_meter_energy_joules_total"
            f'{{account="{name}",engine="0",gpu="GPU-a",{MODEL},{MEASURED}}} {joules}'
            for name, joules in zip(names, ACCOUNT_JOULES, strict=True)
        ),
    ]
    for line in (
        "# TYPE llm_carbon_meter_gpu_power_watts gauge",
        f'llm_carbon_meter_gpu_power_watts{{engine="0",gpu="GPU-a",{MODEL},{MEASURED}}} 321.5',
        f'llm_carbon_meter_steps_total{{engine="0",{MODEL},phase="mixed"}} 4.0',
        f'llm_carbon_meter_tokens_total{{engine="0",{MODEL},phase="prefill"}} 500.0',
        f'llm_carbon_meter_errors_total{{engine="0",{MODEL},where="power"}} 1.0',
        f'llm_carbon_meter_accounted_ratio{{engine="0",{MODEL}}} 1.0',
        f'llm_carbon_meter_sampler_gap_seconds{{engine="0",{MODEL}}} 0.04',
        f'llm_carbon_meter_host_energy_joules_total{{account="decode",domain="package",engine="0",'
        f"{MODEL},{MEASURED}}} 2000.0",
        f'llm_carbon_meter_water_litres_total{{account="decode",engine="0",{MODEL},'
        f"{MEASURED}}} 0.2",
        f'llm_carbon_meter_emissions_grams_total{{account="decode",engine="0",{MODEL},'
        f'scope="operational",{MEASURED}}} 20.0',
    ):
        assert line in lines


def test_watt_hours_are_the_joules() -> None:
    """Both units of every account agree."""
    exporter, registry = exporter_of()
    exporter.totals(TOTALS)
    for account in Account:
        labels = {"gpu": "GPU-a", "source": "measured", "account": account.label}
        joules = value(registry, "energy_joules_total", **labels)
        watt_hours = value(registry, "energy_watt_hours_total", **labels)
        assert joules == ACCOUNT_JOULES[account]
        assert watt_hours == pytest.approx(joules / 3600)


def test_the_same_totals_twice_add_nothing() -> None:
    """Totals are cumulative: a message that comes again is harmless."""
    exporter, registry = exporter_of()
    exporter.totals(TOTALS)
    once = generate_latest(registry)
    exporter.totals(TOTALS)
    assert generate_latest(registry) == once


def test_lost_messages_lose_no_joules() -> None:
    """After any gap the counters stand where the engine's do."""
    exporter, registry = exporter_of()
    exporter.totals(TOTALS)
    joules = tuple(10 * joules for joules in ACCOUNT_JOULES)
    grown = GpuTotals("GPU-a", 4000.0, joules, joules, 100.0)
    exporter.totals(replace(TOTALS, gpus=(grown,), steps={"prefill": 7}))
    labels = {"gpu": "GPU-a", "source": "measured"}
    assert value(registry, "energy_joules_total", account="decode", **labels) == 2000
    assert value(registry, "steps_total", phase="prefill") == 7
    assert value(registry, "gpu_power_watts", **labels) == 100


def test_a_new_session_starts_at_nothing() -> None:
    """An engine that was started again counts from 0, and the metric goes on."""
    exporter, registry = exporter_of()
    exporter.totals(TOTALS)
    exporter.totals(replace(TOTALS, session="second", errors={"power": 3}))
    labels = {"gpu": "GPU-a", "source": "measured", "account": "prefill"}
    assert value(registry, "energy_joules_total", **labels) == 200
    assert value(registry, "errors_total", where="power") == 4


def test_engines_and_sources_are_kept_apart() -> None:
    """Two engines of one session name do not share a series, nor do measured and modelled."""
    exporter, registry = exporter_of()
    exporter.totals(TOTALS)
    exporter.totals(replace(TOTALS, engine=1, source=Source.MODELLED))
    labels = {"gpu": "GPU-a", "account": "prefill"}
    assert value(registry, "energy_joules_total", source="measured", **labels) == 100
    assert value(registry, "energy_joules_total", source="modelled", **labels) is None
    second = {**labels, "source": "modelled", "engine": "1"}
    assert value(registry, "energy_joules_total", **second) == 100


def test_a_gpu_without_a_power_reading_has_no_gauge() -> None:
    """Unknown is absent, never 0; before the first tick there is no ratio either."""
    exporter, registry = exporter_of()
    silent = GpuTotals("GPU-a", 0.0, (0.0,) * 7, (0.0,) * 7, None)
    exporter.totals(replace(TOTALS, gpus=(silent,)))
    assert value(registry, "gpu_power_watts", gpu="GPU-a", source="measured") is None
    assert value(registry, "accounted_ratio") is None


def test_exchanges_between_gpus_stand_apart_from_the_accounts() -> None:
    """A part of them by GPU; absent, not 0, without tensor parallelism."""
    exporter, registry = exporter_of()
    silent = GpuTotals("GPU-b", 0.0, (0.0,) * 7, (0.0,) * 7, None)
    exporter.totals(replace(TOTALS, gpus=(*TOTALS.gpus, silent)))
    assert value(registry, "allreduce_modelled_joules_total", gpu="GPU-a") == 12.5
    assert value(registry, "allreduce_modelled_joules_total", gpu="GPU-b") is None
    assert value(registry, "sampler_read_seconds") == 0.0007


def test_the_lag_of_a_counter_is_shown_where_it_is_known() -> None:
    """By GPU, whatever its source; absent, not 0, where nobody knows it."""
    exporter, registry = exporter_of()
    unknown = GpuTotals("GPU-b", 0.0, (0.0,) * 7, (0.0,) * 7, None)
    exporter.totals(replace(TOTALS, gpus=(*TOTALS.gpus, unknown)))
    assert value(registry, "gpu_energy_lag_seconds", gpu="GPU-a") == 0.04
    assert value(registry, "gpu_energy_lag_seconds", gpu="GPU-b") is None


def test_only_the_owner_exports_the_totals() -> None:
    """A second API server has the metrics of its requests and of its own errors alone."""
    exporter, registry = exporter_of(owns_totals=False)
    exporter.totals(TOTALS)
    exporter.record(RECORD)
    exporter.error("channel")
    exporter.error("channel")
    assert set(families(registry)) == {
        "request_energy_watt_hours",
        "request_emissions_grams",
        "requests",
        "estimate_error_ratio",
        "errors",
        *SOMETIMES,
    }
    errors = {"model_name": "llama", "engine": "", "where": "channel"}
    assert registry.get_sample_value(PREFIX + "errors_total", errors) == 2


@pytest.mark.parametrize(
    ("phase", "source", "watt_hours"),
    [
        ("prefill", "measured", 0.001),
        ("decode", "measured", 0.002),
        ("total", "measured", 0.003),
        ("prefill", "estimated", 0.01),
        ("total", "estimated", 0.02),
    ],
)
def test_a_record_is_observed_by_phase_and_source(
    phase: str, source: str, watt_hours: float
) -> None:
    """Measured and estimated stand beside each other, never in one series."""
    exporter, registry = exporter_of()
    exporter.record(RECORD)
    labels = {"phase": phase, "source": source}
    total = value(registry, "request_energy_watt_hours_sum", **labels)
    assert total == pytest.approx(watt_hours)
    assert value(registry, "request_energy_watt_hours_count", **labels) == 1


def test_emissions_of_a_record() -> None:
    """Operational grams of both sources, and the exchange counted once."""
    exporter, registry = exporter_of()
    exporter.record(RECORD)
    for source, grams in (("measured", 0.0015), ("estimated", 0.02)):
        labels = {"scope": "operational", "source": source}
        assert value(registry, "request_emissions_grams_sum", **labels) == pytest.approx(grams)
    assert value(registry, "requests_total", quality="counter", outcome="finished") == 1


def test_rare_phases_appear_when_they_happen() -> None:
    """Recompute and waste have no series before a request had any."""
    exporter, registry = exporter_of()
    exporter.record(RECORD)
    rare = {"source": "measured"}
    name = "request_energy_watt_hours_sum"
    assert value(registry, name, phase="waste", **rare) is None
    exporter.record(replace(RECORD, energy=booked(ENERGY, waste=3600.0, recompute=7200.0)))
    assert value(registry, name, phase="waste", **rare) == 1
    assert value(registry, name, phase="recompute", **rare) == 2


def test_a_record_without_energy_counts_nothing() -> None:
    """A bare 0 would be a lie."""
    exporter, registry = exporter_of()
    exporter.record(replace(RECORD, energy=None))
    assert value(registry, "requests_total", quality="counter", outcome="finished") is None


def test_no_label_names_a_request() -> None:
    """Series must not grow with requests."""
    exporter, registry = exporter_of()
    for number in range(50):
        exporter.totals(TOTALS)
        exporter.record(replace(RECORD, id=f"r{number}", external_ids=(f"x{number}",)))
    samples = [sample for family in families(registry).values() for sample in family.samples]
    labels = {name for sample in samples for name in sample.labels}
    allowed = {"model_name", "engine", "gpu", "domain", "source", "account", "scope", "phase"}
    assert labels == allowed | {"quality", "outcome", "where", "le"}


@pytest.mark.parametrize(
    ("buckets", "low", "high"), [(ENERGY_BUCKETS, 1e-7, 10.0), (GRAM_BUCKETS, 1e-8, 10.0)]
)
def test_buckets_are_logarithmic_and_readable(
    buckets: tuple[float, ...], low: float, high: float
) -> None:
    """Three a decade between the ends, and no 9.999999e-7 among them."""
    assert (buckets[0], buckets[-1]) == (low, high)
    assert list(buckets) == sorted(buckets)
    digits = {Decimal(repr(bucket)).normalize().as_tuple().digits for bucket in buckets}
    assert digits == {(1,), (2,), (5,)}


def test_the_constant_intensity_is_shown() -> None:
    """Zone and provider are labels; a constant has age 0."""
    exporter, registry = exporter_of()
    exporter.intensity(CarbonIntensity(475.0, "world", "static"), 0.0)
    labels: dict[str, Any] = {"engine": "", "zone": "world", "provider": "static"}
    assert value(registry, "carbon_intensity_grams_per_kwh", **labels) == 475
    assert value(registry, "carbon_intensity_age_seconds", **labels) == 0


def test_errors_of_estimates_are_signed() -> None:
    """Too little is below the bucket of 0, too much above; stage and basis stay apart."""
    exporter, registry = exporter_of()
    exporter.estimate_errors(
        RECORD, {("raw", "conditional"): -0.07, ("calibrated", "end_to_end"): 0.3}
    )
    bucket, raw = "estimate_error_ratio_bucket", {"stage": "raw", "basis": "conditional"}
    assert value(registry, bucket, le="-0.1", **raw) == 0
    assert value(registry, bucket, le="-0.05", **raw) == 1
    told = {"stage": "calibrated", "basis": "end_to_end"}
    assert value(registry, bucket, le="0.2", **told) == 0
    assert value(registry, bucket, le="0.3", **told) == 1
    assert value(registry, "estimate_error_ratio_count", **told) == 1
    assert value(registry, bucket, le="+Inf", stage="raw", basis="end_to_end") is None


def test_drift_stands_beside_the_series_that_can_alarm() -> None:
    """A ratio for each series, the alarm for one of them, by engine."""
    exporter, registry = exporter_of()
    told, raw = ("calibrated", "conditional"), ("raw", "conditional")
    exporter.drift(1, {told: -0.3, raw: 0.4}, {told: 1.0})
    labels = {"engine": "1", "stage": "calibrated", "basis": "conditional"}
    assert value(registry, "drift_ratio", **labels) == -0.3
    assert value(registry, "drift_alert", **labels) == 1
    assert value(registry, "drift_ratio", **{**labels, "stage": "raw"}) == 0.4
    assert value(registry, "drift_alert", **{**labels, "stage": "raw"}) is None


def test_a_scrape_sees_all_of_an_update_or_nothing() -> None:
    """While totals are counted by one thread, the accounts that another reads add up."""
    registry = CollectorRegistry()
    exporter = PrometheusExporter("llama", owns_totals=True, registry=registry)
    stop = threading.Event()

    def count() -> None:
        factor = 1.0
        while not stop.is_set():
            factor += 1.0
            (gpu,) = TOTALS.gpus
            accounts = tuple(joules * factor for joules in ACCOUNT_JOULES)
            exporter.totals(replace(TOTALS, gpus=(replace(gpu, account_joules=accounts),)))

    counting = threading.Thread(target=count)
    counting.start()
    try:
        for _ in range(300):
            joules = [
                sample.value
                for family in registry.collect()
                if family.name == PREFIX + "energy_joules"
                for sample in family.samples
                if sample.name.endswith("_total")
            ]
            assert sum(joules) % 400.0 == pytest.approx(0, abs=1e-6)
    finally:
        stop.set()
        counting.join()


def priced() -> tuple[PrometheusExporter, CollectorRegistry]:
    """With tenants a and b, and prices."""
    registry = CollectorRegistry()
    exporter = PrometheusExporter(
        "llama",
        owns_totals=True,
        registry=registry,
        prices=Prices("EUR", (3.6,), 36.0, 2.0),
        tenants=("a", "b"),
    )
    return exporter, registry


def test_a_tenant_has_what_its_requests_used() -> None:
    """Joules, grams, tokens, requests and money; those of a closed list exist before any."""
    exporter, registry = priced()
    exporter.totals(TOTALS)
    assert value(registry, "tenant_energy_joules_total", tenant="a", source="measured") == 0.0
    record = replace(RECORD, energy=replace(ENERGY, engine=0), cost=Cost(0.25, 0.5, "EUR"))
    for _ in range(2):
        exporter.tenant(record, "a")
    exporter.adapter(record, "mine")
    for whose, name, times in (("tenant", "a", 2), ("adapter", "mine", 1)):
        labels = {whose: name, "source": "measured"}
        for metric, figure in (
            ("energy_joules", ENERGY.joules),
            ("emissions_grams", ENERGY.operational_grams),
            ("tokens", ENERGY.prompt_tokens + ENERGY.output_tokens),
            ("requests", 1),
        ):
            found = value(registry, f"{whose}_{metric}_total", **labels)
            assert found == pytest.approx(times * figure), metric
        for kind, money in (("energy", 0.25), ("gpu", 0.5)):
            cost = value(registry, f"{whose}_cost_total", kind=kind, currency="EUR", **labels)
            assert cost == times * money


def test_every_account_costs_what_its_joules_and_seconds_cost() -> None:
    """Idle too; an account's next totals cost what they have more."""
    exporter, registry = priced()
    exporter.totals(TOTALS)
    gpu = replace(TOTALS.gpus[0], account_joules=tuple(2 * joules for joules in ACCOUNT_JOULES))
    exporter.totals(replace(TOTALS, gpus=(gpu,)))
    labels = {"account": "idle", "currency": "EUR", "source": "measured"}
    energy = value(registry, "cost_total", kind="energy", **labels)
    assert energy == pytest.approx(2 * 60.0 / 3.6e6 * 2.0 * 3.6)
    assert value(registry, "cost_total", kind="gpu", **labels) == pytest.approx(60.0 / 3600 * 36.0)


def test_who_asks_for_no_tenants_and_prices_has_no_such_metrics() -> None:
    """They are absent, not 0."""
    exporter, registry = exporter_of()
    exporter.totals(TOTALS)
    exporter.tenant(RECORD, "a")
    assert not [name for name in families(registry) if "tenant" in name or "cost" in name]
