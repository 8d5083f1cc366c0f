"""``llm-carbon-meter campaign``: plans, starts a worker per model, keeps its rows, ends on time."""

import argparse
import contextlib
import importlib.metadata
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from multiprocessing import Pipe
from pathlib import Path
from statistics import median
from typing import Any, Final

from tqdm import tqdm

from llm_carbon_meter.campaign.job import PHASES, Done, Job, Occasion
from llm_carbon_meter.campaign.plan import TINY_MODEL, Plan, fits, make_plan
from llm_carbon_meter.campaign.rows import (
    OCCASION,
    Measurements,
    Row,
    Status,
    occasion,
    write_parquet,
)
from llm_carbon_meter.columns import aligned
from llm_carbon_meter.config import cuda_visible_devices
from llm_carbon_meter.power.nvml_survey import survey
from llm_carbon_meter.records import ConfigError, MeterError, PowerError
from llm_carbon_meter.specs import built_in_config, gpu_spec, model_spec

LAST_WORDS_S: Final = 3.0
"""Before the end a worker begins nothing; what is under way then is given up at the end."""
POLL_S: Final = 0.2
WORKER: Final = "llm_carbon_meter.campaign.worker"
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
_WORKER_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Weights are drawn anew in the process that has the engine, and nobody else meters.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "LLM_CARBON_METER_ENABLED": "0",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--engine", choices=("vllm", "transformers"), required=True)
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of the built-in list, the most wanted first (default: the paper's and today's)",
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
    parser.add_argument("--repetitions", type=int, default=5, help="of each phase (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=None, help="a repetition's least length (default: 5)"
    )
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try all of it")


def run_campaign(options: argparse.Namespace) -> int:
    """Measure until everything is, or the time is up; 0 where the file has a good row.

    Raises:
        MeterError: an option, the file, the engine or the GPUs cannot be used.
    """
    end_s = time.monotonic() + options.minutes * 60
    if options.out.suffix != ".csv":
        raise ConfigError(f"--out {options.out}: expected the name of a .csv file")
    if not _installed_version(options.engine):
        raise ConfigError(f"--engine {options.engine}: it is not installed here; pip install it")
    gpus = _default_gpu() if options.gpus is None else options.gpus
    plan = make_plan(
        options.engine,
        options.models,
        dtype=options.dtype,
        gpus=gpus,
        least_s=options.seconds,
        repetitions=options.repetitions,
        tiny=options.tiny,
    )
    gpu = survey(plan.gpus).gpus[0].name if plan.gpus else gpu_spec(options.assume_gpu).name
    if not plan.gpus:
        print(f"no GPU: joules are modelled, board power of {gpu} x time", flush=True)
    file = Measurements(options.out)
    try:
        _measure(plan, file, gpu, end_s)
    finally:
        file.close()
        print(summary(file.rows))
        parquet = write_parquet(options.out)
        print(f"{options.out}, {parquet or 'no Parquet: that needs pyarrow'}")
    return 0 if any(row["status"] == Status.OK for row in file.rows) else 1


def _default_gpu() -> str:
    """The first that this process may use; none where there is no driver."""
    visible = cuda_visible_devices()
    if visible is not None:
        return visible.split(",")[0]
    with contextlib.suppress(PowerError):
        survey(["0"])
        return "0"
    return ""


def _measure(plan: Plan, file: Measurements, gpu: str, end_s: float) -> None:
    jobs = list(_jobs(plan, file, gpu))
    total = sum(each.wanted for job in jobs for each in job.occasions)
    with tqdm(total=total, desc="repetitions", unit="row") as bar:
        for number, job in enumerate(jobs):
            left_s = end_s - time.monotonic()
            if left_s < LAST_WORDS_S:
                return
            # Every model gets its share of what is left; what it does not use is for the others.
            until_s = time.monotonic() + left_s / (len(jobs) - number)
            for row in _rows(replace(job, deadline_s=until_s - LAST_WORDS_S), until_s, file.path):
                file.append(row)
                left = max(end_s - time.monotonic(), 0.0)
                bar.set_postfix_str(f"{job.model}, {left:.0f} s left", refresh=False)
                bar.update(row["status"] == Status.OK)


def _jobs(plan: Plan, file: Measurements, gpu: str) -> Iterator[Job]:
    """One per model that lacks repetitions."""
    good, hopeless = file.good(), file.hopeless()
    for model in plan.models:
        config = TINY_CONFIG if model == TINY_MODEL else built_in_config(model)
        context = model_spec(config, model).max_context
        job = Job(
            engine=plan.engine,
            engine_version=_installed_version(plan.engine),
            model=model,
            config=config,
            dtype=plan.dtype,
            tensor_parallel=plan.tensor_parallel,
            gpus=plan.gpus,
            gpu=gpu,
            least_s=plan.least_s,
        )
        occasions = []
        for load, phase in product(plan.loads, PHASES):
            key = occasion({**job.identity, **load._asdict(), "phase": phase})
            wanted = plan.repetitions - good[key]
            if fits(model, load, context) and wanted > 0 and key not in hopeless:
                occasions.append(Occasion(load, phase, good[key], wanted))
        if occasions:
            yield replace(job, occasions=occasions)


def _rows(job: Job, until_s: float, out: Path) -> Iterator[Row]:
    """A worker's rows; it is ended when its time is up.

    Raises:
        MeterError: it cannot measure at all.
    """
    ours, theirs = Pipe()
    command = [sys.executable, "-m", WORKER, str(theirs.fileno())]
    environment = {**os.environ, **_WORKER_ENVIRONMENT}  # inherited, not read
    log = out.with_suffix(".log")
    with theirs, log.open("ab") as output:
        worker = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        ours.send_bytes(pickle.dumps(job))
        while time.monotonic() < until_s:
            if not ours.poll(POLL_S):
                continue
            message = pickle.loads(ours.recv_bytes())
            if isinstance(message, Done):
                if message.problem:
                    raise MeterError(message.problem)
                return
            yield message
    except (EOFError, ConnectionResetError, BrokenPipeError):
        note = f"its process ended with code {worker.wait()}; see {log}"
        tqdm.write(f"{job.model}: {note}", sys.stderr)
        yield {**job.identity, "status": Status.FAILED, "note": note}
    finally:
        worker.kill()
        worker.wait()


def _installed_version(engine: str) -> str:
    """Of an engine's package, without importing it; empty where it is not installed."""
    for package in (engine, f"{engine}-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def summary(rows: Sequence[Row]) -> str:
    """Each occasion in a line: the median of its good repetitions, their spread, and the others."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(occasion(row), []).append(row)
    heading = (
        "engine",
        "model",
        "batch",
        "prompt",
        "output",
        "phase",
        "source",
        "J/request",
        "spread",
        "rows",
    )
    table = [list(heading)]
    for key, found in groups.items():
        named = dict(zip(OCCASION, key, strict=True))
        joules = [float(row["joules_per_request"]) for row in found if row["status"] == Status.OK]
        middle = median(joules) if joules else None
        others: dict[str, int] = {}
        for row in found:
            others[str(row["status"])] = others.get(str(row["status"]), 0) + 1
        table.append(
            [
                named["engine"],
                named["model"],
                named["batch"],
                named["prompt_tokens"],
                named["output_tokens"],
                named["phase"],
                named["source"],
                "-" if middle is None else f"{middle:.4g}",
                "-" if not middle else f"{(max(joules) - min(joules)) / middle:.1%}",
                ", ".join(f"{count} {status}" for status, count in others.items()),
            ]
        )
    return aligned(table, left=(0, 1, 5, 6, 9))
