"""``llm-carbon-meter campaign``: options, and what it prints at its end."""

import argparse
import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from llm_carbon_meter.campaign.card import write_card
from llm_carbon_meter.campaign.job import Job
from llm_carbon_meter.campaign.plan import TINY_MODEL, Plan, make_plan
from llm_carbon_meter.campaign.rows import Measurements, Row, Status, occasion, write_parquet
from llm_carbon_meter.campaign.runner import installed_version, lacking, measure
from llm_carbon_meter.config import cuda_visible_devices
from llm_carbon_meter.exporters.columns import aligned, figure, percent
from llm_carbon_meter.extras import require
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import named_config
from llm_carbon_meter.power.nvml.survey import survey
from llm_carbon_meter.records import ConfigError, PowerError
from llm_carbon_meter.training.data.campaign_columns import OCCASION

TINY_CONFIG: Final[Mapping[str, Any]] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
"""For hosts without a GPU: every step of a campaign in seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--engine", choices=("vllm", "transformers"), required=True)
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of the built-in list, or folders of checkpoints, the most wanted first (default: the "
        "paper's and today's)",
    )
    parser.add_argument(
        "--minutes", type=float, required=True, help="the campaign ends when they are over"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.csv",
        help="rows are added to it; what it has already is not measured again",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument(
        "--gpus", default=None, help="as nvidia-smi numbers them, as in 0,1 (default: the first)"
    )
    parser.add_argument(
        "--assume-gpu",
        default="H100",
        metavar="GPU",
        help="whose data sheet gives modelled joules where there is no GPU (default: H100)",
    )
    _add_repetition_arguments(parser)
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try all of it")


def _add_repetition_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=5, help="of each phase (default: 5)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=None,
        help="a repetition's least length (default: 5, or 50 ticks where the counter's are known)",
    )
    parser.add_argument(
        "--focused",
        action="store_true",
        help="choose models' shapes and loads by where the predictor errs (Algorithm 1 of LLMCO2)",
    )


def run(options: argparse.Namespace) -> int:
    """Measure until everything is, or the time is up; 0 where the file has a good row.

    Raises:
        MeterError: an option, the file, the engine or the GPUs cannot be used, or an extra is not
            installed.
    """
    end_s = time.monotonic() + options.minutes * 60
    if options.out.suffix != ".csv":
        raise ConfigError(f"--out {options.out}: expected the name of a .csv file")
    _require_packages(options)
    gpus = default_gpu() if options.gpus is None else options.gpus
    plan = make_plan(
        options.engine,
        options.models,
        dtype=options.dtype,
        gpus=gpus,
        least_s=options.seconds,
        repetitions=options.repetitions,
        tiny=options.tiny,
    )
    for name in ("minutes", "seconds"):
        value = getattr(options, name)
        if value is not None and not 0.0 < value < math.inf:
            raise ConfigError(f"--{name} {value:g}: expected more than 0, and an end")
    gpu = survey(plan.gpus).gpus[0].name if plan.gpus else gpu_spec(options.assume_gpu).name
    if not plan.gpus:
        print(f"no GPU: joules are modelled, board power of {gpu} x time", flush=True)
    file = Measurements(options.out)
    try:
        if options.focused:
            from llm_carbon_meter.campaign.focus import focus  # loads all of training

            focus(plan, file, gpu, end_s)
        else:
            measure(jobs_of(plan, file, gpu), file, end_s)
    finally:
        _finish(file)
    return 0 if any(row["status"] == Status.OK for row in file.rows) else 1


def _finish(file: Measurements) -> None:
    """Close the file, print its summary, and write its other forms."""
    file.close()
    print(summary(file.rows))
    parquet = write_parquet(file.path)
    described = write_card(file.path, file.rows)
    print(f"{file.path}, {parquet or 'no Parquet: that needs pyarrow'}, {described}")


def _require_packages(options: argparse.Namespace) -> None:
    """What the engine brings, and what learning from its rows needs."""
    if not installed_version(options.engine):
        raise ConfigError(f"--engine {options.engine}: it is not installed here; pip install it")
    require("campaign", "campaign", "torch")
    if options.focused:
        require("campaign --focused", "train", "torch_geometric", "sklearn")


def default_gpu() -> str:
    """The first that this process may use; none where there is no driver."""
    visible = cuda_visible_devices()
    if visible is not None:
        return visible.split(",")[0]
    with contextlib.suppress(PowerError):
        survey(["0"])
        return "0"
    return ""


def jobs_of(plan: Plan, file: Measurements, gpu: str, source: str = "") -> list[Job]:
    """One per model, of what a file lacks of a plan.

    Args:
        plan: with its models and loads.
        file: of the rows.
        gpu: as NVML names it, or whose data sheet is taken.
        source: where a stub of NVML stands for a GPU; else measured or modelled.
    """
    jobs = []
    for model in plan.models:
        config = TINY_CONFIG if model == TINY_MODEL else named_config(model)
        job = Job.of(plan, model, config, gpu, installed_version(plan.engine))
        job = replace(job, source=source)
        jobs.append(lacking(job, plan.loads, plan.repetitions, file))
    return jobs


HEADING: Final = (
    *("engine", "model", "batch", "prompt", "output", "phase", "source"),
    *("J/request", "spread", "rows"),
)


def summary(rows: Sequence[Row]) -> str:
    """Each occasion in a line: the median of its good repetitions, their spread, and the others."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(occasion(row), []).append(row)
    lines = [_summary_line(key, repetitions) for key, repetitions in groups.items()]
    return aligned([HEADING, *lines], left=(0, 1, 5, 6, 9))


def _summary_line(key: tuple[str, ...], rows: Sequence[Row]) -> list[str]:
    """The cells of an occasion, as `HEADING` names them."""
    named = dict(zip(OCCASION, key, strict=True))
    joules = [float(row["joules_per_request"]) for row in rows if row["status"] == Status.OK]
    middle = median(joules) if joules else None
    statuses = Counter(str(row["status"]) for row in rows)
    return [
        named["engine"],
        named["model"],
        named["batch"],
        named["prompt_tokens"],
        named["output_tokens"],
        named["phase"],
        named["source"],
        "-" if middle is None else figure(middle),
        "-" if not middle else percent((max(joules) - min(joules)) / middle),
        ", ".join(f"{count} {status}" for status, count in statuses.items()),
    ]
