"""The ledger's requests as columns: those that have no final figure yet.

Each has a slot, which the next one takes once its last figure is out. Steps name a request and an
account by a key, slot x `COLUMNS` + account, so that a tick is booked with one `numpy.bincount`.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Final, NamedTuple

import numpy as np

from llm_carbon_meter.ledger.counters import Tick
from llm_carbon_meter.ledger.division import Division, RowShares
from llm_carbon_meter.ledger.uncertainty import uncertainty
from llm_carbon_meter.physics.step_work import Floats, Ints, StepRows
from llm_carbon_meter.records import (
    REQUEST_ACCOUNTS,
    Account,
    AccountJoules,
    Quality,
    RequestEnd,
    RequestEnergy,
    Source,
    Status,
)

IDLE_COLUMN: Final = len(REQUEST_ACCOUNTS)
COLUMNS: Final = IDLE_COLUMN + 1


class Figures(NamedTuple):
    """What is booked on a request, or expected."""

    joules: Floats
    """By column, shape (COLUMNS,)."""
    grams: float
    """gCO2eq."""
    gpu_seconds: float

    def plus(self, expected: "Figures", grams_per_joule: float) -> "Figures":
        """With joules that are expected, and their grams."""
        return Figures(
            self.joules + expected.joules,
            self.grams + float(expected.joules.sum()) * grams_per_joule,
            self.gpu_seconds + expected.gpu_seconds,
        )


class Provenance(NamedTuple):
    """Where the figures of an engine's requests come from."""

    engine: int
    source: Source
    quality: Quality
    """Of the source at its opening."""
    embodied_grams_per_gpu_s: float | None
    litres_per_joule: float | None
    host_source: Source | None
    """Of the host's joules; None where nobody counts them."""
    window_error: float | None
    """Usual error of the expectation; None where nothing learns it."""

    def worst(self, met: Quality) -> Quality:
        """The label of a request that met a quality: joules that are missing come first."""
        lower = met.misses_joules or met.rank > self.quality.rank
        return met if lower else self.quality

    def uncertainty(self, quality: Quality, status: Status, num_steps: int) -> float | None:
        """Of a figure, where its joules are a counter's own."""
        if self.window_error is None or quality not in (Quality.COUNTER, Quality.POWER):
            return None
        provisional = status is Status.PROVISIONAL
        return uncertainty(self.window_error, num_steps, provisional=provisional)

    def embodied_grams(self, gpu_seconds: float) -> float | None:
        """gCO2eq of the hardware's making in some time; None where it is left out."""
        rate = self.embodied_grams_per_gpu_s
        return None if rate is None else gpu_seconds * rate

    def water_litres(self, joules: float) -> float | None:
        """Water for some joules; None where nobody knows a factor."""
        return None if self.litres_per_joule is None else joules * self.litres_per_joule


