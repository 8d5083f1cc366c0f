"""The verb ``estimate``: its options, and which of its two forms they ask for."""

import argparse
import sys
from pathlib import Path

from llm_carbon_meter.carbon.grid import open_grid
from llm_carbon_meter.config import Config
from llm_carbon_meter.estimate.one_request import OfflineEstimate, make_deployment
from llm_carbon_meter.estimate.table import (
    CACHED_COLUMN,
    INPUT_COLUMNS,
    LIMIT_COLUMN,
    estimate_file,
)
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.predictor.energy_model import EnergyModel
from llm_carbon_meter.predictor.models import ENERGY_MODELS, energy_model
from llm_carbon_meter.records import EstimateQuery, SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    request = parser.add_argument_group("one request")
    request.add_argument("--model", help="a built-in name or a config.json")
    request.add_argument(
        "--gpu", help="of data/gpus.toml (default: the assumed one of the settings)"
    )
    request.add_argument("--num-gpus", type=int, default=1, help="tensor parallel (default: 1)")
    request.add_argument(
        "--power-limit",
        type=float,
        metavar="W",
        help="of each GPU, where it is lower than the data sheet's (nvidia-smi -pl)",
    )
    request.add_argument(
        "--dtype", default="", help="number format (default: as the model's config)"
    )
    request.add_argument("--engine", default="vllm", help="default: vllm")
    request.add_argument("--engine-version", default="")
    request.add_argument(
        "--concurrency", type=float, default=1.0, help="such requests at once (default: 1)"
    )
    request.add_argument("--prompt-tokens", type=int)
    request.add_argument("--output-tokens", type=int)
    request.add_argument(
        "--cached-tokens", type=int, default=0, help="of the prompt, in the prefix cache"
    )
    request.add_argument("--compare", action="store_true", help="the same on all other GPUs")
    rows = parser.add_argument_group("a table of requests")
    columns = f"{', '.join(INPUT_COLUMNS)}, and where wanted {CACHED_COLUMN}, {LIMIT_COLUMN}"
    rows.add_argument("--input", type=Path, help=f"CSV: {columns}")
    rows.add_argument("--output", type=Path, help="CSV: the same rows with their energy")
    parser.add_argument(
        "--method", choices=list(ENERGY_MODELS), help="default: as the settings say"
    )
    parser.set_defaults(usage_error=parser.error)


def run(options: argparse.Namespace) -> int:
    """Print the estimate of one request, or answer a table of them; 1 where a row has no answer.

    Raises:
        MeterError: a name, a number or a file cannot be used.
    """
    config, _ = Config.from_environment()
    model = energy_model(options.method or _default_method(config))
    request = {"--model": options.model, "--prompt-tokens": options.prompt_tokens,
               "--output-tokens": options.output_tokens}  # fmt: skip
    if options.input or options.output:
        of_one = {**request, "--power-limit": options.power_limit}
        given = [name for name, value in of_one.items() if value is not None]
        if given or not (options.input and options.output):
            options.usage_error(
                "--input and --output belong together, and to no " + ", ".join(given or request)
            )
        return _estimate_file(model, options)
    missing = [name for name, value in request.items() if value is None]
    if missing:
        options.usage_error(f"give {', '.join(missing)}, or --input and --output")
    return _estimate_request(model, options, config)


def _default_method(config: Config) -> str:
    """The server's, also where that is switched off."""
    return Config().estimator if config.estimator == "none" else config.estimator


def _estimate_file(model: EnergyModel, options: argparse.Namespace) -> int:
    bad = estimate_file(model, options.input, options.output)
    if bad:
        print(
            f"llm-carbon-meter: {bad} rows have no estimate; the column error says why",
            file=sys.stderr,
        )
    return 1 if bad else 0


def _estimate_request(model: EnergyModel, options: argparse.Namespace, config: Config) -> int:
    deployment = make_deployment(
        options.model,
        options.gpu or config.assume_gpu,
        options.num_gpus,
        options.dtype,
        options.engine,
        options.engine_version,
        power_limit_watts=options.power_limit,
    )
    query = EstimateQuery(
        options.prompt_tokens,
        None,
        concurrency=options.concurrency,
        output_tokens=options.output_tokens,
        cached_tokens=options.cached_tokens,
    )
    grid = open_grid(config, Faults()).asked()
    estimate = OfflineEstimate(model, deployment, query, grid, config.pue)
    try:
        print(estimate.table())
    except SpecError as error:
        if not options.compare:
            raise
        print(f"llm-carbon-meter: {error}", file=sys.stderr)
        print(estimate.comparison())
        return 1
    if options.compare:
        print(f"\n{estimate.comparison()}")
    return 0
