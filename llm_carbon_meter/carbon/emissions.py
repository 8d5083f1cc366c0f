"""Grams of CO2 equivalent: operational (Eq 1 of the LLMCO2 paper) and embodied.

Embodied, as the SCI specification (ISO/IEC 21031) has it: M = TE x time reserved / lifetime, with
the GPU's seconds divided among requests as a step's joules are.
"""

import tomllib
from functools import cache
from importlib import resources
from typing import Any, Final

from llm_carbon_meter.carbon.water import water_coverage
from llm_carbon_meter.config import Config
from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.records import CPU, GPU, CarbonIntensity
from llm_carbon_meter.units import JOULES_PER_KILOWATT_HOUR

GRAMS_PER_KILOGRAM: Final = 1000.0
OF: Final = {
    GPU: "the GPUs alone",
    CPU: "the host's CPU packages and memory, with all that runs there",
}
SECONDS_PER_YEAR: Final = 365 * 86_400.0


def operational_grams(joules: float, intensity: CarbonIntensity, pue: float) -> float:
    """Eq 1: energy [kWh] x PUE x carbon intensity [gCO2eq/kWh]."""
    return joules / JOULES_PER_KILOWATT_HOUR * pue * intensity.grams_per_kwh


@cache
def _sources() -> dict[str, Any]:
    text = resources.files("llm_carbon_meter.data").joinpath("embodied.toml").read_text("utf-8")
    return tomllib.loads(text)


def embodied_rate(method: str, gpu: GpuSpec, *, host: bool) -> float | None:
    """Grams that the making of a GPU costs in each second of its life, always on.

    Args:
        method: ``llmcarbon`` (die area x kg/cm2 of the process), ``pcf`` (product footprints), or
            ``none``.
        gpu: its die area and process; a part of a GPU has its part of all.
        host: with its share of a server.
    """
    if method == "none":
        return None
    entry = _sources()[method]
    kilograms: float = entry.get("gpu_kg") or gpu.die_area_cm2 * _per_cm2(entry, gpu.process_nm)
    if host:
        kilograms += entry["host_kg"] / entry["host_gpus"]
    lifetime_s: float = entry["lifetime_years"] * SECONDS_PER_YEAR
    return gpu.part * kilograms * GRAMS_PER_KILOGRAM / lifetime_s


def _per_cm2(entry: dict[str, Any], process_nm: float) -> float:
    """Of the nearest process that the source has."""
    nodes = entry["kg_per_cm2"]
    nearest = min(nodes, key=lambda node: abs(float(node) - process_nm))
    return float(nodes[nearest])


def coverage(config: Config, boundary: str = GPU, part: str = "", host: str = "") -> str:
    """What the figures of these settings are of, in words.

    Args:
        config: settings.
        boundary: what the joules are of.
        part: of these, that is this engine's; empty for all.
        host: what the host's joules are of; empty where there are none.
    """
    operational = f"energy of {OF[boundary]}{part}, grams times PUE {config.pue:g}"
    embodied = _embodied(config) if boundary == GPU else ""
    return "; ".join(filter(None, (operational, embodied, water_coverage(config), host)))


def _embodied(config: Config) -> str:
    if config.embodied == "none":
        return ""
    host = ", and its share of a server" if config.embodied_host else ""
    return f"embodied: {_sources()[config.embodied]['covers']}{host} ({config.embodied})"
