"""Litres of water for joules: what the site evaporates, and what the grid's power stations do.

W = E x (WUE + PUE x EWIF): Li, Yang, Islam and Ren, Making AI Less "Thirsty", arXiv 2304.03271. WUE
is The Green Grid's water usage effectiveness (ISO/IEC 30134-9): litres on the site per kWh of its
computers. EWIF is the electricity's water intensity: litres off the site per kWh of the grid.
"""

from llm_carbon_meter.config import Config
from llm_carbon_meter.units import JOULES_PER_KILOWATT_HOUR


def litres_per_joule(config: Config) -> float | None:
    """Water consumed for a joule of the computers; None where the settings name no factor."""
    site, grid = config.water_litres_per_kwh, config.water_grid_litres_per_kwh
    if site is None and grid is None:
        return None
    return ((site or 0.0) + config.pue * (grid or 0.0)) / JOULES_PER_KILOWATT_HOUR


def water_coverage(config: Config) -> str:
    """What the litres of these settings are of, in words; empty where there are none."""
    parts = {
        "on the site, {:g} l/kWh (WUE)": config.water_litres_per_kwh,
        f"of the grid, {{:g}} l/kWh times PUE {config.pue:g}": config.water_grid_litres_per_kwh,
    }
    named = [text.format(factor) for text, factor in parts.items() if factor is not None]
    return f"water: {', and '.join(named)}" if named else ""
