"""Joins what the HTTP side knows (exchanges, ids, estimates) with what the engines measured.

An exchange is one HTTP request; it has one or more engine requests (members). Records live under
internal ids, which are unique; an external id can lead to several, and never overwrites one.
"""

import asyncio
import contextlib
import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Final

from llm_carbon_meter.frontend.sums import (
    sum_beam_estimates,
    sum_beams,
    sum_energies,
    sum_estimates,
)
from llm_carbon_meter.frontend.tenants import RawHeaders
from llm_carbon_meter.predictor.live import Asked
from llm_carbon_meter.records import (
    NOBODYS,
    EnergyEstimate,
    Features,
    Outcome,
    RequestEnergy,
    Status,
    TokenCount,
    Whose,
)

_BEAM: Final = re.compile(r"-(?P<step>[0-9a-f]+)-beam-[0-9]+$")
"""What vLLM's beam search adds to the id of each of its engine requests."""
MAX_OPEN: Final = 100_000
"""Engine requests waited for; beyond, the oldest is given up."""
MOST_IDS: Final = 256
"""Of each kind in a record; a list of prompts has thousands of engine requests."""
LONGEST_ID: Final = 200
"""Characters of an id that are kept; clients choose them."""


def bounded_id(text: str) -> str:
    """An id as it is kept: of a longer one the beginning, and a SHA-256 of all."""
    if len(text) <= LONGEST_ID:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[: LONGEST_ID - len(digest) - 1]}-{digest}"


@dataclass(slots=True)
class Member:
    """One engine request of an exchange."""

    internal_id: str
    external_id: str
    estimate: EnergyEstimate | None
    asked: Asked | None = None
    """What it was estimated for."""
    whose: Whose = NOBODYS
    energy: RequestEnergy | None = None
    """The last that was heard: provisional, then final."""

    @property
    def external_ids(self) -> tuple[str, str]:
        """By which a client may know it."""
        return self.external_id, response_id(self.external_id)


class Exchange:
    """One HTTP exchange in flight; also the place where its middleware waits."""

    def __init__(self, client_ids: Iterable[str] = (), headers: RawHeaders = ()) -> None:
        self.client_ids = tuple(map(bounded_id, client_ids))
        """Ids that the client sent, such as X-Request-Id."""
        self.headers = headers
        """Of the request, while they may say whose it is."""
        self.model = ""
        """Of several that a server has; empty for its only one."""
        self.claim = ""
        """Who the client says that it is asking for."""
        self.answer_id = ""
        """In the answer, as the client reads it; empty until it is there."""
        self.begun_s = time.monotonic()
        self.names: set[str] = set()
        """Under which a `Registry` finds it."""
        self.members: dict[str, Member] = {}
        self.features: Features | None = None
        self.provisional: RequestEnergy | None = None
        self.closed_s: float | None = None
        """When its HTTP side was over."""
        self.finished = False
        """It has a record, and gets no more members."""
        self.answered = False
        """The client got the whole answer."""
        self.tokens_from = TokenCount.ENGINE
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()

    def notify(self) -> None:
        """Wake whoever waits; safe from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._changed.set)

    async def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something holds, at most for a time; True if it holds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not ready():
                    self._changed.clear()
                    await self._changed.wait()
        return ready()

    @property
    def estimate(self) -> EnergyEstimate | None:
        """Of all members together; None while or where one has none."""
        estimates = [member.estimate for member in self.members.values() if member.estimate]
        complete = estimates and len(estimates) == len(self.members)
        return self.joined(estimates) if complete else None

    def joined(self, estimates: Sequence[EnergyEstimate]) -> EnergyEstimate:
        """Estimates of all members, in their order, as one."""
        join = sum_beam_estimates if self._is_beam_search else sum_estimates
        return join(estimates)

    @property
    def energy(self) -> RequestEnergy | None:
        """Of all members together; None while one has none."""
        energies = [member.energy for member in self.members.values() if member.energy]
        if not energies or len(energies) < len(self.members):
            return None
        return sum_beams(energies) if self._is_beam_search else sum_energies(energies)

    @property
    def _is_beam_search(self) -> bool:
        """Whether each engine request adds a token to the prompt and answer of another.

        Each of their steps has a number of its own, which ids that a client made up have not.
        """
        found = [_BEAM.search(member.external_id) for member in self.members.values()]
        steps = {match["step"] for match in found if match}
        return len(steps) > 1 and all(found)

    def has_energy(self) -> bool:
        """Whether every member has at least a provisional figure."""
        return bool(self.members) and all(m.energy is not None for m in self.members.values())

    def is_final(self) -> bool:
        """Whether every member has its final figure."""
        return bool(self.members) and all(
            member.energy is not None and member.energy.status is Status.FINAL
            for member in self.members.values()
        )

    def show(self) -> RequestEnergy | None:
        """The figure that leaves with the answer; kept as the record's provisional one."""
        if self.provisional is None:
            self.provisional = self.energy
        return self.provisional

    @property
    def id(self) -> str:
        """The internal id of the first engine request."""
        return next(iter(self.members))

    @property
    def whose(self) -> Whose:
        """Of its first engine request: all have one tenant."""
        return next((member.whose for member in self.members.values()), NOBODYS)

    @property
    def internal_ids(self) -> tuple[str, ...]:
        """Of its engine requests, at most `MOST_IDS`."""
        return tuple(islice(self.members, MOST_IDS))

    def external_ids(self) -> tuple[str, ...]:
        """Every id by which a client may know the exchange, at most `MOST_IDS`."""
        ids = [*self.client_ids, *([self.answer_id] if self.answer_id else ())]
        for member in self.members.values():
            ids += member.external_ids
        return tuple(islice(dict.fromkeys(ids), MOST_IDS))

    def ended_whole(self, energy: RequestEnergy) -> bool:
        """Whether the answer of a member ended by itself or at its limit."""
        return energy.outcome is Outcome.FINISHED or self.answered


