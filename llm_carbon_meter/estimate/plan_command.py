"""The verb ``plan``: which hardware a month's traffic needs, and what that uses and costs."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Final, TypeVar

from llm_carbon_meter.carbon.grid import open_grid
from llm_carbon_meter.carbon.intensity import annual
from llm_carbon_meter.config import Config
from llm_carbon_meter.estimate.plan import Choice, Planner, Prices, Refused, Site
from llm_carbon_meter.estimate.plan_table import best_sizes, plan_text, write_csv
from llm_carbon_meter.estimate.replica import Slo
from llm_carbon_meter.estimate.traffic import (
    PEAK,
    TRACES,
    Lengths,
    Traffic,
    equal_lengths,
    positive,
    trace_lengths,
)
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.gpu_specs import GpuSpec, all_gpus, at_limit, gpu_spec
from llm_carbon_meter.physics.model_list import named_config
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.physics.number_formats import with_dtype
from llm_carbon_meter.predictor.gnn import GnnModel
from llm_carbon_meter.records import CarbonIntensity, MeterError
from llm_carbon_meter.units import MILLI

Spec = TypeVar("Spec")
SORTS: Final = ("kg", "money")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument("--requests", type=float, required=True, help="a month")
    traffic.add_argument("--prompt-tokens", type=float)
    traffic.add_argument("--output-tokens", type=float)
    traffic.add_argument("--trace", choices=list(TRACES), help="lengths of Azure's 2023 traces")
    traffic.add_argument(
        "--peak", type=float, default=PEAK, help=f"busiest rate over the mean (default: {PEAK:g})"
    )
    slo = parser.add_argument_group("service level")
    slo.add_argument("--ttft-ms", type=float, help="mean time to first token at most")
    slo.add_argument("--tpot-ms", type=float, help="mean time per output token at most")
    hardware = parser.add_argument_group("choices")
    hardware.add_argument("--model", nargs="+", required=True, help="built-in names or config.json")
    hardware.add_argument("--gpu", nargs="+", help="of data/gpus.toml (default: all)")
    hardware.add_argument(
        "--num-gpus", nargs="+", type=int, default=[], help="of a replica (default: all that fit)"
    )
    hardware.add_argument(
        "--power-limit",
        nargs="+",
        type=float,
        default=[],
        help="watts that each GPU may also be set to",
    )
    hardware.add_argument("--dtype", default="", help="number format (default: as the config)")
    hardware.add_argument("--engine", default="vllm", help="default: vllm")
    hardware.add_argument("--engine-version", default="")
    site = parser.add_argument_group("site")
    site.add_argument("--zone", help="of the grid (default: as the settings say)")
    site.add_argument("--price-per-kwh", type=float)
    site.add_argument("--price-per-gpu-hour", type=float)
    site.add_argument("--currency", default="USD", help="default: USD")
    parser.add_argument("--sort", choices=SORTS, default="kg", help="default: kg")
    parser.add_argument("--csv", type=Path, help="all choices, with all digits")
    parser.set_defaults(usage_error=parser.error)


def run(options: argparse.Namespace) -> int:
    """Print the plan; 1 where nothing meets the SLO or a name is not known.

    Raises:
        MeterError: a number, the zone or a file cannot be used.
    """
    planner = _planner(options)
    if options.sort == "money" and not planner.site.prices.known:
        options.usage_error("--sort money needs --price-per-kwh or --price-per-gpu-hour")
    unknown: list[Refused] = []
    models = _known(options.model, lambda name: _model(name, options.dtype), "model", unknown)
    gpus = _known(options.gpu, gpu_spec, "gpu", unknown) if options.gpu else list(all_gpus())
    unset: list[Refused] = []
    gpus += _limited(gpus, options.power_limit, unset)
    plan = planner.plan(models, gpus, list(dict.fromkeys(options.num_gpus)))
    plan = replace(
        plan,
        choices=sorted(plan.choices, key=_by(options.sort)),
        refused=[*unknown, *(unset if options.gpu else ()), *plan.refused],
    )
    shown = plan.choices if options.num_gpus else best_sizes(plan.choices)
    if options.csv:
        write_csv(options.csv, plan, options.currency)
    print(plan_text(plan, shown, planner))
    return 1 if unknown or not plan.choices else 0


def _planner(options: argparse.Namespace) -> Planner:
    config, _ = Config.from_environment()
    advice = "leave it out where nothing is promised"
    ttft_s, tpot_s = (
        inf if value is None else positive(name, value, advice) * MILLI
        for name, value in (("ttft-ms", options.ttft_ms), ("tpot-ms", options.tpot_ms))
    )
    prices = Prices(options.currency, options.price_per_kwh, options.price_per_gpu_hour)
    return Planner(
        GnnModel(),
        Traffic(options.requests, _lengths(options), options.peak),
        Slo(ttft_s, tpot_s),
        Site(_intensity(options.zone, config), config.pue, prices),
        options.engine,
        options.engine_version,
    )


def _lengths(options: argparse.Namespace) -> Lengths:
    given = options.prompt_tokens is not None, options.output_tokens is not None
    if options.trace:
        if any(given):
            options.usage_error("--trace has lengths of its own; leave the others out")
        return trace_lengths(options.trace)
    if not all(given):
        options.usage_error("give --prompt-tokens and --output-tokens, or --trace")
    return equal_lengths(options.prompt_tokens, options.output_tokens)


def _intensity(zone: str | None, config: Config) -> CarbonIntensity:
    return annual(zone) if zone else open_grid(config, Faults()).asked()


def _model(name: str, dtype: str) -> ModelSpec:
    return model_spec(with_dtype(named_config(name), dtype), name)


def _known(
    names: Sequence[str], find: Callable[[str], Spec], column: str, unknown: list[Refused]
) -> list[Spec]:
    """Those that are found, each once; the others are refused."""
    found: list[Spec] = []
    for name in dict.fromkeys(names):
        try:
            found.append(find(name))
        except MeterError as error:
            places = {"model": "", "gpu": "", column: name}
            unknown.append(Refused(**places, num_gpus=None, reason=str(error)))
    return found


def _limited(
    gpus: Sequence[GpuSpec], limits: Sequence[float], refused: list[Refused]
) -> list[GpuSpec]:
    """The GPUs at each of some power limits; where one cannot be set, it is refused."""
    found: list[GpuSpec] = []
    for gpu, watts in product(gpus, dict.fromkeys(limits)):
        try:
            found.append(at_limit(gpu, watts))
        except MeterError as error:
            refused.append(Refused("", gpu.name, None, str(error)))
    return found


def _by(sort: str) -> Callable[[Choice], float]:
    """What choices are sorted by."""
    if sort == "money":
        return lambda choice: choice.money.value if choice.money else inf
    return lambda choice: choice.kilograms.value
