"""What the GPUs draw, what for, and what that emits."""

from typing import Final

from grafana.panels import board, curves, tile
from grafana.queries import (
    SERVER,
    SOURCE,
    account_share,
    joules_rate,
    metric,
    rate,
    watt_hours_per_thousand_tokens,
)

WATTS: Final = metric("gpu_power_watts", SOURCE)
GRAMS: Final = rate("emissions_grams_total", SOURCE, 'scope="operational"')
BOTH_GRAMS: Final = rate("emissions_grams_total", SOURCE)
INTENSITY: Final = metric("carbon_intensity_grams_per_kwh", of=SERVER)
INTENSITY_AGE: Final = metric("carbon_intensity_age_seconds", of=SERVER)

BOARD: Final = board(
    "llm-carbon-meter-overview",
    "LLM energy: overview",
    "Power, energy and emissions of metered servers.",
    [
        tile("Power", "All GPUs now.", "watt", f"sum({WATTS})"),
        tile(
            "Energy per hour", "At the present rate.", "watth", f"sum({joules_rate()})", decimals=1
        ),
        tile("Emissions per hour", "Operational, gCO2eq.", "massg", f"3600 * sum({GRAMS})"),
        tile(
            "Share of idle",
            "Energy while no request ran.",
            "percentunit",
            account_share("idle"),
        ),
        tile(
            "Balance",
            "Sum of all accounts / what the counters say; 100 % or a fault.",
            "percentunit",
            f"min({metric('accounted_ratio')})",
            decimals=4,
        ),
        tile(
            "Grid intensity",
            "In use for the grams.",
            "suffix: g/kWh",
            f"avg({INTENSITY})",
            decimals=0,
        ),
        curves(
            "Power of each GPU",
            "As the sensors show it.",
            "watt",
            (f"sum by (instance, gpu) ({WATTS})", "{{instance}} {{gpu}}"),
        ),
        curves(
            "Power by account",
            "What the energy was for.",
            "watt",
            (f"sum by (account) ({joules_rate()})", "{{account}}"),
            stacked=True,
        ),
        curves(
            "Energy per 1,000 tokens, prefill",
            "Of the requests' own prefill.",
            "watth",
            (watt_hours_per_thousand_tokens("prefill"), "prefill"),
            span=6,
        ),
        curves(
            "Energy per 1,000 tokens, decode",
            "Of the requests' own decode.",
            "watth",
            (watt_hours_per_thousand_tokens("decode"), "decode"),
            span=6,
        ),
        curves(
            "Emissions per hour by account",
            "Operational, gCO2eq.",
            "massg",
            (f"3600 * sum by (account) ({GRAMS})", "{{account}}"),
            span=6,
            stacked=True,
        ),
        curves(
            "Emissions per hour by scope",
            "Of the energy, and of the hardware's making while it was used, gCO2eq.",
            "massg",
            (f"3600 * sum by (scope) ({BOTH_GRAMS})", "{{scope}}"),
            span=6,
            stacked=True,
        ),
        curves(
            "Age of the grid intensity",
            "Since when the figure in use holds; 0: a constant.",
            "s",
            (
                f"max by (zone, provider) ({INTENSITY_AGE})",
                "{{zone}} {{provider}}",
            ),
            span=24,
        ),
    ],
)
