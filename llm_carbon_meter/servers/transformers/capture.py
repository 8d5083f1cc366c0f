"""What the continuous batching of transformers did: copies, taken on its thread and nothing else.

`BatchCapture` is called by the wrappers of batching.py.
"""

import time
from collections.abc import Sequence
from typing import Any

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome, RequestEnd
from llm_carbon_meter.servers.shared.events import Done, EventQueue, NewRow, Scheduled


class BatchCapture(EventQueue):
    """Events of one `ContinuousBatchProcessor`."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self._open: dict[int, int] = {}
        """Identity of a batch's list to its number; a step may be settled before its update."""
        self._sequence = 0
        self._seen: set[str] = set()

    def scheduled(self, batch: Sequence[Any]) -> None:
        """``prepare_next_batch`` made a batch (of `FutureRequestState`)."""
        self._sequence += 1
        self._open[id(batch)] = self._sequence
        names, computed, outputs, new, counts = [], [], [], [], {}
        for future in batch:
            state, name = future.state, future.state.request_id
            prompt, cached, output = _progress(state, future.query_length)
            counts[name] = future.query_length
            if name in self._seen:
                names.append(name)
                computed.append(cached)
                outputs.append(output)
            else:
                self._seen.add(name)
                new.append(NewRow(name, prompt, cached, output, pooling=False))
        self.append(
            Scheduled(self._sequence, time.monotonic(), counts, new, names, computed, outputs)
        )

    def done(self, batch: Sequence[Any]) -> None:
        """The outputs of a batch are on the host."""
        key = self._open.pop(id(batch), None)
        if key is not None:
            self.append(Done(key, time.monotonic()))

    def finished(self, state: Any, *, cancelled: bool) -> None:
        """A `RequestState` is over for good."""
        self._seen.discard(state.request_id)
        prompt = _prompt_tokens(state)
        self.ended(
            RequestEnd(
                request_id=state.request_id,
                outcome=_outcome(state, cancelled=cancelled),
                prompt_tokens=prompt,
                cached_tokens=0,  # known from the request's first step
                output_tokens=_output_tokens(state, prompt),
                monotonic_s=time.monotonic(),
            )
        )


def _progress(state: Any, query_length: int) -> tuple[int, int, int]:
    """Prompt tokens, tokens in the cache before the step, and output tokens known or in flight."""
    prompt, cached = _prompt_tokens(state), state.position_offset - query_length
    # While a batch is in flight its tokens are not in the state yet; the cache is ahead of them.
    in_flight = cached - prompt + 1 if cached >= prompt else 0
    return prompt, cached, max(_output_tokens(state, prompt), in_flight)


def _prompt_tokens(state: Any) -> int:
    """A request that was reset has its answer so far behind its prompt."""
    return state._true_initial_tokens or len(state.initial_tokens)


def _output_tokens(state: Any, prompt: int) -> int:
    return len(state.initial_tokens) - prompt + len(state.generated_tokens)


def _outcome(state: Any, *, cancelled: bool) -> Outcome:
    if state.error is not None:
        return Outcome.FAILED
    return Outcome.ABORTED if cancelled else Outcome.FINISHED
