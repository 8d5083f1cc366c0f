"""Steps made of what a capture took: pairs them first in, first out, and decides phases."""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Account, EventBatch, RequestEnd, StepEvent, StepKind
from llm_carbon_meter.servers.shared.events import Done, Event, Known, Overhead, Scheduled


class StepDecoder:
    """The meter's event source (`meter.EventSource`) for one scheduler."""

    def __init__(self, faults: Faults) -> None:
        self.wake = threading.Event()
        self._events: deque[Event] = deque()
        self._faults = faults
        self._in_flight: deque[Scheduled] = deque()
        self._prompt_tokens: dict[str, int] = {}
        self._cached_tokens: dict[str, int] = {}
        self._pooling: set[str] = set()
        self._ended: set[str] = set()
        self._clients: dict[str, int] = {}
        """Who sent the requests that were in a step and have not ended."""
        self._closing: deque[tuple[int, RequestEnd]] = deque()
        self._reached: dict[str, int] = {}
        """First position of a prefill that was never computed."""
        self._step_id = 0
        self._last_done_s = 0.0
        self._told_until_s = 0.0

    def feed(self, event: Event) -> None:
        """Take an event, from any thread, in the engine's order."""
        self._events.append(event)
        if isinstance(event, RequestEnd | Known):
            self.wake.set()

    def drain(self, max_rows: int) -> EventBatch:
        """Decode waiting events until about ``max_rows`` request-steps are collected."""
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
                case Known(until_s):
                    self._told_until_s = until_s
        return EventBatch(steps, ends, self._known_until_s, bool(self._events), self._load)

    @property
    def _known_until_s(self) -> float:
        told_s = self._in_flight[0].at_s if self._in_flight else self._told_until_s
        return max(told_s, self._last_done_s)

    @property
    def _load(self) -> Mapping[int, int]:
        return Counter(self._clients.values())

    def _learn(self, event: Scheduled) -> None:
        for row in event.new:
            self._prompt_tokens[row.request_id] = row.prompt_tokens
            self._clients[row.request_id] = row.client
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
        self._clients.pop(end.request_id, None)
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
        self._reached.pop(end.request_id, None)
        return replace(
            end,
            cached_tokens=max(end.cached_tokens, self._cached_tokens.pop(end.request_id, 0)),
            whole=self._prompt_tokens.pop(end.request_id, None) is not None,
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
