"""The book of joules: settles counter ticks over the steps and idle gaps that they cover.

Steps and readings come in, frozen records go out. No threads, no clock: the events have the times.
When a GPU's counter has ticked, its joules are divided over everything since the last tick in
proportion to expected watts x time, and a step's part among its requests by their shares.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from llm_carbon_meter.ledger.attribution import (
    allreduce_shares,
    shares,
    step_loads,
    step_watts,
)
from llm_carbon_meter.ledger.coefficient_learner import CoefficientLearner
from llm_carbon_meter.ledger.open_requests import (
    COLUMNS,
    IDLE_COLUMN,
    OpenRequests,
)
from llm_carbon_meter.ledger.open_steps import OpenSteps
from llm_carbon_meter.physics.step_coefficients import StepCoefficients, sheet_coefficients
from llm_carbon_meter.physics.step_work import (
    CostModel,
    Floats,
    Ints,
    StepRows,
    step_work,
)
from llm_carbon_meter.records import (
    REQUEST_ACCOUNTS,
    Account,
    EnergyReading,
    GpuTotals,
    Quality,
    RequestEnd,
    RequestEnergy,
    Source,
    Status,
    StepEvent,
    StepKind,
)

STUCK_S: Final = 1.0
"""A counter that stood still this long is believed: it really counted nothing."""
LOST_AFTER_S: Final = 10.0
"""A GPU silent for this long keeps nobody waiting; what it counts meanwhile is unattributed."""
LONGEST_SILENCE_S: Final = 1.0
"""Time that passes in one go beyond this was a pause of ours, in which nobody could be heard."""
MAX_WAITING_TICKS: Final = 2048
"""While a step hangs, ticks wait; beyond this many the last one grows instead."""
AWAKE_S: Final = 0.01
"""In a gap shorter than this a GPU draws what it draws in a step that does nothing."""
SCALE_MEMORY: Final = 0.9
"""Weight of the past, per tick, in the ratio of counted to expected joules."""


class Window(NamedTuple):
    """A span in which the GPUs worked, and the power expected of each of them."""

    start_s: float
    end_s: float
    watts: float


class _Tick(NamedTuple):
    start_s: float
    end_s: float
    joules: float
    counter_joules: float
    """The counter itself at the end."""
    lost: bool
    quality: Quality


@dataclass(slots=True)
class _Gpu:
    """One GPU's side of the book."""

    name: str
    accounts: Floats = field(default_factory=lambda: np.zeros(len(Account)))
    """Joules."""
    seconds: Floats = field(default_factory=lambda: np.zeros(len(Account)))
    allreduce_joules: float = 0.0
    ticks: deque[_Tick] = field(default_factory=deque)
    last: EnergyReading | None = None
    """The reading that ended the last tick."""
    newest: EnergyReading | None = None
    """The reading at which the counter last moved."""
    worst: Quality = Quality.COUNTER
    """Of the readings since the last tick."""
    settled_until_s: float = -np.inf
    silent_s: float = 0.0
    """Since the last reading."""
    segment_base_joules: float = 0.0
    """The counter at the start, or after its last reset."""
    counted_joules: float = 0.0
    """Of earlier segments."""
    settled_joules: float = 0.0
    """The counter at the last settled tick."""
    watts: float | None = None
    scale_counted: float = 0.0
    scale_expected: float = 0.0

    @property
    def counter_joules(self) -> float:
        """The counter's own increments up to the last settled tick."""
        return self.counted_joules + self.settled_joules - self.segment_base_joules

    @property
    def scale(self) -> float:
        """Counted / expected joules of late, while busy; 1 before the first such tick."""
        return self.scale_counted / self.scale_expected if self.scale_expected > 0 else 1.0


