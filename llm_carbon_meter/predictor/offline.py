"""``llm-carbon-meter estimate``: an estimate without a server."""

import json
from pathlib import Path

from llm_carbon_meter.carbon import CarbonIntensity
from llm_carbon_meter.predictor.estimator import FlopEstimator, note_flop
from llm_carbon_meter.predictor.lengths import exact_length
from llm_carbon_meter.records import EstimateQuery, SpecError
from llm_carbon_meter.specs import ModelSpec, built_in_model, model_spec
from llm_carbon_meter.units import watt_hours


def named_model(name: str) -> ModelSpec:
    """A built-in model, or the one of a ``config.json`` (or of the folder that holds it).

    Raises:
        SpecError: neither, or the file cannot be used.
    """
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if not path.exists():
        return built_in_model(name)
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read as a config.json: {error}") from error
    if not isinstance(config, dict):
        raise SpecError(f"{path} holds a {type(config).__name__}; expected an object")
    return model_spec(config, name)


def flop_report(
    model: ModelSpec, prompt_tokens: int, output_tokens: int, intensity: CarbonIntensity
) -> str:
    """A table of both phases by the note's FLOP formula.

    Raises:
        MeterError: the numbers of tokens make no sense.
    """
    query = EstimateQuery(prompt_tokens, None, output_tokens=output_tokens)
    estimate = FlopEstimator(model, intensity).estimate(query, exact_length(output_tokens))
    flop = note_flop(model, prompt_tokens, output_tokens)
    grams = estimate.operational_grams / estimate.joules
    rows = [
        ("prefill", flop.prefill, estimate.prefill_joules),
        ("decode", flop.decode, estimate.decode_joules),
        ("total", flop.prefill + flop.decode, estimate.joules),
    ]
    lines = [
        f"{model.name}, {prompt_tokens} prompt and {output_tokens} output tokens; estimated by the "
        "FLOP formula of the LLM-BENCH note",
        f"{'phase':<8} {'FLOP':>22} {'Wh':>14} {'gCO2eq':>14}",
    ]
    lines += [
        f"{phase:<8} {operations:>22.0f} {watt_hours(joules):>14.10f} {joules * grams:>14.10f}"
        for phase, operations, joules in rows
    ]
    lines.append(
        f"at {intensity.grams_per_kwh:g} gCO2eq/kWh ({intensity.zone}); a facility figure, "
        "no PUE on top"
    )
    return "\n".join(lines)
