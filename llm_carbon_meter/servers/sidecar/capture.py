"""Steps made up for a server that nobody sees into: what a proxy knows of its requests, and when.

The model. While requests are open, time is cut into steps: every `INTERVAL_S`, and wherever a
request begins, shows its first token, or ends. The rows of a step are the requests open in it. Rows
cost the proxy time, so a step lasts at least `ROW_S` for each of its own: of thousands of open
requests, those that begin or end within milliseconds share a cut.

* Until the first token a request is in prefill: each step takes half of the prompt tokens that are
  left, as nobody sees how far it is, and the step before the first token takes the rest. Waiting in
  the server's queue looks the same.
* Afterwards it is in decode: a step has the tokens that came in it, and the one that is next.
* An answer that comes whole shows no first token: it is taken to be in prefill for the time that
  its prompt takes at `WHOLE_PREFILL_TOKENS_PER_S`, and then gets as many tokens a step as the
  streams beside it got on average; one where there are none.

The joules of a step are the counter's; which requests they belong to follows from these guesses.
"""

import asyncio
import contextlib
import math
import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Final, NamedTuple

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome, RequestEnd
from llm_carbon_meter.servers.shared.events import Done, Event, EventQueue, Known, NewRow, Scheduled

INTERVAL_S: Final = 0.05
"""Of the steps while nothing else cuts them."""
ROW_S: Final = 5e-6
"""Some twenty times what a row of a step takes of the proxy's time."""
WHOLE_PREFILL_TOKENS_PER_S: Final = 5_000.0


class Usage(NamedTuple):
    """Tokens of a request."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(slots=True)
class _Open:
    """A request in flight."""

    request_id: str
    prompt_tokens: int
    filled_s: float
    """When its first token is taken to be there; never for streams, which show it."""
    stepped: bool = False
    """The request was in a step."""
    decoding: bool = False
    came: int = 0
    """Tokens of its answer."""
    filled: int = 0
    """Tokens of steps in prefill; at the first token all of its prompt's."""
    decoded: int = 0
    """Tokens of steps in decode; the first token is prefill's."""

    @property
    def is_whole(self) -> bool:
        """Whether the answer comes in one piece."""
        return self.filled_s < math.inf

    @property
    def awaited(self) -> int:
        """Tokens that no step has had: all that came behind the first, and the next one."""
        return max(self.came - self.decoded, 0)


