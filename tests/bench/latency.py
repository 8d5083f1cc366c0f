"""Step latency of vLLM's real scheduler with 256 requests, with the meter at work or without."""

import gc
import hashlib
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.progress import progress
from llm_carbon_meter.servers.shared.meter_process import MeterProcess, Setup
from llm_carbon_meter.servers.shared.steps import StepDecoder
from llm_carbon_meter.servers.vllm.capture import StepCapture
from llm_carbon_meter.servers.vllm.engine_hooks import _Engine
from tests.support.servers.driving import (
    BareHooks,
    Drive,
    bare_hooks,
    engine_config,
    make_scheduler,
    restored,
    wrap_engine,
)

REQUESTS = 256
PAIRS, STEPS = 30, 100
DEVICE_WORK = b"x" * 12_000_000
"""Hashed instead of a forward pass: some 10 ms in which the interpreter lock is free."""


def measure(model: Path) -> Mapping[str, float]:
    """p99 of the steps with the meter / without: median over pairs of blocks, one after the other.

    The heap is frozen as vLLM freezes it after start-up.
    """
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import Executor

    hooks = bare_hooks()
    with restored(Scheduler, EngineCore, Executor):
        wrap_engine(hooks)
        drive = _full(model, hooks)
        _steps(drive)  # warm-up
        gc.collect()
        gc.freeze()
        ratios = [
            _p99(_metered(drive, hooks)) / _p99(_steps(drive))
            for _ in progress(range(PAIRS), desc="step latency", unit="pair")
        ]
        gc.unfreeze()
    return {"p99_ratio": statistics.median(ratios)}


def _p99(seconds: list[float]) -> float:
    return float(np.quantile(seconds, 0.99))


def _full(model: Path, hooks: BareHooks) -> Drive:
    """A scheduler in which 256 requests decode and never end."""
    needed = (2 * PAIRS + 3) * STEPS
    config = engine_config(
        model, max_num_seqs=REQUESTS, max_model_len=1024, max_num_batched_tokens=REQUESTS
    )
    config.model_config.max_model_len = needed + 100
    scheduler = make_scheduler(config, blocks=REQUESTS * (needed // 16 + 10))
    scheduler.max_model_len = needed + 100
    drive = Drive(scheduler, hooks.engine(scheduler).capture, StepDecoder(Faults()))
    for index in range(REQUESTS):
        drive.add(f"chatcmpl-{index:032x}", 1, needed + 50)
    _detach(drive, hooks)
    return drive


def _detach(drive: Drive, hooks: BareHooks) -> None:
    hooks._engines.clear()
    drive.capture = StepCapture(Faults())  # an empty one: nothing to drain


def _steps(drive: Drive) -> list[float]:
    """Seconds of each step: schedule, a device's work, update."""
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        drive.schedule()
        hashlib.sha256(DEVICE_WORK).digest()
        drive.update()
        times.append(time.perf_counter() - start)
    return times


def _metered(drive: Drive, hooks: BareHooks) -> list[float]:
    """The same steps with the meter's process listening: 8 GPUs, ledger and channel at work."""
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            config=Config(power="modelled", channel_dir=str(Path(folder) / "channel")),
            engine=0,
            gpus=(),
            first_gpu=0,
            num_gpus=8,
            model=built_in_model("Llama-3.1-8B"),
            tensor_parallel=8,
            start_s=time.monotonic(),
            deployment={"gpu": "H100"},
        )
        meter, capture = MeterProcess(setup, Faults()), StepCapture(Faults())
        meter.ready()
        meter.follow(capture)
        hooks._engines[id(drive.scheduler)] = _Engine(capture, meter)
        try:
            return _steps(drive)
        finally:
            hooks._engines.clear()
            meter.stop()
