"""What a serving engine did: events, kept on the engine's thread and nothing else.

An engine's capture (vllm/capture.py, transformers/capture.py) appends to an `EventQueue`. A thread
sends its events to the meter's process (meter_process.py), where steps.py makes steps of them.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import RequestEnd

GRACE_S: Final = 0.005
"""An event may be stamped this long before it is appended."""
MAX_WAITING: Final = 65_536
"""Events kept while nobody takes them; beyond, the oldest are lost and counted."""


class NewRow(NamedTuple):
    """A request's first time in a step, or its first after it was preempted."""

    request_id: str
    prompt_tokens: int
    computed_tokens: int
    output_tokens: int
    """Known before the step; above 0 when a preempted request comes back."""
    pooling: bool
    client: int = 0
    """Index of the API server that sent it."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The plan of one step: parallel lists for the requests that are known already."""

    key: int
    """Number of the plan, to pair it with its result."""
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


class EventQueue:
    """Events of one scheduler, in order, until somebody takes them.

    Args:
        faults: where it is counted that nobody took them.
    """

    def __init__(self, faults: Faults) -> None:
        self.wake = threading.Event()
        """Set when a request ended, so that its provisional figure leaves at once."""
        self._events: deque[Event] = deque(maxlen=MAX_WAITING)
        self._faults = faults

    def ended(self, end: RequestEnd) -> None:
        """A request is finished for good."""
        self.append(end)
        self.wake.set()

    def overhead(self, start_s: float, end_s: float) -> None:
        """The GPUs worked for no request between two times."""
        self.append(Overhead(start_s, end_s))

    def append(self, event: Event) -> None:
        """Keep an event; it comes after all that came before."""
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
