"""What single requests cost, and how that compares with what was estimated."""

from typing import Final

from grafana.panels import board, curves, heat_map, tile
from grafana.queries import REQUEST_ENERGY, SOURCE, TOTAL, mean, metric, quantile, rate, share

FINISHED: Final = rate("requests_total")
PHASE: Final = 'phase!="total"'
ESTIMATED: Final = 'source="estimated"'
BOTH: Final = 'source=~"$source|estimated"'

BOARD: Final = board(
    "llm-carbon-meter-requests",
    "LLM energy: requests",
    "Energy of single requests, measured beside estimated.",
    [
        tile("Requests", "Finished exchanges per second.", "reqps", f"sum({FINISHED})"),
        tile("Energy per request", "Mean.", "watth", mean(REQUEST_ENERGY, "", TOTAL, SOURCE)),
        tile(
            "Energy, p50",
            "Half cost less.",
            "watth",
            quantile(0.5, REQUEST_ENERGY, "le", TOTAL, SOURCE),
        ),
        tile(
            "Energy, p95",
            "One in twenty costs more.",
            "watth",
            quantile(0.95, REQUEST_ENERGY, "le", TOTAL, SOURCE),
        ),
        tile(
            "Emissions per request",
            "gCO2eq, mean.",
            "massg",
            mean("request_emissions_grams", "", 'scope="operational"', SOURCE),
        ),
        tile(
            "Estimated / measured",
            "Ratio of the means, lengths guessed before.",
            "percentunit",
            share(
                mean(REQUEST_ENERGY, "", TOTAL, ESTIMATED), mean(REQUEST_ENERGY, "", TOTAL, SOURCE)
            ),
        ),
        heat_map(
            "Energy of requests",
            "How many cost how much.",
            "watth",
            f"sum by (le) (increase({metric(REQUEST_ENERGY + '_bucket', TOTAL, SOURCE)}"
            "[$__rate_interval]))",
        ),
        curves(
            "Quantiles of energy",
            "p50 and p95 of requests.",
            "watth",
            *(
                (quantile(q, REQUEST_ENERGY, "le, model_name", TOTAL, SOURCE), legend)
                for q, legend in ((0.5, "{{model_name}} p50"), (0.95, "{{model_name}} p95"))
            ),
        ),
        curves(
            "Estimated against measured",
            "Mean energy of a request.",
            "watth",
            (mean(REQUEST_ENERGY, "source", TOTAL, BOTH), "{{source}}"),
        ),
        curves(
            "Mean energy by phase",
            "Prefill and decode of a request.",
            "watth",
            (mean(REQUEST_ENERGY, "phase", PHASE, SOURCE), "{{phase}}"),
        ),
        curves(
            "Requests by quality",
            "How far their figures can be trusted.",
            "reqps",
            (f"sum by (quality) ({FINISHED})", "{{quality}}"),
            stacked=True,
        ),
        curves(
            "Requests by outcome",
            "How they ended.",
            "reqps",
            (f"sum by (outcome) ({FINISHED})", "{{outcome}}"),
            stacked=True,
        ),
    ],
)
