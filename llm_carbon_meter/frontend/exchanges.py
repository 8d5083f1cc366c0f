"""Joins what the HTTP side knows (exchanges, ids, estimates) with what the engines measured.

An exchange is one HTTP request; it has one or more engine requests (members). Records live under
internal ids, which are unique; an external id can lead to several, and never overwrites one.
"""

import asyncio
import contextlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from llm_carbon_meter.frontend.sums import sum_energies, sum_estimates
from llm_carbon_meter.predictor.live import Asked
from llm_carbon_meter.records import (
    EnergyEstimate,
    Features,
    Outcome,
    RequestEnergy,
    Status,
    TokenCount,
)

_BEAM: Final = re.compile(r"-[0-9a-f]+-beam-[0-9]+$")
"""What vLLM's beam search adds to the id of each of its engine requests."""
MAX_OPEN: Final = 100_000
"""Engine requests waited for; beyond, the oldest is given up."""


@dataclass(slots=True)
class Member:
    """One engine request of an exchange."""

    internal_id: str
    external_id: str
    estimate: EnergyEstimate | None
    asked: Asked | None = None
    """What it was estimated for."""
    energy: RequestEnergy | None = None
    """The last that was heard: provisional, then final."""


class Exchange:
    """One HTTP exchange in flight; also the place where its middleware waits."""

    def __init__(self, client_ids: Iterable[str] = ()) -> None:
        self.client_ids = tuple(client_ids)
        """Ids that the client sent, such as X-Request-Id."""
        self.members: dict[str, Member] = {}
        self.features: Features | None = None
        self.provisional: RequestEnergy | None = None
        self.closed = False
        self.given_up = False
        """Waited for too long; it will have no record."""
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
        return sum_estimates(estimates) if complete else None

    @property
    def energy(self) -> RequestEnergy | None:
        """Of all members together; None while one has none."""
        energies = [member.energy for member in self.members.values() if member.energy]
        complete = energies and len(energies) == len(self.members)
        return sum_energies(energies) if complete else None

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

    def external_ids(self) -> tuple[str, ...]:
        """Every id by which a client may know the exchange."""
        ids = list(self.client_ids)
        for member in self.members.values():
            ids += [member.external_id, response_id(member.external_id)]
        return tuple(dict.fromkeys(ids))

    def ended_whole(self, energy: RequestEnergy) -> bool:
        """Whether the answer of a member ended by itself or at its limit."""
        return energy.outcome is Outcome.FINISHED or self.answered


current_exchange: ContextVar[Exchange | None] = ContextVar("llm_carbon_exchange", default=None)


def response_id(external_id: str) -> str:
    """The id in the response's body: without a beam's own, and completions without their prompt's
    index."""
    external_id = _BEAM.sub("", external_id)
    head, _, index = external_id.rpartition("-")
    return head if external_id.startswith("cmpl-") and index.isdigit() and head else external_id


class Registry:
    """Exchanges in flight of this process; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: OrderedDict[str, Exchange] = OrderedDict()
        self._unfinished: dict[int, Exchange] = {}

    def is_open(self, internal_id: str) -> bool:
        """Whether the final figure of an engine request is waited for."""
        return internal_id in self._members

    def begin(self, exchange: Exchange, member: Member, features: Features) -> None:
        """An engine request is about to be sent."""
        with self._lock:
            if exchange.given_up:
                return
            exchange.members[member.internal_id] = member
            exchange.features = exchange.features or features
            self._members[member.internal_id] = exchange
            self._unfinished[id(exchange)] = exchange
            while len(self._members) > MAX_OPEN:
                self._give_up(next(iter(self._members.values())))
        exchange.notify()

    def _give_up(self, exchange: Exchange) -> None:
        """Nothing will complete this one any more."""
        exchange.given_up = True
        self._unfinished.pop(id(exchange), None)
        for internal_id in exchange.members:
            self._members.pop(internal_id, None)

    def receive(self, energy: RequestEnergy) -> tuple[Exchange | None, bool]:
        """Enter an engine's figure.

        Returns:
            The exchange that it belongs to, None where it is another process's, and whether the
            exchange is finished by it.
        """
        with self._lock:
            exchange = self._members.get(energy.request_id)
            if exchange is None:
                return None, False
            exchange.members[energy.request_id].energy = energy
            if energy.status is Status.FINAL:
                del self._members[energy.request_id]
            finished = self._finished(exchange)
        if not exchange.closed:  # else nobody waits any more
            exchange.notify()
        return exchange, finished

    def _finished(self, exchange: Exchange) -> bool:
        """Whether an exchange has just become complete; True only once."""
        complete = exchange.closed and exchange.is_final()
        return complete and self._unfinished.pop(id(exchange), None) is not None

    def close(self, exchange: Exchange, answered: bool) -> bool:
        """The HTTP side of an exchange is over; True if its figures are final already."""
        with self._lock:
            exchange.closed = True
            exchange.answered = answered
            return self._finished(exchange)

    def unfinished(self) -> list[Exchange]:
        """Exchanges that wait for their end or their final figures."""
        with self._lock:
            return list(self._unfinished.values())

    def find(self, request_id: str) -> list[Exchange]:
        """Exchanges in flight under an id of any kind."""
        with self._lock:
            return [
                exchange
                for exchange in self._unfinished.values()
                if request_id in exchange.members or request_id in exchange.external_ids()
            ]
