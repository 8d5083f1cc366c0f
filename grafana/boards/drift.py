"""Whether the estimates can be believed, and the meter itself."""

from typing import Final

from grafana.panels import board, curves, tile
from grafana.queries import SERVER, account_share, metric, quantile, rate

CALIBRATED: Final = 'stage="calibrated"'
GIVEN_LENGTH: Final = (CALIBRATED, 'basis="conditional"')
RATIO: Final = metric("drift_ratio")
GAP: Final = metric("sampler_gap_seconds")
READ: Final = metric("sampler_read_seconds")
UNATTRIBUTED: Final = account_share("unattributed")

BOARD: Final = board(
    "llm-carbon-meter-drift",
    "LLM energy: drift and health",
    "Whether estimates and measurements can be believed.",
    [
        tile(
            "Drift",
            "|sum estimated - sum measured| / sum measured, calibrated, with forecast or with true "
            "lengths; the worst engine.",
            "percentunit",
            f"max(abs({metric('drift_ratio', CALIBRATED)}))",
            decimals=1,
        ),
        tile(
            "Drift alarm",
            "Of the server itself, with its own threshold, on either basis.",
            "none",
            f"max({metric('drift_alert')})",
            bad_above=1,
            names=("fine", "drifting"),
        ),
        tile("Sampler gap", "Since the last reading.", "s", f"max({GAP})", bad_above=10),
        tile("Time of a reading", "Of all GPUs.", "s", f"max({READ})"),
        tile(
            "Unattributed",
            "Energy that could not be placed.",
            "percentunit",
            UNATTRIBUTED,
            bad_above=0.05,
        ),
        tile(
            "Errors",
            "Of the meter, since it started.",
            "none",
            f"sum({metric('errors_total', of=SERVER)}) or vector(0)",
            bad_above=1,
        ),
        curves(
            "Drift over time",
            "(sum estimated - sum measured) / sum measured; end_to_end guesses the length too.",
            "percentunit",
            (f"avg by (stage, basis, engine) ({RATIO})", "{{stage}} {{basis}} {{engine}}"),
            signed=True,
        ),
        curves(
            "Errors of estimates",
            "Quantiles over requests, calibrated, given the true lengths.",
            "percentunit",
            *(
                (quantile(q, "estimate_error_ratio", "le", *GIVEN_LENGTH), f"p{100 * q:.0f}")
                for q in (0.1, 0.5, 0.9)
            ),
            signed=True,
        ),
        curves(
            "Sampler",
            "Gap between readings, and what one takes.",
            "s",
            (f"max by (instance, engine) ({GAP})", "gap {{engine}}"),
            (
                f"max by (instance, engine) ({READ})",
                "reading {{engine}}",
            ),
            span=8,
        ),
        curves(
            "Errors by place",
            "Errors of the meter per second; serving goes on.",
            "cps",
            (f"sum by (where) ({rate('errors_total', of=SERVER)})", "{{where}}"),
            span=8,
        ),
        curves(
            "Unattributed energy",
            "Share of all energy.",
            "percentunit",
            (UNATTRIBUTED, "unattributed"),
            span=8,
        ),
    ],
)
