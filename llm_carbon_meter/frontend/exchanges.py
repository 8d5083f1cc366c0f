"""Joins what the HTTP side knows (exchanges, ids, estimates) with what the engines measured.

An exchange is one HTTP request; it has one or more engine requests (members). Records live under
internal ids, which are unique; an external id can lead to several, and never overwrites one.
"""

import asyncio
import contextlib
import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Final

from llm_carbon_meter.records import (
    EnergyEstimate,
    Features,
    Outcome,
    Quality,
    RequestEnergy,
    Status,
    TokenCount,
)

MAX_OPEN: Final = 100_000
"""Engine requests waited for; beyond, the oldest is given up."""

# From the best to the worst that can happen to one of several.
_OUTCOMES: Final = (Outcome.FINISHED, Outcome.STOPPED, Outcome.ABORTED, Outcome.FAILED)


@dataclass(slots=True)
class Member:
    """One engine request of an exchange."""

    internal_id: str
    external_id: str
    estimate: EnergyEstimate | None
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
        estimates = [member.estimate for member in self.members.values()]
        known = [estimate for estimate in estimates if estimate is not None]
        return sum_estimates(known) if known and len(known) == len(estimates) else None

    @property
    def energy(self) -> RequestEnergy | None:
        """Of all members together; None while one has none."""
        heard = [member.energy for member in self.members.values()]
        known = [energy for energy in heard if energy is not None]
        return sum_energies(known) if known and len(known) == len(heard) else None

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

    def external_ids(self) -> Sequence[str]:
        """Every id by which a client may know the exchange."""
        known = list(self.client_ids)
        for member in self.members.values():
            known += [member.external_id, response_id(member.external_id)]
        return list(dict.fromkeys(known))


current_exchange: ContextVar[Exchange | None] = ContextVar("llm_carbon_exchange", default=None)


def response_id(external_id: str) -> str:
    """The id in the response's body: completions have the prompt's index cut off."""
    head, _, index = external_id.rpartition("-")
    return head if external_id.startswith("cmpl-") and index.isdigit() and head else external_id


def sum_estimates(estimates: Sequence[EnergyEstimate]) -> EnergyEstimate:
    """Estimates of several engine requests as one."""
    if len(estimates) == 1:
        return estimates[0]
    fields = ("prefill_joules", "decode_joules", "low_joules", "high_joules", "output_tokens")
    totals = {name: sum(getattr(each, name) for each in estimates) for name in fields}
    joules = sum(each.joules for each in estimates)
    # The calibration may have moved from one to the next.
    calibrated = sum(each.joules * each.calibration for each in estimates)
    return dataclasses.replace(
        estimates[0],
        **totals,
        operational_grams=sum(each.operational_grams for each in estimates),
        embodied_grams=_sum_known(each.embodied_grams for each in estimates),
        calibration=calibrated / joules,
    )


def sum_energies(energies: Sequence[RequestEnergy]) -> RequestEnergy:
    """Energies of several engine requests as one; the worst quality and outcome count."""
    if len(energies) == 1:
        return energies[0]
    fields = (
        "operational_grams",
        "gpu_seconds",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "num_steps",
    )
    steps = sum(each.num_steps for each in energies)
    running = sum(each.mean_running * each.num_steps for each in energies)
    final = all(each.status is Status.FINAL for each in energies)
    return dataclasses.replace(
        energies[0],
        accounts=reduce(add, (each.accounts for each in energies)),
        **{name: sum(getattr(each, name) for each in energies) for name in fields},
        embodied_grams=_sum_known(each.embodied_grams for each in energies),
        status=Status.FINAL if final else Status.PROVISIONAL,
        quality=max((each.quality for each in energies), key=lambda quality: Quality(quality).rank),
        outcome=max((each.outcome for each in energies), key=_OUTCOMES.index),
        mean_running=running / steps if steps else 0.0,
        first_step_s=min(each.first_step_s for each in energies),
        last_step_s=max(each.last_step_s for each in energies),
    )


def _sum_known(figures: Iterable[float | None]) -> float | None:
    """None where one is not known."""
    known = list(figures)
    return None if None in known else sum(filter(None, known))


class Registry:
    """Exchanges in flight of this process; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: OrderedDict[str, Exchange] = OrderedDict()
        self._unfinished: dict[int, Exchange] = {}

    @property
    def num_open(self) -> int:
        """Engine requests that are waited for."""
        return len(self._members)

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


@dataclass(slots=True)
class _Kept:
    ids: Sequence[str]
    text: str


@dataclass(slots=True)
class RecordStore:
    """The last finished records, as JSON text, under all their ids; safe from any thread."""

    limit: int
    _records: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)
    _index: dict[str, list[str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, ids: Iterable[str], text: str) -> None:
        """Keep a record under its internal id; an earlier version of the same one is replaced."""
        names = list(dict.fromkeys((key, *ids)))
        with self._lock:
            self._remove(key)
            self._records[key] = _Kept(names, text)
            for name in names:
                self._index.setdefault(name, []).append(key)
            while len(self._records) > self.limit:
                self._remove(next(iter(self._records)))

    def _remove(self, key: str) -> None:
        kept = self._records.pop(key, None)
        for name in kept.ids if kept else ():
            keys = self._index[name]
            keys.remove(key)
            if not keys:
                del self._index[name]

    def find(self, request_id: str) -> Mapping[str, str]:
        """Records under an id of any kind: internal id to JSON text."""
        with self._lock:
            return {key: self._records[key].text for key in self._index.get(request_id, ())}


def stopped(energy: RequestEnergy) -> RequestEnergy:
    """An abort after a complete answer was a stop string, found by the frontend."""
    if energy.outcome is Outcome.ABORTED:
        return dataclasses.replace(energy, outcome=Outcome.STOPPED)
    return energy
