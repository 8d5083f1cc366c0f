"""A day of the Azure conversation trace on each GPU, in three countries.

    python examples/case_studies/day.py

What the same conversations cost in energy and carbon depends on the hardware; what a kilowatt-hour
of it emits depends on where it stands.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from studies import COLOURS, ENGINE, VERSION, bind, deploy, figure, keep, making_grams, table

from llm_carbon_meter.carbon.emissions import operational_grams
from llm_carbon_meter.carbon.intensity import annual
from llm_carbon_meter.data.azure_trace import conversation_quantiles, quantile
from llm_carbon_meter.physics.gpu_specs import GpuSpec, gpu_specs
from llm_carbon_meter.physics.kernels import weight_memory_bytes
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.units import JOULES_PER_KILOWATT_HOUR

MODEL = "Llama-3.1-8B"
TOGETHER = 32
"""Requests at once on each GPU."""
COUNTRIES = {"FR": "France", "DE": "Germany", "PL": "Poland"}
DAY_S = 86_400.0
PROMPTS, ANSWERS = 100, 40
"""Points at which the length distributions are taken: prompts, and answers of each."""


def conversations() -> tuple[Any, Any, float]:
    """Prompt and output tokens of equally likely requests, and how many come in a day."""
    tables = conversation_quantiles()
    fifths = len(tables.output_by_prompt_fifth)
    at = (np.arange(PROMPTS) + 0.5) / PROMPTS
    along = (np.arange(ANSWERS) + 0.5) / ANSWERS
    prompts = np.repeat(quantile(tables.prompt_tokens, at), ANSWERS)
    answers = [quantile(tables.output_by_prompt_fifth[int(one * fifths)], along) for one in at]
    gaps = quantile(tables.interarrival_s, (np.arange(10_000) + 0.5) / 10_000)
    return prompts, np.concatenate(answers), DAY_S / float(gaps.mean())


def fits(model: ModelSpec, gpu: GpuSpec, tokens: float) -> bool:
    """The weights and the cache of so many tokens fit on one GPU."""
    heads = model.num_kv_heads * model.head_dim
    cache_bytes = 2 * model.num_layers * heads * model.kv_bytes * tokens
    return gpu.memory_bytes > weight_memory_bytes(model, 1) + cache_bytes


def costs(gpu: str, prompts: Any, outputs: Any, requests: float) -> tuple[float, float, str, float]:
    """Joules and GPU-seconds of a day, what is unknown there, and grams of making a second."""
    deployment = deploy(MODEL, gpu, 1)
    bound = bind(deployment)
    one = bound.phases(np.full(len(prompts), float(TOGETHER)), prompts, outputs)
    joules = float((one.prefill_joules + one.decode_joules).mean()) * requests
    seconds = float(one.gpu_seconds.mean()) * requests
    return joules, seconds, bound.out_of_domain, making_grams(deployment)["pcf"]


def rows_of(prompts: Any, outputs: Any, requests: float) -> Sequence[tuple[Any, ...]]:
    """GPU, measured or not, GPUs that are busy, kWh, Wh per 1,000 answer tokens, kg by country and
    kg of the making; the thriftiest first."""
    model = deploy(MODEL, "H100", 1).model
    held = TOGETHER * float((prompts + outputs).mean())
    names = {gpu.name for gpu in gpu_specs().values() if fits(model, gpu, held)}
    rows = []
    for name in sorted(names):
        joules, seconds, unknown, making = costs(name, prompts, outputs, requests)
        kilowatt_hours = joules / JOULES_PER_KILOWATT_HOUR
        per_thousand = kilowatt_hours * 1e6 / (float(outputs.mean()) * requests)
        kilograms = [operational_grams(joules, annual(zone), 1.0) / 1e3 for zone in COUNTRIES]
        rows.append(
            (
                name,
                "" if unknown else "yes",
                seconds / DAY_S,
                kilowatt_hours,
                per_thousand,
                *kilograms,
                seconds * making / 1e3,
            )
        )
    return sorted(rows, key=lambda row: row[3])


def main() -> None:
    """Print the table and draw the bars."""
    prompts, outputs, requests = conversations()
    rows = rows_of(prompts, outputs, requests)
    heading = (
        *("GPU", "measured", "GPUs busy", "kWh", "Wh per 1,000 tokens"),
        *(f"kg {country}" for country in COUNTRIES.values()),
        "kg embodied",
    )
    picture = figure(10, 8.5)
    energy, carbon = picture.subplots(1, 2, sharey=True)
    names = [row[0] for row in rows]
    bars = energy.barh(names, [row[4] for row in rows], color=COLOURS["operational"])
    for bar, row in zip(bars, rows, strict=True):
        bar.set_alpha(1.0 if row[1] else 0.45)
    energy.set(xlabel="Wh per 1,000 answer tokens (pale: GPU not measured)")
    energy.invert_yaxis()
    for place, (country, marker) in enumerate(zip(COUNTRIES.values(), "o^s", strict=True), 5):
        carbon.scatter([row[place] for row in rows], names, marker=marker, label=country)
    carbon.scatter([row[8] for row in rows], names, marker="|", color="black", label="embodied")
    carbon.set(xlabel="kgCO2eq a day", xscale="log")
    carbon.grid(visible=True, axis="x", alpha=0.4)
    carbon.legend(fontsize="small")
    grids = "; ".join(
        f"{annual(zone).source} ({annual(zone).grams_per_kwh:.0f} g/kWh)" for zone in COUNTRIES
    )
    caption = (
        f"Estimated. About {requests:,.0f} requests a day, at the trace's pace and "
        f"with its lengths (mean {prompts.mean():.0f} prompt and {outputs.mean():.0f} answer "
        f"tokens; Azure 2023 conversation trace, CC BY 4.0), {MODEL} in 16 bits, {ENGINE} "
        f"{VERSION}, {TOGETHER} requests at once on each GPU; 'GPUs busy' is how many that keeps "
        f"working, idle ones are not counted. PUE 1, GPUs alone. Grids: {grids}. Embodied: product "
        f"footprint of a GPU board over 3 years, the same for every GPU. GPUs that are too small "
        f"for weights and cache are left out."
    )
    keep("day", table(heading, rows), picture, caption)


if __name__ == "__main__":
    main()
