"""Prefill against decode, embodied against operational, for Mixtral-8x7B.

    python examples/case_studies/phases.py

Both depend on the company that a request has: decode streams the weights once for the whole batch.
What the hardware's making adds depends on whose figure one takes and on the grid.
"""

from studies import (
    ABOUT_EMBODIED,
    EMBODIED,
    ENGINE,
    OUTPUT_TOKENS,
    VERSION,
    batch,
    bind,
    deploy,
    figure,
    keep,
    making_grams,
    stack,
    table,
)

from llm_carbon_meter.carbon.intensity import annual

BATCHES = (1, 4, 16, 64)
PROMPT_TOKENS = 1020
"""Median of the Azure conversation trace."""
COUNTRIES = {"FR": "France", "DE": "Germany", "PL": "Poland"}


def main() -> None:
    """Print the table and draw the stacks."""
    deployment = deploy("Mixtral-8x7B", "H100", 2)
    bound, rows = bind(deployment), []
    grids = {country: annual(zone) for zone, country in COUNTRIES.items()}
    for country, grid in grids.items():
        for size in BATCHES:
            phases = batch(bound, size, PROMPT_TOKENS, OUTPUT_TOKENS)
            seconds = sum(phase.gpu_seconds for phase in phases) / size
            prefill, decode = (phase.operational_grams(grid) * 1e3 / size for phase in phases)
            making = [seconds * rate * 1e3 for rate in making_grams(deployment).values()]
            rows.append((country, size, prefill, decode, decode / (prefill + decode), *making))
    heading = (
        *("mgCO2eq per request", "at once", "prefill", "decode", "decode share"),
        *("embodied, LLMCarbon", "embodied, pcf"),
    )
    picture = figure(9, 4.6)
    panels = picture.subplots(1, len(grids))
    for axes, (country, grid) in zip(panels, grids.items(), strict=True):
        own = [row for row in rows if row[0] == country]
        parts = {
            "prefill": [row[2] for row in own],
            "decode": [row[3] for row in own],
            EMBODIED["llmcarbon"]: [row[5] for row in own],
            EMBODIED["pcf"]: [row[6] - row[5] for row in own],
        }
        stack(axes, [str(row[1]) for row in own], parts)
        axes.set(title=f"{country}, {grid.grams_per_kwh:.0f} g/kWh", xlabel="requests at once")
    panels[0].set(ylabel="mgCO2eq per request")
    panels[0].legend(fontsize="x-small", loc="upper right")
    sources = "; ".join(dict.fromkeys(grid.source for grid in grids.values()))
    caption = (
        f"Estimated, per request of {PROMPT_TOKENS} prompt and {OUTPUT_TOKENS} output tokens on "
        f"2 x {deployment.gpu.name}, bfloat16, {ENGINE} {VERSION}, PUE 1, GPUs alone. Grids: "
        f"{sources}. {ABOUT_EMBODIED}"
    )
    keep("phases", table(heading, rows), picture, caption)


if __name__ == "__main__":
    main()
