"""Operational emissions (Eq 1 of the LLMCO2 paper)."""

from llm_carbon_meter.records import CarbonIntensity
from llm_carbon_meter.units import JOULES_PER_KILOWATT_HOUR


def operational_grams(joules: float, intensity: CarbonIntensity, pue: float) -> float:
    """Eq 1: energy [kWh] x PUE x carbon intensity [gCO2eq/kWh]."""
    return joules / JOULES_PER_KILOWATT_HOUR * pue * intensity.grams_per_kwh
