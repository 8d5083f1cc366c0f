"""What ``transformers serve`` did without continuous batching: one ``generate`` at a time."""

import itertools
import time
from contextvars import ContextVar

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome, RequestEnd
from llm_carbon_meter.servers.shared.events import Done, EventQueue, NewRow, Scheduled
from llm_carbon_meter.servers.transformers.calls import Call

current_request: ContextVar[str | None] = ContextVar("llm_carbon_plain_request", default=None)
"""Id of the request whose answer is generated in this context."""


class PlainCalls:
    """Makes events of calls (`transformers_calls.CallSink`), each one a request of its own.

    Args:
        queue: gets the events.
        faults: counts what went wrong.
    """

    def __init__(self, queue: EventQueue, faults: Faults) -> None:
        self._queue = queue
        self._faults = faults
        self._numbers = itertools.count(1)
        self._step: int | None = None
        """Number of the step under way."""

    def open(self, prompts: int, prompt_tokens: int) -> Call | None:
        """Calls for no request, a transcription say, are left alone."""
        name = current_request.get()
        return None if name is None or prompts != 1 else Call([name], prompt_tokens)

    def begin(self, call: Call, rows: int, tokens: int, *, cached: bool) -> None:
        """A forward pass begins; the one before it is over."""
        now_s, (name,), first = time.monotonic(), call.names, call.untouched
        self._close(now_s)
        output = call.sampled
        _, before, _ = call.advance(tokens, cached=cached)
        self._step = next(self._numbers)
        new = [NewRow(name, call.prompt_tokens, before, 0, pooling=False)] if first else []
        known = ([name], [before], [output]) if not first else ([], [], [])
        self._queue.append(Scheduled(self._step, now_s, {name: tokens}, new, *known))

    def end(self, call: Call, outcome: Outcome, output_tokens: int) -> None:
        """A call is over, and with it its last step."""
        now_s, (name,) = time.monotonic(), call.names
        self._close(now_s)
        output_tokens = output_tokens or call.sampled
        self._queue.ended(RequestEnd(name, outcome, call.prompt_tokens, 0, output_tokens, now_s))

    def _close(self, now_s: float) -> None:
        step, self._step = self._step, None
        if step is not None:
            self._queue.append(Done(step, now_s))

    def failed(self, error: Exception) -> None:
        """Something of ours raised."""
        self._faults.note("engine", error, "This request's figures are incomplete.")
