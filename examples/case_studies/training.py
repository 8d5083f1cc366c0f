"""Training against inference: Mixtral-8x7B's carbon per GPU and second (the paper's Figure 9).

    python examples/case_studies/training.py

Training keeps A100s at half of their peak for months; inference of one batch keeps them busy for
seconds, its decode phase mostly waiting for memory.
"""

import numpy as np
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
from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.predictor.gnn import shipped_weights
from llm_carbon_meter.predictor.step_law import TERMS, constants_of
from llm_carbon_meter.units import JOULES_PER_KILOWATT_HOUR

UTILISATION = 0.5
"""Of the tensor cores' peak in training, as the paper has it."""
PROMPTS = {"1K": 1024, "6K": 6144}
BATCHES = ((1, "1K"), (4, "6K"))


def training_watts(gpu: GpuSpec, utilisation: float) -> float:
    """Board power of a GPU that computes at a share of its peak, by the predictor's constants."""
    physics = shipped_weights().physics
    law = constants_of(physics, physics.prior(ENGINE, VERSION, gpu.name).mean, np)
    products = law.rates[TERMS.index("products"), 3]
    return float(law.static[0] + law.active[0] + utilisation * products) * gpu.board_watts


def main() -> None:
    """Print the table and draw the bars."""
    deployment, grid = deploy("Mixtral-8x7B", "A100", 4, "int8"), annual(WORLD)
    bound = bind(deployment)
    dies, boards = (rate * 1e3 for rate in making_grams(deployment).values())
    watts = {"training": training_watts(deployment.gpu, UTILISATION)}
    for size, prompt in BATCHES:
        phases = batch(bound, size, PROMPTS[prompt], OUTPUT_TOKENS)
        for name, phase in zip(("prefill", "decode"), phases, strict=True):
            watts[f"{name} b{size} p{prompt}"] = phase.joules / phase.gpu_seconds
    per_watt = grid.grams_per_kwh / JOULES_PER_KILOWATT_HOUR * 1e3
    whole = watts["training"] * per_watt + dies
    rows = [
        (name, one, one * per_watt, dies, boards, (one * per_watt + dies) / whole)
        for name, one in sorted(watts.items(), key=lambda item: -item[1])
    ]
    heading = (
        *("mgCO2eq per GPU and second", "W per GPU", "operational"),
        *("embodied, LLMCarbon", "embodied, pcf", "relative to training"),
    )
    picture = figure(8, 4.2)
    axes = picture.subplots()
    parts = {
        "operational": [row[2] / whole for row in rows],
        EMBODIED["llmcarbon"]: [dies / whole] * len(rows),
        EMBODIED["pcf"]: [(boards - dies) / whole] * len(rows),
    }
    stack(axes, [row[0] for row in rows], parts)
    axes.legend(loc="upper right")
    axes.set(title="Mixtral-8x7B: gCO2eq per GPU and second", ylabel="relative to training")
    least = min(watts.values()) * per_watt
    even = [making / least * grid.grams_per_kwh for making in (dies, boards)]
    caption = (
        f"Estimated. Inference: int8 weights on 4 x {deployment.gpu.name}, {ENGINE} {VERSION}, "
        f"{OUTPUT_TOKENS} output tokens, batches of b prompts of p tokens. Training: the same "
        f"GPU at {UTILISATION:.0%} of its peak: static and active power, and arithmetic. Grid: "
        f"{grid.grams_per_kwh:.0f} gCO2eq/kWh ({grid.source}), PUE 1. {ABOUT_EMBODIED} They would "
        f"equal the operational part of the cheapest phase at {even[0]:.2g} and {even[1]:.2g} "
        "gCO2eq/kWh."
    )
    keep("training", table(heading, rows), picture, caption)


if __name__ == "__main__":
    main()
