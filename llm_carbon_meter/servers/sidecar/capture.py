"""Steps made up for a server that nobody sees into: what a proxy knows of its requests, and when.

The model. While requests are open, time is cut into steps: every `INTERVAL_S`, and wherever a
request begins, shows its first token, or ends. The rows of a step are the requests open in it.

* Until the first token a request is in prefill: each step takes half of the prompt tokens that are
  left, as nobody sees how far it is, and the step before the first token takes the rest. Waiting in
  the server's queue looks the same.
* Afterwards it is in decode: a step has the tokens that came in it, and the one that is next.
* An answer that comes whole shows no first token: it is taken to be in prefill for the time that
  its prompt takes at `WHOLE_PREFILL_TOKENS_PER_S`, and then gets as many tokens a step as the
  streams beside it got on average; one where there are none.

The joules of a step are the counter's; which requests they belong to follows from these guesses.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Final, NamedTuple

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome, RequestEnd
from llm_carbon_meter.servers.shared.events import Done, Event, EventQueue, Known, NewRow, Scheduled

INTERVAL_S: Final = 0.05
"""Of the steps while nothing else cuts them."""
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
        self._open: dict[str, _Open] = {}
        self._since_s = math.inf
        """Start of the step that runs."""
        self._sequence = 0

    def held(self) -> int:
        """Requests that went to the server and whose answers are not over."""
        return len(self._open)

    def begin(self, request_id: str, prompt_tokens: int, *, whole: bool) -> None:
        """A request goes to the server.

        Args:
            request_id: unique.
            prompt_tokens: at least 1.
            whole: its answer comes in one piece.
        """
        self.tick()
        now_s = time.monotonic()
        filled_s = now_s + prompt_tokens / WHOLE_PREFILL_TOKENS_PER_S if whole else math.inf
        self._open[request_id] = _Open(request_id, prompt_tokens, filled_s)
        self._since_s = min(self._since_s, now_s)

    def came(self, request_id: str, tokens: int) -> None:
        """Tokens of a stream came, not whole answers'."""
        request = self._open[request_id]
        request.came += tokens
        if not request.decoding:
            self.tick(first=request)

    def end(self, request_id: str, outcome: Outcome, usage: Usage) -> None:
        """The answer is complete, or nobody waits for it any more."""
        self.tick()
        self._close(request_id, outcome, usage)

    def refuse(self, request_id: str, usage: Usage) -> None:
        """The server did not take the request: the step that runs is not its own."""
        self._close(request_id, Outcome.FAILED, usage)

    def _close(self, request_id: str, outcome: Outcome, usage: Usage) -> None:
        del self._open[request_id]
        if not self._open:
            self._since_s = math.inf
        self.ended(RequestEnd(request_id, outcome, *usage, time.monotonic()))

    def tick(self, first: _Open | None = None) -> None:
        """End the step that runs, and begin another.

        Args:
            first: the request whose first token has just come.
        """
        now_s = time.monotonic()
        due = [
            request
            for request in self._open.values()
            if not request.decoding and request.filled_s < now_s
        ]
        for request in sorted(due, key=lambda each: each.filled_s):
            self._step(request.filled_s, request)
        self._step(now_s, first)

    def _step(self, until_s: float, first: _Open | None) -> None:
        """Make up the step that ends now; with it ends the prefill of ``first``."""
        if not self._open:
            return
        streams = [
            stream for stream in self._open.values() if stream.decoding and not stream.is_whole
        ]
        per_whole = round(fmean(stream.awaited for stream in streams)) if streams else 1
        new, ids, computed, outputs, counts = [], [], [], [], {}
        for name, request in self._open.items():
            at, output = request.filled + request.decoded, request.decoded + request.decoding
            counts[name] = _advance(request, per_whole, filled=request is first)
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

    # On the sender's thread.

    def take(self) -> Iterator[Event]:
        """Hand over what waits; nothing is known of the time since the step that runs began."""
        since_s = self._since_s
        for event in super().take():
            yield Known(min(event.until_s, since_s)) if isinstance(event, Known) else event


def _advance(request: _Open, per_whole: int, *, filled: bool) -> int:
    """Move a request on by the tokens of one step, and give their number."""
    if request.decoding:
        tokens = per_whole if request.is_whole else request.awaited
        request.decoded += tokens
        return tokens
    left = request.prompt_tokens - request.filled
    tokens = left if filled else left // 2
    request.filled += tokens
    request.decoding = filled
    return tokens
