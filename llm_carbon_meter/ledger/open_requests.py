"""The ledger's requests as columns: those that have no final figure yet.

Each has a slot, which the next one takes once its last figure is out. Steps name a request and an
account by a key, slot x `COLUMNS` + account, so that a tick is booked with one `numpy.bincount`.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Final

import numpy as np

from llm_carbon_meter.physics.step_work import (
    Floats,
    Ints,
    StepRows,
)
from llm_carbon_meter.records import REQUEST_ACCOUNTS, RequestEnd

IDLE_COLUMN: Final = len(REQUEST_ACCOUNTS)
COLUMNS: Final = IDLE_COLUMN + 1


class OpenRequests:
    """What is booked on each request so far; arrays have one entry per slot."""

    def __init__(self) -> None:
        self.joules = np.zeros(0)
        """By key."""
        self.grams = np.zeros(0)
        """gCO2eq."""
        self.gpu_s = np.zeros(0)
        """Its shares of the steps' seconds."""
        self.num_steps = np.zeros(0)
        self.running = np.zeros(0)
        """Sum over its steps of the requests in them."""
        self.opened_s = np.zeros(0)
        self.closed_s = np.zeros(0)
        self.last_step_s = np.zeros(0)
        self.worst = np.zeros(0, np.intp)
        """Rank of the worst quality that it met."""
        self.closed: dict[int, RequestEnd] = {}
        """Ended, by slot; they wait for their last tick."""
        self._slots: dict[str, int] = {}
        self._free: list[int] = []

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._slots)

    def names(self) -> list[str]:
        """Ids of the requests that have not ended."""
        return list(self._slots)

    def slot(self, request_id: str, at_s: float) -> int:
        """A request's slot; one that is new was opened at that time."""
        slot = self._slots.get(request_id)
        if slot is None:
            if not self._free:
                self._grow()
            slot = self._slots[request_id] = self._free.pop()
            self.joules[slot * COLUMNS : (slot + 1) * COLUMNS] = 0.0
            self.num_steps[slot] = self.running[slot] = 0.0
            self.grams[slot] = self.gpu_s[slot] = 0.0
            self.opened_s[slot], self.closed_s[slot] = at_s, np.inf
            self.last_step_s[slot] = -np.inf
            self.worst[slot] = 0
        return slot

    def _grow(self) -> None:
        old, new = len(self.num_steps), max(2 * len(self.num_steps), 64)
        self._free.extend(range(new - 1, old - 1, -1))
        self.joules = np.resize(self.joules, new * COLUMNS)
        for name in ("grams", "gpu_s", "num_steps", "running", "last_step_s", "worst"):
            setattr(self, name, np.resize(getattr(self, name), new))
        # A free slot was opened at the end of time: it takes no part in anything.
        grown = np.full(new - old, np.inf)
        self.opened_s = np.concatenate((self.opened_s, grown))
        self.closed_s = np.concatenate((self.closed_s, grown))

    def enter(
        self, ids: Sequence[str], rows: StepRows, accounts: Ints, start_s: Floats, end_s: Floats
    ) -> Ints:
        """Enter steps.

        Args:
            ids: of every row.
            rows: of all steps.
            accounts: of every row.
            start_s: of every step.
            end_s: of every step.

        Returns:
            The key of every row.
        """
        try:
            slots = list(map(self._slots.__getitem__, ids))
        except KeyError:
            at_s = chain.from_iterable(map(repeat, start_s.tolist(), rows.counts.tolist()))
            slots = [self.slot(name, first) for name, first in zip(ids, at_s, strict=True)]
        slot = np.array(slots, np.intp)
        num_slots = len(self.num_steps)
        self.num_steps += np.bincount(slot, minlength=num_slots)
        running = rows.per_row(rows.counts.astype(np.float64))
        self.running += np.bincount(slot, running, num_slots)
        self.last_step_s[slot] = rows.per_row(end_s)
        return slot * COLUMNS + accounts

    def close(self, end: RequestEnd) -> int:
        """A request ended; its slot."""
        slot = self.slot(end.request_id, end.monotonic_s)
        del self._slots[end.request_id]
        self.closed[slot] = end
        self.closed_s[slot] = end.monotonic_s
        return slot

    def free(self, slot: int) -> None:
        """A closed request's final figure is out."""
        del self.closed[slot]
        self.opened_s[slot] = np.inf
        self._free.append(slot)

    def accounts(self, slot: int) -> Floats:
        """Joules of one request, shape (COLUMNS,)."""
        return self.joules[slot * COLUMNS : (slot + 1) * COLUMNS].copy()

    def book(self, keys: Ints, joules: Floats, seconds: Floats, grams_per_joule: float) -> None:
        """Add joules and seconds of rows, and the joules' grams."""
        booked = np.bincount(keys, joules, len(self.joules))
        self.joules += booked
        self.grams += booked.reshape(-1, COLUMNS).sum(axis=1) * grams_per_joule
        self.gpu_s += np.bincount(keys // COLUMNS, seconds, len(self.gpu_s))

    def spread_idle(
        self, start_s: float, end_s: float, joules: float, seconds: float, grams_per_joule: float
    ) -> None:
        """Share idle joules and seconds of a span by the time that each was in the server."""
        present_s = np.minimum(self.closed_s, end_s) - np.maximum(self.opened_s, start_s)
        present_s = np.maximum(present_s, 0.0)
        total_s = float(present_s.sum())
        if total_s > 0:
            share = present_s / total_s
            self.joules[IDLE_COLUMN::COLUMNS] += joules * share
            self.grams += joules * share * grams_per_joule
            self.gpu_s += seconds * share

    def lower(self, keys: Ints, rank: int) -> None:
        """Joules of these rows are of no better quality."""
        slots = keys // COLUMNS
        self.worst[slots] = np.maximum(self.worst[slots], rank)

    def done(self, settled_s: float, *, with_idle: bool) -> Iterable[int]:
        """Slots of closed requests whose steps, and time where idle is spread, are settled."""
        return [
            slot
            for slot, end in self.closed.items()
            if self.last_step_s[slot] <= settled_s
            and (not with_idle or end.monotonic_s <= settled_s)
        ]
