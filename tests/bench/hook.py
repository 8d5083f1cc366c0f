"""What the hook costs the engine's thread: real `SchedulerOutput`s, methods wrapped and bare."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

from tests.support.servers.driving import BareHooks, bare_hooks, wrap_engine

STEPS = 4000
SIZES = (256, 512, 1024)


class Engine:
    """The two methods of a scheduler that are called at every step, empty."""

    def __init__(self, output: SchedulerOutput) -> None:
        self.output = output

    def schedule(self, throttle: bool = False) -> SchedulerOutput:
        return self.output

    def update_from_output(self, output: SchedulerOutput, result: Any) -> None:
        pass

    def _free_request(self, request: Any) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def execute_dummy_batch(self) -> None:
        pass

    def sleep(self) -> None:
        pass

    def wake_up(self) -> None:
        pass


def measure(model: Path) -> Mapping[str, float]:
    """Median microseconds a step at 256 requests, and per further request."""
    cost = {size: _cost_us(size) for size in SIZES}
    slope = (cost[SIZES[-1]] - cost[SIZES[0]]) / (SIZES[-1] - SIZES[0])
    return {"hook_us": cost[256], "hook_us_per_request": slope}


def _cost_us(requests: int) -> float:
    """Wrapped minus bare, in turn, median over the steps."""
    hooks = bare_hooks()
    wrapped_class = type("Wrapped", (Engine,), {})
    wrap_engine(
        hooks,
        Scheduler=wrapped_class,
        EngineCore=wrapped_class,
        Executor=type("Executor", (), {}),
    )
    wrapped, bare = wrapped_class(_output(requests)), Engine(_output(requests))
    with_hook, without = [], []
    for step in range(STEPS):
        without.append(_time(bare))
        with_hook.append(_time(wrapped))
        if step % 100 == 0:
            _empty(hooks, wrapped)
    return (statistics.median(with_hook) - statistics.median(without)) * 1e6


def _empty(hooks: BareHooks, engine: Engine) -> None:
    hooks.engine(engine).capture._events.clear()


def _time(engine: Engine) -> float:
    schedule: Callable[[bool], Any] = engine.schedule
    start = time.perf_counter()
    output = schedule(False)
    engine.update_from_output(output, None)
    return time.perf_counter() - start


def _output(requests: int) -> SchedulerOutput:
    """A step in which every request decodes one token."""
    names = [f"chatcmpl-{index:032x}-{index:08x}" for index in range(requests)]
    output = SchedulerOutput.make_empty()
    output.scheduled_cached_reqs = CachedRequestData(
        req_ids=names,
        resumed_req_ids=set(),
        new_token_ids=[],
        all_token_ids={},
        new_block_ids=[None] * requests,
        num_computed_tokens=list(range(1000, 1000 + requests)),
        num_output_tokens=list(range(1, requests + 1)),
    )
    output.num_scheduled_tokens = dict.fromkeys(names, 1)
    output.total_num_scheduled_tokens = requests
    return output
