"""What the hook costs the batching thread of transformers: real states, wrapped and bare."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.servers.shared.hooks import install
from llm_carbon_meter.servers.transformers.batching import BatchingHooks
from llm_carbon_meter.servers.transformers.hooks import BATCHING
from llm_carbon_meter.servers.transformers.lifecycle import ServedModel

STEPS = 4000
REQUESTS = 32


class Processor:
    """What is called at every step, empty."""

    config = SimpleNamespace()
    scheduler = None

    def __init__(self, outputs: "Outputs") -> None:
        self.inputs_and_outputs = outputs

    def prepare_next_batch(self) -> bool:
        return True

    def update_batch(self) -> None:
        self.inputs_and_outputs.prepare_batch_update()


class Outputs:
    """A step in which every request decodes one token."""

    def __init__(self) -> None:
        self.requests_in_batch = [_decoding(index) for index in range(REQUESTS)]

    def prepare_batch_update(self) -> tuple[Any, ...]:
        return self.requests_in_batch, [], None


def measure(model: Path) -> Mapping[str, float]:
    """Wrapped minus bare, in turn, median microseconds a step."""
    served = ServedModel(Config(), Faults())
    served.text_config = Processor.config
    processor, outputs = type("P", (Processor,), {}), type("O", (Outputs,), {})
    bystander = type("Bystander", (), {hook.method: lambda *_: None for hook in BATCHING})
    # The processor and its outputs are what a step goes through.
    stepped = {"ContinuousBatchProcessor": processor, "ContinuousBatchingIOs": outputs}
    install(
        BATCHING,
        BatchingHooks(served),
        lambda target: stepped.get(target.rpartition(":")[2], bystander),
    )
    wrapped, bare = processor(outputs()), Processor(Outputs())
    with_hook, without = [], []
    for step in range(STEPS):
        without.append(_time(bare))
        with_hook.append(_time(wrapped))
        if step % 100 == 0:
            served.capture._events.clear()
    difference = statistics.median(with_hook) - statistics.median(without)
    return {"batching_hook_us": difference * 1e6}


def _time(processor: Processor) -> float:
    start = time.perf_counter()
    processor.prepare_next_batch()
    processor.update_batch()
    return time.perf_counter() - start


def _decoding(index: int) -> FutureRequestState:
    state = RequestState(f"{index:032x}", list(range(100)), generated_tokens=[1] * 20)
    state.position_offset = 120
    return FutureRequestState(state, True, {}, 1)