class OutsideCapture(EventQueue):
    """Events of one server as a proxy before it sees them; for the thread of the proxy's loop."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self._cut_awaited = asyncio.Event()
        """Something happened so soon after the last cut that the next one waits for `_due_s`."""
        self._open: dict[str, _Open] = {}
        self._whole: set[str] = set()
        """The open ones whose answers come in one piece."""
        self._ends: list[RequestEnd] = []
        """Of requests that are over, and in the step that runs."""
        self._since_s = math.inf
        """Start of the step that runs."""
        self._sequence = 0

    def held(self) -> int:
        """Requests that went to the server and whose answers are not over."""
        return len(self._open) - len(self._ends)

    @property
    def _due_s(self) -> float:
        """Seconds until the step that runs has lasted as long as its rows ask for."""
        running = self._since_s < math.inf
        return self._since_s + len(self._open) * ROW_S - time.monotonic() if running else 0.0

    def begin(self, request_id: str, prompt_tokens: int, *, whole: bool) -> None:
        """A request goes to the server.

        Args:
            request_id: unique.
            prompt_tokens: at least 1.
            whole: its answer comes in one piece.
        """
        self._cut()
        now_s = time.monotonic()
        filled_s = now_s + prompt_tokens / WHOLE_PREFILL_TOKENS_PER_S if whole else math.inf
        self._open[request_id] = _Open(request_id, prompt_tokens, filled_s)
        if whole:
            self._whole.add(request_id)
        self._since_s = min(self._since_s, now_s)

    def came(self, request_id: str, tokens: int) -> None:
        """Tokens of a stream came, not whole answers'."""
        request = self._open[request_id]
        request.came += tokens
        if not request.decoding:
            self._cut()

    def end(self, request_id: str, outcome: Outcome, usage: Usage) -> None:
        """The answer is complete, or nobody waits for it any more."""
        self._ends.append(RequestEnd(request_id, outcome, *usage, time.monotonic()))
        self._cut()

    def refuse(self, request_id: str, usage: Usage) -> None:
        """The server did not take the request: the step that runs is not its own."""
        self._close(RequestEnd(request_id, Outcome.FAILED, *usage, time.monotonic()))

    def _close(self, end: RequestEnd) -> None:
        del self._open[end.request_id]
        self._whole.discard(end.request_id)
        if not self._open:
            self._since_s = math.inf
        self.ended(end)

    def _cut(self) -> None:
        """End the step that runs, now or soon."""
        if self._due_s > 0.0:
            self._cut_awaited.set()
        else:
            self.tick()

    async def keep_time(self) -> None:
        """Cut the steps that nothing else cuts, for ever, on the proxy's loop."""
        self._cut_awaited = asyncio.Event()
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_S):
                        await self._cut_awaited.wait()
                await asyncio.sleep(max(self._due_s, 0.0))
                self._try_tick()
        finally:  # the proxy stops: ends that wait for a cut are told
            self._try_tick()

    def _try_tick(self) -> None:
        try:
            self.tick()
        except Exception as error:  # noqa: BLE001 - boundary: answers are passed on all the same
            self._faults.note("engine", error, "Some steps were not told to the meter.")

    def tick(self) -> None:
        """End the step that runs, and begin another."""
        self._cut_awaited.clear()
        now_s = time.monotonic()
        whole = [self._open[name] for name in self._whole]
        due = [request for request in whole if not request.decoding and request.filled_s < now_s]
        for request in sorted(due, key=lambda each: each.filled_s):
            self._step(request.filled_s, partial(operator.is_, request))
        self._step(now_s, lambda each: each.came > 0)
        ends, self._ends = self._ends, []
        for end in ends:
            self._close(end)

    def _step(self, until_s: float, is_filled: Callable[[_Open], bool]) -> None:
        """Make up the step that ends now.

        Args:
            until_s: its end.
            is_filled: whether a request in prefill has its first token then.
        """
        if not self._open:
            return
        per_whole = self._per_whole() if self._whole else 1
        new, ids, computed, outputs, counts = [], [], [], [], {}
        for name, request in self._open.items():
            at, output = request.filled + request.decoded, request.decoded + request.decoding
            if request.decoding:
                counts[name] = tokens = per_whole if request.is_whole else request.awaited
                request.decoded += tokens
            else:
                counts[name] = _fill(request, whole=is_filled(request))
            if request.stepped:
                ids.append(name)
                computed.append(at)
                outputs.append(output)
            else:
                new.append(NewRow(name, request.prompt_tokens, 0, 0, pooling=False))
                request.stepped = True
        self._sequence += 1
        self.append(Scheduled(self._sequence, self._since_s, counts, new, ids, computed, outputs))
        self.append(Done(self._sequence, until_s))
        self._since_s = until_s

    def _per_whole(self) -> int:
        """Tokens of a whole answer in the step: as many as the streams beside it got."""
        streams = [
            stream.awaited
            for stream in self._open.values()
            if stream.decoding and not stream.is_whole
        ]
        return round(fmean(streams)) if streams else 1

    # On the sender's thread.

    def take(self) -> Iterator[Event]:
        """Hand over what waits; nothing is known of the time since the step that runs began."""
        since_s = self._since_s
        for event in super().take():
            yield Known(min(event.until_s, since_s)) if isinstance(event, Known) else event


def _fill(request: _Open, *, whole: bool) -> int:
    """Move a request in prefill on by one step, and give the step's tokens."""
    left = request.prompt_tokens - request.filled
    tokens = left if whole else left // 2
    request.filled += tokens
    request.decoding = whole
    return tokens
