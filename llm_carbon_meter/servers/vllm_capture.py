"""What vLLM's scheduler did: shallow copies, taken on the engine's thread and nothing else.

`StepCapture` is called by the wrappers of vllm_engine.py; what it holds goes to the meter's process
(vllm_process.py), where vllm_steps.py makes steps of it.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome, RequestEnd

GRACE_S: Final = 0.005
"""An event may be stamped this long before it is appended."""
MAX_WAITING: Final = 65_536
"""Events kept while nobody takes them; beyond, the oldest are lost and counted."""


class NewRow(NamedTuple):
    """A request of ``scheduled_new_reqs``: new to the workers, though perhaps preempted before."""

    request_id: str
    prompt_tokens: int
    computed_tokens: int
    output_tokens: int
    """Known before the step; above 0 when a preempted request comes back (V2 runner)."""
    pooling: bool


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One ``SchedulerOutput``, copied: parallel lists for the requests the workers know already."""

    key: int
    """Number of the SchedulerOutput, to pair it with its update."""
    at_s: float
    num_scheduled_tokens: dict[str, int]
    new: Sequence[NewRow]
    request_ids: list[str]
    computed_tokens: list[int]
    output_tokens: list[int]


class Done(NamedTuple):
    """The result of a step reached the scheduler."""

    key: int
    at_s: float


class Overhead(NamedTuple):
    """The GPUs worked for no request."""

    start_s: float
    end_s: float


class Known(NamedTuple):
    """Everything that happened up to a time has been told."""

    until_s: float


Event = Scheduled | Done | Overhead | RequestEnd | Known


class StepCapture:
    """Events of one scheduler, in order, until somebody takes them."""

    def __init__(self, faults: Faults) -> None:
        self.wake = threading.Event()
        """Set when a request ended, so that its provisional figure leaves at once."""
        self._events: deque[Event] = deque(maxlen=MAX_WAITING)
        self._faults = faults
        self._open: dict[int, int] = {}
        """Identity of a SchedulerOutput to its number; identities come again, numbers do not."""
        self._sequence = 0

    def scheduled(self, output: Any) -> None:
        """``Scheduler.schedule`` returned (vLLM's `SchedulerOutput`)."""
        known = output.scheduled_cached_reqs
        self._sequence += 1
        self._open[id(output)] = self._sequence  # takes the place of one that was lost
        self._append(
            Scheduled(
                self._sequence,
                time.monotonic(),
                output.num_scheduled_tokens.copy(),
                [_new_row(request) for request in output.scheduled_new_reqs],
                known.req_ids.copy(),
                known.num_computed_tokens.copy(),
                known.num_output_tokens.copy(),
            )
        )

    def done(self, output: Any) -> None:
        """``Scheduler.update_from_output`` is entered: the step has left the GPUs."""
        self._append(Done(self._open.pop(id(output), 0), time.monotonic()))

    def ended(self, end: RequestEnd) -> None:
        """A request is finished for good."""
        self._append(end)
        self.wake.set()

    def overhead(self, start_s: float, end_s: float) -> None:
        """The GPUs worked for no request between two times."""
        self._append(Overhead(start_s, end_s))

    def _append(self, event: Event) -> None:
        if len(self._events) == self._events.maxlen:
            self._faults.note("events_lost", "the meter's process did not take them for too long")
        self._events.append(event)

    # On the sender's thread.

    def take(self) -> Iterator[Event]:
        """Hand over what waits, and then the time up to which this is all."""
        until_s = time.monotonic() - GRACE_S
        for _ in range(len(self._events)):
            yield self._events.popleft()
        yield Known(until_s)


def _new_row(request: Any) -> NewRow:
    prompt = request.prompt_token_ids
    prompt_tokens = len(prompt) if prompt is not None else len(request.prompt_embeds)
    prefill = getattr(request, "prefill_token_ids", None)
    return NewRow(
        request.req_id,
        prompt_tokens,
        request.num_computed_tokens,
        len(prefill) - prompt_tokens if prefill is not None else 0,
        request.pooling_params is not None,
    )


OUTCOMES: Final = {
    "stop": Outcome.FINISHED,
    "length": Outcome.FINISHED,
    "repetition": Outcome.FINISHED,
    "abort": Outcome.ABORTED,
    "error": Outcome.FAILED,
}


def request_end(request: Any) -> RequestEnd:
    """The end of a vLLM `Request` whose status is final."""
    reason = request.get_finished_reason()
    return RequestEnd(
        request_id=request.request_id,
        outcome=OUTCOMES.get(str(reason), Outcome.FAILED),
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=0,  # known from the request's first step
        output_tokens=request.num_output_tokens,
        monotonic_s=time.monotonic(),
    )
