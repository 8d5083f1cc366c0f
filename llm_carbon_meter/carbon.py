"""Joules to grams of CO2 equivalent (Eq 1 of the LLMCO2 paper), operational only."""

from dataclasses import dataclass

from llm_carbon_meter.units import JOULES_PER_KILOWATT_HOUR


@dataclass(frozen=True, slots=True)
class CarbonIntensity:
    """What a kilowatt-hour of a grid emits."""

    grams_per_kwh: float
    zone: str
    provider: str
    valid_since_s: float | None = None
    """Monotonic time of the last answer; None for a constant."""


def operational_grams(joules: float, intensity: CarbonIntensity, pue: float) -> float:
    """Eq 1: energy [kWh] x PUE x carbon intensity [gCO2eq/kWh]."""
    return joules / JOULES_PER_KILOWATT_HOUR * pue * intensity.grams_per_kwh