current_exchange: ContextVar[Exchange | None] = ContextVar("llm_carbon_exchange", default=None)


def response_id(external_id: str) -> str:
    """The id in the response's body: without a beam's own, or completions without their prompt's
    index, which beams do not have."""
    whole, is_beam = _BEAM.subn("", external_id)
    if is_beam:
        return whole
    head, _, index = external_id.rpartition("-")
    return head if external_id.startswith("cmpl-") and index.isdigit() and head else external_id


class Registry:
    """Exchanges in flight of this process; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, Exchange] = OrderedDict()
        """By engine requests whose final figure has not come."""
        self._known: dict[int, Exchange] = {}
        """Until they are forgotten."""
        self._internal: dict[str, Exchange] = {}
        self._external: dict[str, dict[int, Exchange]] = {}
        """Clients choose ids, and repeat them."""

    def is_open(self, internal_id: str) -> bool:
        """Whether the final figure of an engine request is waited for."""
        return internal_id in self._waiting

    def begin(self, exchange: Exchange, member: Member, features: Features) -> Exchange:
        """An engine request is about to be sent.

        Returns:
            The exchange that it belongs to: one of its own where the other has its record, as when
            an answer in the background goes on.
        """
        with self._lock:
            if exchange.finished:
                exchange = _successor(exchange)
            exchange.members[member.internal_id] = member
            exchange.features = exchange.features or features
            self._waiting[member.internal_id] = exchange
            self._known[id(exchange)] = exchange
            self._internal[member.internal_id] = exchange
            self._index(exchange, member)
        exchange.notify()
        return exchange

    def rename(self, exchange: Exchange, internal_id: str, external_id: str) -> None:
        """The server tells what it calls an engine request."""
        with self._lock:
            member = exchange.members[internal_id]
            member.external_id = bounded_id(external_id)
            if id(exchange) in self._known:
                self._index(exchange, member)

    def answer(self, exchange: Exchange, answer_id: str) -> None:
        """The answer has begun, and tells the client its id."""
        with self._lock:
            exchange.answer_id = bounded_id(answer_id)
            if id(exchange) in self._known:
                self._index(exchange)

    def _index(self, exchange: Exchange, *members: Member) -> None:
        of_members = (name for member in members for name in member.external_ids)
        for name in filter(None, (*exchange.client_ids, exchange.answer_id, *of_members)):
            self._external.setdefault(name, {})[id(exchange)] = exchange
            exchange.names.add(name)

    def surplus(self) -> Exchange | None:
        """The oldest, where more engine requests are waited for than `MAX_OPEN`."""
        with self._lock:
            return next(iter(self._waiting.values())) if len(self._waiting) > MAX_OPEN else None

    def receive(self, energy: RequestEnergy) -> tuple[Exchange | None, bool]:
        """Enter an engine's figure.

        Returns:
            The exchange that it belongs to, None where it is another process's, and whether the
            exchange is finished by it.
        """
        with self._lock:
            exchange = self._waiting.get(energy.request_id)
            if exchange is None:
                return None, False
            exchange.members[energy.request_id].energy = energy
            if energy.status is Status.FINAL:
                del self._waiting[energy.request_id]
            finished = self._finished(exchange)
        if exchange.closed_s is None:  # else nobody waits any more
            exchange.notify()
        return exchange, finished

    def _finished(self, exchange: Exchange) -> bool:
        """Whether an exchange has just become complete; True only once."""
        if exchange.finished or exchange.closed_s is None or not exchange.is_final():
            return False
        exchange.finished = True
        return True

    def close(self, exchange: Exchange, answered: bool) -> bool:
        """The HTTP side of an exchange is over; True if its figures are final already."""
        with self._lock:
            if exchange.closed_s is None:
                exchange.closed_s = time.monotonic()
                exchange.answered = answered
            return self._finished(exchange)

    def forget(self, exchange: Exchange) -> None:
        """Its record is kept elsewhere."""
        with self._lock:
            self._known.pop(id(exchange), None)
            for internal_id in exchange.members:
                self._waiting.pop(internal_id, None)
                self._internal.pop(internal_id, None)
            for name in exchange.names:
                namesakes = self._external.get(name, {})
                namesakes.pop(id(exchange), None)
                if not namesakes:
                    self._external.pop(name, None)

    def unfinished(self) -> list[Exchange]:
        """Exchanges that wait for their end or their final figures."""
        with self._lock:
            return [exchange for exchange in self._known.values() if not exchange.finished]

    def find(self, request_id: str) -> list[Exchange]:
        """Exchanges in flight under an id; one of the engine's own has no namesakes."""
        with self._lock:
            if exchange := self._internal.get(request_id):
                return [exchange]
            return list(self._external.get(request_id, {}).values())


def _successor(exchange: Exchange) -> Exchange:
    """For an engine request that begins after the answer to the client was over."""
    successor = Exchange(exchange.client_ids, exchange.headers)
    successor.model, successor.claim = exchange.model, exchange.claim
    successor.answer_id = exchange.answer_id
    successor.closed_s, successor.answered = time.monotonic(), exchange.answered
    return successor
