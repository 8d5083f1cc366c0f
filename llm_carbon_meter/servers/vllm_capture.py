"""What vLLM's scheduler did: shallow copies on the engine's thread, decoded on the meter's.

`StepCapture` is called by the wrappers of vllm_engine.py and only appends; `drain` runs on the
meter's thread, pairs steps first in, first out, and decides the phase of every request.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import (
    Account,
    EventBatch,
    Outcome,
    RequestEnd,
    StepEvent,
    StepKind,
)

GRACE_S: Final = 0.005
"""An event may be stamped this long before it is appended."""
MAX_WAITING: Final = 65_536
"""Events kept while the meter's thread does not come; beyond, the oldest are lost and counted."""


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


Event = Scheduled | Done | Overhead | RequestEnd


class StepCapture:
    """The engine's event source (`meter.EventSource`) for one scheduler."""

    def __init__(self, faults: Faults) -> None:
        self.wake = threading.Event()
        self._events: deque[Event] = deque(maxlen=MAX_WAITING)
        self._faults = faults
        self._in_flight: deque[Scheduled] = deque()
        self._prompt_tokens: dict[str, int] = {}
        self._cached_tokens: dict[str, int] = {}
        self._pooling: set[str] = set()
        self._ended: set[str] = set()
        self._closing: deque[tuple[int, RequestEnd]] = deque()
        self._open: dict[int, int] = {}
        """Identity of a SchedulerOutput to its number; identities come again, numbers do not."""
        self._sequence = 0
        self._reached: dict[str, int] = {}
        """First position of a prefill that was never computed."""
        self._step_id = 0
        self._last_done_s = 0.0

    # On the engine's thread: copy, append, nothing else.

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
            self._faults.note("events_lost", "the meter's thread did not come for too long")
        self._events.append(event)

    # On the meter's thread.

    def drain(self, max_rows: int) -> EventBatch:
        """Decode waiting events until about ``max_rows`` request-steps are collected."""
        asked_s = time.monotonic()
        steps: list[StepEvent] = []
        ends: list[RequestEnd] = []
        rows = 0
        while self._events and rows < max_rows:
            match self._events.popleft():
                case Scheduled() as event:
                    self._learn(event)
                    self._in_flight.append(event)
                case Done() as event:
                    step = self._step(event)
                    if step is not None:
                        steps.append(step)
                        rows += len(step.request_ids) + 1
                        ends += self._close_up_to(step.step_id)
                case Overhead(start_s, end_s):
                    steps.append(StepEvent(self._step_id, start_s, end_s, kind=StepKind.OVERHEAD))
                case RequestEnd() as end:
                    ends += self._end(end)
        more = bool(self._events)
        return EventBatch(steps, ends, self._known_until(asked_s, more), more)

    def _known_until(self, asked_s: float, more: bool) -> float:
        if more:
            return self._last_done_s
        if self._in_flight:
            return max(self._in_flight[0].at_s, self._last_done_s)
        return max(asked_s - GRACE_S, self._last_done_s)

    def _learn(self, event: Scheduled) -> None:
        for row in event.new:
            self._prompt_tokens[row.request_id] = row.prompt_tokens
            self._cached_tokens.setdefault(row.request_id, row.computed_tokens)
            if row.pooling:
                self._pooling.add(row.request_id)

    def _step(self, done: Done) -> StepEvent | None:
        """Pair an update with its schedule; the two come in the same order."""
        while self._in_flight:
            scheduled = self._in_flight.popleft()
            if scheduled.key == done.key:
                self._last_done_s = done.at_s
                self._step_id += 1
                return self._decode(scheduled, done.at_s)
            self._faults.note("step_pairing", "a scheduled step was never updated; it is dropped")
        self._faults.note("step_pairing", "an updated step was never scheduled; it is ignored")
        return None

    def _decode(self, event: Scheduled, done_s: float) -> StepEvent:
        ids = [row.request_id for row in event.new] + event.request_ids
        computed = [row.computed_tokens for row in event.new] + event.computed_tokens
        outputs = [row.output_tokens for row in event.new] + event.output_tokens
        scheduled = [event.num_scheduled_tokens[name] for name in ids]
        # A request whose first step was lost counts as past its prompt.
        prompts = [self._prompt_tokens.get(name, 0) for name in ids]
        phases = list(map(phase, prompts, outputs, computed, scheduled))
        accounts = [account for account, _ in phases]
        sampled = [count for _, count in phases]
        if Account.PREFILL in accounts:
            self._mark_repeated(ids, accounts, computed, scheduled)
        if self._ended:
            accounts = [
                Account.WASTE if name in self._ended else account
                for name, account in zip(ids, accounts, strict=True)
            ]
        if self._pooling:
            sampled = [
                0 if name in self._pooling else count
                for name, count in zip(ids, sampled, strict=True)
            ]
        return StepEvent(
            self._step_id, event.at_s, done_s, ids, accounts, scheduled, computed, sampled
        )

    def _mark_repeated(
        self, ids: list[str], accounts: list[Account], computed: list[int], scheduled: list[int]
    ) -> None:
        """A prefill that was preempted before its last chunk starts again."""
        for row, account in enumerate(accounts):
            if account is Account.PREFILL:
                name, first = ids[row], computed[row]
                reached = self._reached.get(name, 0)
                if first < reached:
                    accounts[row] = Account.RECOMPUTE
                self._reached[name] = max(reached, first + scheduled[row])

    def _end(self, end: RequestEnd) -> Iterable[RequestEnd]:
        """Hold a request's end back until the steps in flight that have it are done."""
        if not self._in_flight:
            return [self._forget(end)]
        self._ended.add(end.request_id)
        self._closing.append((self._step_id + len(self._in_flight), end))
        return []

    def _close_up_to(self, step_id: int) -> Iterable[RequestEnd]:
        while self._closing and self._closing[0][0] <= step_id:
            yield self._forget(self._closing.popleft()[1])

    def _forget(self, end: RequestEnd) -> RequestEnd:
        self._ended.discard(end.request_id)
        self._pooling.discard(end.request_id)
        self._prompt_tokens.pop(end.request_id, None)
        self._reached.pop(end.request_id, None)
        cached = self._cached_tokens.pop(end.request_id, 0)
        return replace(end, cached_tokens=cached)


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


def phase(prompt: int, output: int, computed: int, new: int) -> tuple[Account, int]:
    """Which account a request's part of a step belongs to, and how many positions it samples.

    Args:
        prompt: prompt tokens [P].
        output: output tokens known or in flight before the step [O].
        computed: tokens in the KV cache before the step [c].
        new: tokens scheduled in the step, drafts included [n].
    """
    if output == 0:
        return Account.PREFILL, min(max(computed + new - prompt + 1, 0), new)
    if computed >= prompt + output - 1:
        return Account.DECODE, new
    return Account.RECOMPUTE, int(computed + new >= prompt + output)


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
