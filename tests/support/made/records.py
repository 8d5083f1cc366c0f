"""Records and totals that no server made, with figures that tests can tell apart."""

from dataclasses import replace
from typing import Any

from llm_carbon_meter.records import (
    AccountJoules,
    CarbonIntensity,
    EnergyEstimate,
    EngineTotals,
    Features,
    GpuTotals,
    HostTotals,
    RequestRecord,
    Source,
    Status,
)
from tests.support.made.energies import booked, energy_of

ENERGY = energy_of(
    "a",
    engine=2,
    accounts=AccountJoules(1.0, 2.0, recompute=0.5, waste=0.25, idle=0.125),
    operational_grams=5.1145833333e-4,
    cached_tokens=4,
    mean_running=1.5,
    decode_steps=4,
    decode_tokens=12,
    water_litres=0.002,
    host_joules=7.2,
    host_source=Source.MEASURED,
)
ESTIMATE = EnergyEstimate("flop", 49.75443148800, 125.3671526400, 100.0, 200.0, 500.0, True, 0.02)
CONDITIONAL = replace(ESTIMATE, decode_joules=100.0, calibration=0.5, out_of_domain="old GPU")
RECORD = RequestRecord(
    id="a",
    external_ids=("mine", "chatcmpl-1"),
    internal_ids=("a", "b"),
    model="llama",
    deployment={"engine": "vllm"},
    energy=ENERGY,
    provisional=booked(replace(ENERGY, status=Status.PROVISIONAL), decode=1.0),
    estimate=ESTIMATE,
    conditional=CONDITIONAL,
    features=Features(1.7e9, 500, 2, 3),
    intensity_g_per_kwh=475.0,
    intensity_source="static",
    zone="world",
    pue=1.2,
    covers="energy of the GPUs alone",
)
ACCOUNT_JOULES = (100.0, 200.0, 10.0, 5.0, 20.0, 60.0, 5.0)

TOTALS = EngineTotals(
    session="first",
    engine=0,
    source=Source.MEASURED,
    gpus=(GpuTotals("GPU-a", 400.0, ACCOUNT_JOULES, ACCOUNT_JOULES, 321.5, 12.5, 0.04),),
    account_grams=tuple(joules / 10 for joules in ACCOUNT_JOULES),
    embodied_grams=tuple(joules / 100 for joules in ACCOUNT_JOULES),
    intensity=CarbonIntensity(475.0, "world", "static"),
    steps={"prefill": 2, "decode": 30, "mixed": 4},
    tokens={"prefill": 500, "decode": 90, "recompute": 0},
    errors={"power": 1},
    sampler_gap_s=0.04,
    sampler_read_s=0.0007,
    account_litres=tuple(joules / 1000 for joules in ACCOUNT_JOULES),
    host=(
        HostTotals(
            "package", Source.MEASURED, 4000.0, tuple(10 * joules for joules in ACCOUNT_JOULES)
        ),
    ),
)


def judged_estimate(raw: float, calibrated: float, *, facility: bool = False) -> EnergyEstimate:
    """An estimate of prefill alone, before and after the calibration."""
    return EnergyEstimate(
        "gnn", raw, 0.0, raw, raw, 1.0, facility, 0.0, calibration=calibrated / raw
    )


def judged_record(measured: float = 10.0, estimated: float = 10.0, **changes: Any) -> RequestRecord:
    """A finished record; its raw estimate is twice the calibrated one, its length unknown.

    Args:
        measured: joules, of prefill alone.
        estimated: joules, calibrated and given the length.
        changes: of the record's estimates, or of its energy.
    """
    estimates = {
        "conditional": judged_estimate(2 * estimated, estimated),
        "estimate": judged_estimate(6 * estimated, 3 * estimated),
    }
    of_record = {name: changes.pop(name, estimate) for name, estimate in estimates.items()}
    of_energy = {"accounts": AccountJoules(prefill=measured), **changes}
    return replace(RECORD, energy=replace(energy_of("a"), **of_energy), **of_record)
