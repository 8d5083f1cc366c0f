"""Runs a campaign's jobs: a worker per model, its rows kept, its time limited."""

import contextlib
import importlib.metadata
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from multiprocessing import Pipe
from pathlib import Path
from typing import Final

from tqdm import tqdm

from llm_carbon_meter.campaign.job import PHASES, Done, Job, Occasion
from llm_carbon_meter.campaign.plan import Load, fits
from llm_carbon_meter.campaign.rows import Measurements, Row, Status, occasion
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.progress import progress
from llm_carbon_meter.records import MeterError

LAST_WORDS_S: Final = 3.0
"""Before the end a worker begins nothing; what is under way then is given up at the end."""
POLL_S: Final = 0.2
ENDING_S: Final = 12.0
"""A worker that is done has so long to end what it started; vLLM gives its processes nine."""
WORKER: Final = "llm_carbon_meter.campaign.worker"
_WORKER_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Weights are drawn anew in the process that has the engine, and nobody else meters.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # With several GPUs these are vLLM's own, and the function that draws is sent there.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "LLM_CARBON_METER_ENABLED": "0",
}


def lacking(job: Job, loads: Iterable[Load], repetitions: int, file: Measurements) -> Job:
    """A job with what a file has not yet of these loads, in both phases."""
    good, hopeless = file.good(), file.hopeless()
    context = model_spec(job.config, job.model).max_context
    occasions = []
    for load, phase in product(loads, PHASES):
        key = occasion({**job.identity, **load._asdict(), "phase": phase})
        wanted = repetitions - good[key]
        if fits(job.model, load, context) and wanted > 0 and key not in hopeless:
            occasions.append(Occasion(load, phase, good[key], wanted))
    return replace(job, occasions=occasions)


def measure(jobs: Sequence[Job], file: Measurements, end_s: float) -> None:
    """Append rows to a file until all is measured or the time is up.

    Args:
        jobs: with their occasions; the first ones are the most wanted.
        file: of the rows.
        end_s: monotonic.

    Raises:
        MeterError: a worker cannot measure at all.
    """
    jobs = [job for job in jobs if job.occasions]
    total = sum(occasion.wanted for job in jobs for occasion in job.occasions)
    with progress(total=total, desc="repetitions", unit="row") as bar:
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
            message = pickle.loads(ours.recv_bytes())  # noqa: S301 - over our own pipe
            if isinstance(message, Done):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(ENDING_S)
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


def installed_version(engine: str) -> str:
    """Of an engine's package, without importing it; empty where it is not installed."""
    for package in (engine, f"{engine}-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
