"""One, two and four GPUs for Bloom-7b1 (the paper's Figures 10 and 11).

    python examples/case_studies/number_of_gpus.py

More GPUs answer sooner. Whether they also emit less depends on how much there is to do.
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

from llm_carbon_meter.carbon.intensity import WORLD, annual

GPUS = (1, 2, 4)
REQUESTS = {"b1 p64": (1, 64), "b4 p1K": (4, 1024), "b64 p1K": (64, 1024)}


def main() -> None:
    """Print the table and draw the bars."""
    grid, rows = annual(WORLD), []
    for name, (size, prompt) in REQUESTS.items():
        for num_gpus in GPUS:
            deployment = deploy("Bloom-7b1", "A100-40GB", num_gpus)
            phases = batch(bind(deployment), size, prompt, OUTPUT_TOKENS)
            seconds = sum(phase.gpu_seconds for phase in phases)
            operational = sum(phase.operational_grams(grid) for phase in phases) * 1e3
            making = [seconds * rate * 1e3 for rate in making_grams(deployment).values()]
            each = operational / num_gpus
            rows.append((name, num_gpus, seconds / num_gpus, each, operational, *making))
    heading = (
        *("mgCO2eq of a batch", "GPUs", "seconds", "operational per GPU", "operational"),
        *("embodied, LLMCarbon", "embodied, pcf"),
    )
    picture = figure(9, 4.6)
    panels = picture.subplots(2, len(REQUESTS))
    for column, name in enumerate(REQUESTS):
        own = [row for row in rows if row[0] == name]
        labels = [str(row[1]) for row in own]
        stack(panels[0][column], labels, {"operational": [row[3] for row in own]})
        panels[0][column].set(title=name)
        parts = {
            "operational": [row[4] for row in own],
            EMBODIED["llmcarbon"]: [row[5] for row in own],
            EMBODIED["pcf"]: [row[6] - row[5] for row in own],
        }
        stack(panels[1][column], labels, parts)
        panels[1][column].set(xlabel="GPUs")
    panels[0][0].set(ylabel="operational mg per GPU")
    panels[1][0].set(ylabel="mg of all GPUs")
    panels[0][-1].legend(*panels[1][0].get_legend_handles_labels(), fontsize="x-small")
    caption = (
        f"Estimated. One batch of b requests with prompts of p and answers of {OUTPUT_TOKENS} "
        f"tokens, float16, tensor parallel on A100-40GB, {ENGINE} {VERSION}; mgCO2eq of the whole "
        f"batch. Grid: {grid.grams_per_kwh:.0f} gCO2eq/kWh ({grid.source}), PUE 1. "
        f"{ABOUT_EMBODIED}"
    )
    keep("number_of_gpus", table(heading, rows), picture, caption)


if __name__ == "__main__":
    main()
