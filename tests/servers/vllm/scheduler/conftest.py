"""vLLM's own scheduler classes with our hooks on them, for what a CPU server cannot show.

The hooks are installed as the plugin installs them, and taken off after each test.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.servers.shared.steps import StepDecoder
from tests.support.servers.driven_rows import Start

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    from tests.support.servers.driving import BareHooks


@pytest.fixture
def hooks() -> Iterator["BareHooks"]:
    """Our hooks on vLLM's classes, without threads."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import Executor

    from tests.support.servers.driving import bare_hooks, restored, wrap_engine

    with restored(Scheduler, AsyncScheduler, EngineCore, Executor):
        bare = bare_hooks()
        wrap_engine(bare)
        yield bare


@pytest.fixture
def start(tiny_model: Path, hooks: "BareHooks") -> Start:
    """Makes a scheduler that the hooks meter."""
    from tests.support.servers.driving import Drive, engine_config, make_scheduler

    def make(
        *, overlapped: bool = False, v2: bool = False, blocks: int = 100, pp: int = 1, **more: Any
    ) -> Drive:
        config = engine_config(tiny_model, **more)
        config.parallel_config.pipeline_parallel_size = pp
        scheduler = make_scheduler(config, overlapped=overlapped, v2=v2, blocks=blocks)
        return Drive(scheduler, hooks.engine(scheduler).capture, StepDecoder(hooks.faults))

    return make


@pytest.fixture
def faults(hooks: "BareHooks") -> Faults:
    """What the hooks counted."""
    return hooks.faults