class EnergyLedger:
    """Accounts of one engine's GPUs and open requests; one thread at a time.

    Args:
        gpus: names as in the readings.
        model: physics behind the proportions.
        source: of the readings.
        quality: of the readings.
        engine: index of the engine, for the records.
        policy: a key of `attribution.POLICIES`.
        idle_by_time: spread idle joules over the requests in the system.
        lag_s: how much later than the power was drawn a counter shows it.
        tick_s: ticks are at least this long; a counter's own may be as short as its errors of time.
        learner: learns what steps cost from the readings; without one the data sheet holds.
    """

    def __init__(
        self,
        gpus: Sequence[str],
        model: CostModel,
        source: Source,
        quality: Quality,
        *,
        engine: int = 0,
        policy: str = "shapley",
        idle_by_time: bool = False,
        lag_s: float = 0.0,
        tick_s: float = 0.0,
        learner: CoefficientLearner | None = None,
    ) -> None:
        self._gpus = {name: _Gpu(name) for name in gpus}
        self._model = model
        self._source = source
        self._quality = quality
        self._engine = engine
        self._policy = policy
        self._idle_by_time = idle_by_time
        self._lag_s = lag_s
        self.tick_s = tick_s
        self._learner = learner
        self._sheet = sheet_coefficients(model.gpu)
        self._steps = OpenSteps.empty()
        self._requests = OpenRequests()
        self._last_done_s = -np.inf
        self._known_until_s = -np.inf
        self.grams_per_joule = 0.0
        """gCO2eq per joule for what is settled from now on."""
        self.embodied_grams_per_gpu_s: float | None = None
        self.account_grams = np.zeros(len(Account))
        self.step_counts = {"prefill": 0, "decode": 0, "mixed": 0}
        self.token_counts = {account.label: 0 for account in REQUEST_ACCOUNTS}

    # Steps

    def observe_steps(self, events: Sequence[StepEvent]) -> list[Window]:
        """Enter finished steps, in the order in which they were dispatched.

        Returns:
            The spans that they occupied, with the power expected of each GPU.
        """
        if not events:
            return []
        start, end = self._occupancy(events)
        # An empty serving step did nothing: its time is idle.
        worked = [bool(event.request_ids) or event.kind is StepKind.OVERHEAD for event in events]
        events = [event for event, some in zip(events, worked, strict=True) if some]
        start, end = start[worked], end[worked]
        if not events:
            return []
        serving = np.array([bool(event.request_ids) for event in events])
        counts = np.array([len(event.request_ids) for event in events], np.intp)
        coefficients = self._coefficients
        watts, loads = np.full(len(events), coefficients.idle_watts), np.zeros((len(events), 2))
        allreduce = np.zeros(len(events))
        keys, row_shares = np.zeros(0, np.intp), np.zeros(0)
        if serving.any():
            rows = _rows([event for event in events if event.request_ids])
            work, durations = step_work(rows, self._model), (end - start)[serving]
            loads[serving] = step_loads(rows, work, coefficients)
            watts[serving] = step_watts(loads[serving], coefficients)
            allreduce[serving] = allreduce_shares(rows, durations, self._model)
            row_shares = shares(self._policy, rows, work, durations, coefficients)
            accounts = _accounts(events)
            self._count(rows, accounts)
            ids = list(chain.from_iterable(event.request_ids for event in events))
            keys = self._requests.enter(ids, rows, accounts, start[serving], end[serving])
            if self._learner and work:
                self._learner.see_steps(work, durations)
        overhead = np.array([event.kind is StepKind.OVERHEAD for event in events])
        self._steps = self._steps.append(
            OpenSteps(start, end, watts, loads, allreduce, overhead, counts, keys, row_shares)
        )
        return [
            Window(*row) for row in zip(start.tolist(), end.tolist(), watts.tolist(), strict=True)
        ]

    @property
    def _coefficients(self) -> StepCoefficients:
        return self._learner.coefficients if self._learner else self._sheet

    def _occupancy(self, events: Sequence[StepEvent]) -> tuple[Floats, Floats]:
        """Step N has the GPUs from its dispatch or the end of N-1, whichever is later."""
        end = np.maximum.accumulate([max(event.done_s, self._last_done_s) for event in events])
        before = np.concatenate(([self._last_done_s], end[:-1]))
        start = np.clip([event.dispatched_s for event in events], before, end)
        self._last_done_s = float(end[-1])
        return start, end

    def _count(self, rows: StepRows, account: Ints) -> None:
        filling = ((account == Account.PREFILL) | (account == Account.RECOMPUTE)).astype(np.float64)
        fills = rows.per_step(filling)
        self.step_counts["prefill"] += int((fills == rows.counts).sum())
        self.step_counts["decode"] += int((fills == 0).sum())
        self.step_counts["mixed"] += int(((fills > 0) & (fills < rows.counts)).sum())
        tokens = np.bincount(account, rows.new_tokens, len(REQUEST_ACCOUNTS))
        for kind in REQUEST_ACCOUNTS:
            self.token_counts[kind.label] += int(tokens[kind])

    # Requests

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return self._requests.num_open

    @property
    def num_closed(self) -> int:
        """Requests that have ended and wait for their last tick."""
        return len(self._requests.closed)

    def open_requests(self) -> list[str]:
        """Ids of the requests that have not ended."""
        return self._requests.names()

    def close(self, end: RequestEnd) -> RequestEnergy:
        """A request ended, and every step that it was in has been entered.

        Returns:
            Its figure as known now: what is settled, and the rest filled from the power model.
        """
        held = self._requests
        slot = held.close(end)
        if not end.whole and (held.num_steps[slot] or end.output_tokens):
            held.worst[slot] = max(held.worst[slot], Quality.RESET.rank)
        unsettled, unsettled_s = self._unsettled(slot)
        grams = held.grams[slot] + float(unsettled.sum()) * self.grams_per_joule
        known = held.accounts(slot) + unsettled, grams, held.gpu_s[slot] + unsettled_s
        return self._record(slot, end, *known, Status.PROVISIONAL)

    def _unsettled(self, slot: int) -> tuple[Floats, float]:
        """Expected joules, by account, and seconds of the request's steps, or parts of steps, that
        no tick has covered."""
        steps = self._steps
        rows = np.flatnonzero(steps.row_key // COLUMNS == slot)
        step = np.searchsorted(steps.first_row, rows, side="right") - 1
        expected, seconds = np.zeros(len(rows)), np.zeros(len(rows))
        for gpu in self._gpus.values():
            left_s = steps.end[step] - np.maximum(steps.start[step], gpu.settled_until_s)
            left_s = np.maximum(left_s, 0)
            watts = np.minimum(steps.watts[step] * gpu.scale, self._model.gpu.board_watts)
            expected += left_s * watts
            seconds += left_s
        share = steps.row_share[rows]
        joules = np.bincount(steps.row_key[rows] % COLUMNS, expected * share, COLUMNS)
        return joules.astype(np.float64), float(seconds @ share)

    def _label(self, slot: int) -> Quality:
        """The worst that it met; joules that are missing come before the kind of source."""
        met = list(Quality)[self._requests.worst[slot]]
        return met if met is Quality.RESET or met.rank > self._quality.rank else self._quality

    def _record(
        self,
        slot: int,
        end: RequestEnd,
        joules: Floats,
        grams: float,
        gpu_seconds: float,
        status: Status,
    ) -> RequestEnergy:
        held, rate = self._requests, self.embodied_grams_per_gpu_s
        steps = int(held.num_steps[slot])
        return RequestEnergy(
            request_id=end.request_id,
            engine=self._engine,
            status=status,
            source=self._source,
            quality=self._label(slot),
            outcome=end.outcome,
            prefill_joules=float(joules[Account.PREFILL]),
            decode_joules=float(joules[Account.DECODE]),
            recompute_joules=float(joules[Account.RECOMPUTE]),
            waste_joules=float(joules[Account.WASTE]),
            idle_joules=float(joules[IDLE_COLUMN]),
            operational_grams=float(grams),
            gpu_seconds=float(gpu_seconds),
            embodied_grams=None if rate is None else float(gpu_seconds) * rate,
            prompt_tokens=end.prompt_tokens,
            cached_tokens=end.cached_tokens,
            output_tokens=end.output_tokens,
            num_steps=steps,
            mean_running=float(held.running[slot]) / steps if steps else 0.0,
            first_step_s=float(held.opened_s[slot]),
            last_step_s=float(held.last_step_s[slot]) if steps else end.monotonic_s,
        )

    # Readings

    def observe_reading(self, reading: EnergyReading) -> None:
        """Enter what a GPU's counter says; readings of a GPU come in the order of their times."""
        gpu = self._gpus[reading.gpu]
        gpu.watts, gpu.silent_s = reading.watts, 0.0
        at_s, newest = reading.monotonic_s - self._lag_s, gpu.newest
        reading = replace(reading, monotonic_s=at_s)
        if gpu.last is None or newest is None:
            gpu.segment_base_joules = gpu.settled_joules = reading.joules
            gpu.settled_until_s = at_s
            gpu.last = gpu.newest = reading
        elif at_s > newest.monotonic_s and not _stands_still(newest, reading, at_s):
            if reading.joules <= newest.joules:  # a jump back or a rest: what was before is over
                self._end_tick(gpu, gpu.last, newest)
                gpu.worst = reading.quality
                self._end_tick(gpu, newest, reading)
            else:
                gpu.worst = max(gpu.worst, reading.quality, key=lambda quality: quality.rank)
                if at_s - gpu.last.monotonic_s >= self.tick_s:
                    self._end_tick(gpu, gpu.last, reading)
            gpu.newest = reading

    def _end_tick(self, gpu: _Gpu, first: EnergyReading, last: EnergyReading) -> None:
        quality, gpu.worst = gpu.worst, Quality.COUNTER
        if first is last:
            return
        lost = last.joules < first.joules
        joules = 0.0 if lost else last.joules - first.joules
        quality = Quality.RESET if lost else quality
        self._wait(
            gpu, _Tick(first.monotonic_s, last.monotonic_s, joules, last.joules, lost, quality)
        )
        gpu.last = last

    def _lowers(self, tick: _Tick) -> bool:
        """Whether a tick is worse than the source was at its opening."""
        return tick.quality not in (Quality.COUNTER, self._quality)

    @staticmethod
    def _wait(gpu: _Gpu, tick: _Tick) -> None:
        if len(gpu.ticks) >= MAX_WAITING_TICKS and not (tick.lost or gpu.ticks[-1].lost):
            before = gpu.ticks.pop()
            quality = max(before.quality, tick.quality, key=lambda quality: quality.rank)
            joules = before.joules + tick.joules
            tick = tick._replace(start_s=before.start_s, joules=joules, quality=quality)
        gpu.ticks.append(tick)

    # Settling

    def settle(self, known_until_s: float) -> list[RequestEnergy]:
        """Settle every tick up to a time until which all steps have been entered.

        Returns:
            Final figures of the requests whose last piece was settled.
        """
        passed_s = min(max(known_until_s - self._known_until_s, 0.0), LONGEST_SILENCE_S)
        self._known_until_s = known_until_s
        for gpu in self._gpus.values():
            while gpu.ticks and gpu.ticks[0].end_s <= known_until_s:
                self._settle_tick(gpu, gpu.ticks.popleft())
            gpu.silent_s += passed_s
            if gpu.last is not None and not gpu.ticks and gpu.silent_s > LOST_AFTER_S:
                self._lose(gpu, known_until_s)
        settled_s = min(gpu.settled_until_s for gpu in self._gpus.values())
        if len(self._steps.end) and self._steps.end[0] <= settled_s:
            self._steps = self._steps.after(settled_s)
        return self._finals(settled_s)

    def _settle_tick(self, gpu: _Gpu, tick: _Tick) -> None:
        before = gpu.accounts.copy()
        if self._lowers(tick):
            self._lower(tick.start_s, tick.end_s, tick.quality)
        if self._learner and (tick.lost or tick.start_s < gpu.settled_until_s):
            self._learner.skip(gpu.name)
        if tick.lost:
            gpu.counted_joules += gpu.settled_joules - gpu.segment_base_joules
            gpu.segment_base_joules = tick.counter_joules
        elif tick.start_s < gpu.settled_until_s:  # the GPU had been given up for lost
            gpu.accounts[Account.UNATTRIBUTED] += tick.joules
        else:
            self._divide(gpu, tick)
            gpu.settled_until_s = tick.end_s
        self.account_grams += (gpu.accounts - before) * self.grams_per_joule
        gpu.settled_joules = tick.counter_joules
        self._pass(gpu, tick.end_s)

    def _divide(self, gpu: _Gpu, tick: _Tick) -> None:
        steps = self._steps
        part = steps.within(tick.start_s, tick.end_s)
        busy_s = np.minimum(steps.end[part], tick.end_s) - np.maximum(
            steps.start[part], tick.start_s
        )
        expected = steps.watts[part] * busy_s
        idle_s = max(tick.end_s - tick.start_s - float(busy_s.sum()), 0.0)
        gaps_s = steps.gaps_s(part)
        awake_s = float(gaps_s[gaps_s < AWAKE_S].sum())
        idle_expected = self._coefficients.idle_watts * max(idle_s - awake_s, 0.0)
        idle_expected += self._coefficients.static_watts * awake_s
        busy_expected = float(expected.sum())
        total = busy_expected + idle_expected
        if busy_expected > 0:  # an idle GPU says nothing of what a step draws
            gpu.scale_counted *= SCALE_MEMORY
            gpu.scale_counted += tick.joules * busy_expected / total
            gpu.scale_expected = SCALE_MEMORY * gpu.scale_expected + busy_expected
        step_joules = tick.joules * expected / total
        overhead = steps.overhead[part]
        if self._learner:
            if overhead.any() or self._lowers(tick):  # nobody knows what was done for these joules
                self._learner.skip(gpu.name)
            else:
                worked = steps.loads[part], idle_s, awake_s
                self._learner.see_tick(gpu.name, busy_s, *worked, tick.joules)
        gpu.accounts[Account.OVERHEAD] += step_joules[overhead].sum()
        gpu.allreduce_joules += float(step_joules @ steps.allreduce[part])
        rows = steps.rows(part)
        keys = steps.row_key[rows]
        of_rows = steps.row_share[rows]
        row_joules = np.repeat(step_joules, steps.counts[part]) * of_rows
        row_s = np.repeat(busy_s, steps.counts[part]) * of_rows
        self._requests.book(keys, row_joules, row_s, self.grams_per_joule)
        of_requests = len(REQUEST_ACCOUNTS)
        gpu.seconds[:of_requests] += np.bincount(keys % COLUMNS, row_s, of_requests)
        gpu.seconds[Account.OVERHEAD] += busy_s[overhead].sum()
        gpu.seconds[Account.IDLE] += idle_s
        gpu.accounts[:of_requests] += np.bincount(keys % COLUMNS, row_joules, of_requests)
        idle_joules = tick.joules * idle_expected / total
        gpu.accounts[Account.IDLE] += idle_joules
        if self._idle_by_time:
            self._requests.spread_idle(
                tick.start_s, tick.end_s, idle_joules, idle_s, self.grams_per_joule
            )

    def _lower(self, start_s: float, end_s: float, quality: Quality) -> None:
        """Joules of this span are of no better quality: say so on every request that ran in it."""
        steps = self._steps
        rows = steps.rows(steps.within(start_s, end_s))
        self._requests.lower(steps.row_key[rows], quality.rank)

    def _finals(self, settled_s: float) -> list[RequestEnergy]:
        finals, held = [], self._requests
        for slot in held.done(settled_s, with_idle=self._idle_by_time):
            known = held.accounts(slot), held.grams[slot], held.gpu_s[slot]
            finals.append(self._record(slot, held.closed[slot], *known, Status.FINAL))
            held.free(slot)
        return finals

    def give_up(self, at_s: float) -> list[RequestEnergy]:
        """No tick will come any more: what is still unsettled stays unknown, and is labelled so."""
        for gpu in self._gpus.values():
            if gpu.last is not None and gpu.newest is not None:
                self._end_tick(gpu, gpu.last, gpu.newest)
        finals = self.settle(at_s)
        for gpu in self._gpus.values():
            self._lose(gpu, at_s)
        return finals + self.settle(at_s)

    def _lose(self, gpu: _Gpu, until_s: float) -> None:
        """Wait no longer for what a GPU counted up to a time."""
        self._lower(gpu.settled_until_s, until_s, Quality.RESET)
        self._pass(gpu, until_s)

    @staticmethod
    def _pass(gpu: _Gpu, until_s: float) -> None:
        """What is left of the time up to a moment is nobody's."""
        if until_s > gpu.settled_until_s:
            gpu.seconds[Account.UNATTRIBUTED] += until_s - gpu.settled_until_s
            gpu.settled_until_s = until_s

    def totals(self) -> list[GpuTotals]:
        """Each GPU's accounts up to its last settled tick."""
        return [
            GpuTotals(
                gpu.name,
                gpu.counter_joules,
                tuple(gpu.accounts.tolist()),
                tuple(gpu.seconds.tolist()),
                gpu.watts,
                gpu.allreduce_joules if self._model.exchanges else None,
            )
            for gpu in self._gpus.values()
        ]


def _stands_still(last: EnergyReading, reading: EnergyReading, at_s: float) -> bool:
    """Nothing was counted, and nothing that was drawn is known to be missing."""
    waiting = reading.quality is not Quality.RESET and at_s - last.monotonic_s < STUCK_S
    return waiting and reading.joules == last.joules


def _rows(events: Sequence[StepEvent]) -> StepRows:
    return StepRows(
        counts=np.array([len(event.request_ids) for event in events], np.intp),
        new_tokens=_column(events, "num_scheduled_tokens"),
        cached_tokens=_column(events, "num_computed_tokens"),
        sampled=_column(events, "num_sampled"),
    )


def _column(events: Sequence[StepEvent], name: str) -> Floats:
    # By way of whole numbers: numpy reads a list of them in two thirds of the time.
    column = list(chain.from_iterable(map(attrgetter(name), events)))
    return np.array(column, np.int64).astype(np.float64)


def _accounts(events: Sequence[StepEvent]) -> Ints:
    # By way of bytes: a tenth of the time that numpy takes over a list of enum members.
    column = b"".join(bytes(event.accounts) for event in events)
    return np.frombuffer(column, np.uint8).astype(np.intp)