class OpenRequests:
    """What is booked on each request so far; arrays have one entry per slot."""

    def __init__(self) -> None:
        self.joules = np.zeros(0)
        """By key."""
        self.grams = np.zeros(0)
        """gCO2eq."""
        self.gpu_s = np.zeros(0)
        """Its shares of the steps' seconds."""
        self.host_joules = np.zeros(0)
        """Of the host beside its GPUs; NaN where some of them are not known."""
        self.num_steps = np.zeros(0)
        self.decode_steps = np.zeros(0)
        self.decode_tokens = np.zeros(0)
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
            self.decode_steps[slot] = self.decode_tokens[slot] = 0.0
            self.grams[slot] = self.gpu_s[slot] = self.host_joules[slot] = 0.0
            self.opened_s[slot], self.closed_s[slot] = at_s, np.inf
            self.last_step_s[slot] = -np.inf
            self.worst[slot] = 0
        return slot

    def _grow(self) -> None:
        old, new = len(self.num_steps), max(2 * len(self.num_steps), 64)
        self._free.extend(range(new - 1, old - 1, -1))
        self.joules = np.resize(self.joules, new * COLUMNS)
        sums = ("grams", "gpu_s", "host_joules", "num_steps", "decode_steps", "decode_tokens")
        for name in (*sums, "running", "last_step_s", "worst"):
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
        decode = accounts == Account.DECODE
        self.decode_steps += np.bincount(slot, decode, num_slots)
        self.decode_tokens += np.bincount(slot, rows.new_tokens * decode, num_slots)
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
        if not end.whole and (self.num_steps[slot] or end.output_tokens):
            self.worst[slot] = max(self.worst[slot], Quality.RESET.rank)
        return slot

    def record(
        self, slot: int, figures: Figures, status: Status, provenance: Provenance
    ) -> RequestEnergy:
        """A closed request as it leaves the book."""
        end, steps = self.closed[slot], int(self.num_steps[slot])
        gpu_seconds = float(figures.gpu_seconds)
        quality = provenance.worst(list(Quality)[self.worst[slot]])
        return RequestEnergy(
            request_id=end.request_id,
            engine=provenance.engine,
            status=status,
            source=provenance.source,
            quality=quality,
            outcome=end.outcome,
            accounts=AccountJoules(*figures.joules.tolist()),
            operational_grams=float(figures.grams),
            gpu_seconds=gpu_seconds,
            embodied_grams=provenance.embodied_grams(gpu_seconds),
            prompt_tokens=end.prompt_tokens,
            cached_tokens=end.cached_tokens,
            output_tokens=end.output_tokens,
            num_steps=steps,
            mean_running=float(self.running[slot]) / steps if steps else 0.0,
            first_step_s=float(self.opened_s[slot]),
            last_step_s=float(self.last_step_s[slot]) if steps else end.monotonic_s,
            decode_steps=int(self.decode_steps[slot]),
            decode_tokens=int(self.decode_tokens[slot]),
            uncertainty=provenance.uncertainty(quality, status, steps),
            host_joules=self._host_joules(slot, status, provenance),
            host_source=provenance.host_source,
            water_litres=provenance.water_litres(float(figures.joules.sum())),
        )

    def _host_joules(self, slot: int, status: Status, provenance: Provenance) -> float | None:
        joules = float(self.host_joules[slot])
        known = provenance.host_source is not None and status is Status.FINAL
        return joules if known and not np.isnan(joules) else None

    def free(self, slot: int) -> None:
        """A closed request's final figure is out."""
        del self.closed[slot]
        self.opened_s[slot] = np.inf
        self._free.append(slot)

    def figures(self, slot: int) -> Figures:
        """What is booked on one request."""
        joules = self.joules[slot * COLUMNS : (slot + 1) * COLUMNS].copy()
        return Figures(joules, float(self.grams[slot]), float(self.gpu_s[slot]))

    def book(self, rows: RowShares, grams_per_joule: float) -> None:
        """Add joules and seconds of rows, and the joules' grams."""
        booked = np.bincount(rows.keys, rows.joules, len(self.joules))
        self.joules += booked
        self.grams += booked.reshape(-1, COLUMNS).sum(axis=1) * grams_per_joule
        self.gpu_s += np.bincount(rows.keys // COLUMNS, rows.seconds, len(self.gpu_s))

    def book_host(self, rows: RowShares) -> None:
        """Add the host's joules of rows."""
        self.host_joules += np.bincount(rows.keys // COLUMNS, rows.joules, len(self.host_joules))

    def forget_host(self, keys: Ints) -> None:
        """What the host drew for these rows is not known."""
        self.host_joules[keys // COLUMNS] = np.nan

    def spread_idle(self, tick: Tick, division: Division, grams_per_joule: float) -> None:
        """Share a tick's idle joules and seconds by the time that each was in the server."""
        present_s = np.minimum(self.closed_s, tick.end_s) - np.maximum(self.opened_s, tick.start_s)
        present_s = np.maximum(present_s, 0.0)
        total_s = float(present_s.sum())
        if total_s > 0:
            share = present_s / total_s
            self.joules[IDLE_COLUMN::COLUMNS] += division.idle_joules * share
            self.grams += division.idle_joules * share * grams_per_joule
            self.gpu_s += division.idle_s * share

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
