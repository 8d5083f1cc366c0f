"""The book of joules: settles counter ticks over the steps and idle gaps that they cover.

Steps and readings come in, frozen records go out. No threads, no clock: the events have the times.
When a GPU's counter has ticked (counters.py), its joules are divided over everything since the last
tick in proportion to expected watts x time (division.py), and a step's part among its requests by
their shares (step_entry.py, attribution.py).
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from llm_carbon_meter.ledger.attribution import SHAPLEY
from llm_carbon_meter.ledger.coefficient_learner import (
    AVERAGED_WINDOW_S,
    WINDOW_S,
    CoefficientLearner,
)
from llm_carbon_meter.ledger.counters import GpuCounter, Tick
from llm_carbon_meter.ledger.division import (
    Division,
    divide,
    divide_by_time,
    expected_course,
    over_rows,
)
from llm_carbon_meter.ledger.gpu_book import GpuBook, unsettled
from llm_carbon_meter.ledger.lag_learner import LagLearner
from llm_carbon_meter.ledger.open_requests import OpenRequests, Provenance
from llm_carbon_meter.ledger.open_steps import OpenSteps
from llm_carbon_meter.ledger.step_columns import StepCounts
from llm_carbon_meter.ledger.step_entry import StepEntry
from llm_carbon_meter.physics.step_work import CostModel, Floats
from llm_carbon_meter.records import (
    Account,
    EnergyReading,
    GpuTotals,
    HostTotals,
    Quality,
    RequestEnd,
    RequestEnergy,
    Source,
    Status,
    StepEvent,
)

LOST_AFTER_S: Final = 10.0
"""A GPU silent for this long keeps nobody waiting; what it counts meanwhile is unattributed."""
TINY_S: Final = 1e-12
LONGEST_SILENCE_S: Final = 1.0
"""Time that passes in one go beyond this was a pause of ours, in which nobody could be heard."""


class Window(NamedTuple):
    """A span in which the GPUs worked, and the power expected of each of them."""

    start_s: float
    end_s: float
    watts: float


class SeenTick(NamedTuple):
    """What a GPU did and counted in a tick of which everything is known."""

    sums: Floats
    """`phases.SUMS` of its steps, shape (steps, sums)."""
    parts: Floats
    """How much of each step was inside the tick, shape (steps,)."""
    seconds: float
    """In steps, and in gaps so short that clocks stayed up."""
    joules: float
    """Counted, less what idle time is expected to draw."""


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
        lag_s: how much later than the power was drawn a counter shows it, beyond what the readings'
            times already account for; None where nothing is known of it.
        tick_s: ticks are at least this long; a counter's own may be as short as its errors of time.
        embodied_grams_per_gpu_s: of the hardware's making; None to leave it out.
        litres_per_joule: of water; None to leave it out.
        learner: learns what steps cost from the readings; without one the data sheet holds.
        lags: learns how late the counters are; without one ``lag_s`` holds.
        host: domains of the host beside its GPUs, as in their readings.
        host_source: of these readings; None where there are none.
        watch: is shown every tick of which everything is known.
    """

    def __init__(
        self,
        gpus: Sequence[str],
        model: CostModel,
        source: Source,
        quality: Quality,
        *,
        engine: int = 0,
        policy: str = SHAPLEY,
        idle_by_time: bool = False,
        lag_s: float | None = None,
        tick_s: float = 0.0,
        embodied_grams_per_gpu_s: float | None = None,
        litres_per_joule: float | None = None,
        learner: CoefficientLearner | None = None,
        lags: LagLearner | None = None,
        host: Sequence[str] = (),
        host_source: Source | None = None,
        watch: Callable[[SeenTick], None] | None = None,
    ) -> None:
        self._gpus = {name: GpuBook(name, GpuCounter(tick_s, lag_s)) for name in gpus}
        self._model = model
        self._quality = quality
        self._host = {name: GpuBook(name, GpuCounter(0.0, 0.0)) for name in host}
        self._host_source = host_source
        rates = (embodied_grams_per_gpu_s, litres_per_joule)
        self._origin = (engine, source, quality, *rates, host_source)
        self._idle_by_time = idle_by_time
        self._learner = learner
        self._lags, self._watch = lags, watch
        self._entry = StepEntry(model, policy, learner, with_sums=watch is not None)
        self._steps = OpenSteps.empty()
        self._requests = OpenRequests()
        self._known_until_s = -np.inf
        self.account_grams = np.zeros(len(Account))
        """gCO2eq so far, indexed by Account."""

    @property
    def counts(self) -> StepCounts:
        """Steps and tokens so far."""
        return self._entry.counts

    # Steps

    def observe_steps(self, events: Sequence[StepEvent]) -> list[Window]:
        """Enter finished steps, in the order in which they were dispatched.

        Returns:
            The spans that they occupied, with the power expected of each GPU.
        """
        steps = self._entry.enter(events, self._requests)
        self._steps = self._steps.append(steps)
        columns = (steps.start.tolist(), steps.end.tolist(), steps.watts.tolist())
        return [Window(*row) for row in zip(*columns, strict=True)]

    # Requests

    @property
    def _provenance(self) -> Provenance:
        # Of other policies nobody says that they give what a request caused.
        judged = self._learner if self._entry.policy == SHAPLEY else None
        window_error = judged.window_error if judged else None
        return Provenance(*self._origin, window_error)

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

    def close(self, end: RequestEnd, grams_per_joule: float = 0.0) -> RequestEnergy:
        """A request ended, and every step that it was in has been entered.

        Args:
            end: the engine's last word.
            grams_per_joule: gCO2eq, for what is not settled yet.

        Returns:
            Its figure as known now: what is settled, and the rest filled from the power model.
        """
        slot = self._requests.close(end)
        limit_watts = self._model.gpu.limit_watts
        expected = unsettled(slot, self._steps, self._gpus.values(), limit_watts)
        figures = self._requests.figures(slot).plus(expected, grams_per_joule)
        return self._requests.record(slot, figures, Status.PROVISIONAL, self._provenance)

    # Readings

    def observe_reading(self, reading: EnergyReading) -> None:
        """Enter what a GPU's counter says; readings of a GPU come in the order of their times."""
        gpu = self._gpus[reading.gpu]
        if self._lags is not None:
            gpu.counter.lag_s = self._lags.beyond_s(gpu.name, reading.lag_s)
        gpu.observe(reading)

    def observe_host(self, reading: EnergyReading) -> None:
        """Enter what a domain of the host has counted, likewise; one reading of each comes before
        any step ends."""
        self._host[reading.gpu].observe(reading)

    def allow_short_ticks(self) -> None:
        """The engine ends: from now on a tick may be as short as the counter's own."""
        for gpu in self._gpus.values():
            gpu.counter.tick_s = 0.0

    # Settling

    def settle(self, known_until_s: float, grams_per_joule: float = 0.0) -> list[RequestEnergy]:
        """Settle every tick up to a time until which all steps have been entered.

        Args:
            known_until_s: that time.
            grams_per_joule: gCO2eq, for what is settled now.

        Returns:
            Final figures of the requests whose last piece was settled.
        """
        passed_s = min(max(known_until_s - self._known_until_s, 0.0), LONGEST_SILENCE_S)
        self._known_until_s = known_until_s
        for gpu in self._gpus.values():
            ticks = gpu.counter.ticks
            while ticks and ticks[0].end_s <= known_until_s:
                self._settle_tick(gpu, ticks.popleft(), grams_per_joule)
            gpu.counter.silent_s += passed_s
            if gpu.counter.begun and not ticks and gpu.counter.silent_s > LOST_AFTER_S:
                self._lose(gpu, known_until_s)
        for domain in self._host.values():
            self._settle_host(domain, known_until_s, passed_s)
        books = (*self._gpus.values(), *self._host.values())
        settled_s = min(book.settled_until_s for book in books)
        if len(self._steps.end) and self._steps.end[0] <= settled_s:
            self._steps = self._steps.after(settled_s)
        return self._finals(settled_s)

    def _settle_tick(self, gpu: GpuBook, tick: Tick, grams_per_joule: float) -> None:
        before = gpu.joules.copy()
        if self._lowers(tick):
            self._lower(tick.start_s, tick.end_s, tick.quality)
        late = tick.start_s < gpu.settled_until_s  # the GPU had been given up for lost
        if late or not tick.divisible:
            if self._learner:
                self._learner.skip(gpu.name)
            gpu.joules[Account.UNATTRIBUTED] += tick.joules  # none of a tick that is lost
        else:
            self._divide(gpu, tick, grams_per_joule)
            gpu.settled_until_s = tick.end_s
        self.account_grams += (gpu.joules - before) * grams_per_joule
        gpu.counter.settle(tick)
        gpu.pass_until(tick.end_s)

    def _settle_host(self, domain: GpuBook, known_until_s: float, passed_s: float) -> None:
        """Settle a domain's ticks; one that is silent keeps nobody waiting."""
        ticks = domain.counter.ticks
        while ticks and ticks[0].end_s <= known_until_s:
            self._settle_host_tick(domain, ticks.popleft())
        domain.counter.silent_s += passed_s
        if not ticks and domain.counter.silent_s > LOST_AFTER_S:
            self._lose_host(domain, known_until_s)

    def _settle_host_tick(self, domain: GpuBook, tick: Tick) -> None:
        late = tick.start_s < domain.settled_until_s  # it had been given up for lost
        if tick.lost or tick.quality is Quality.RESET or late:
            domain.joules[Account.UNATTRIBUTED] += tick.joules
            self._forget_host(tick.start_s, tick.end_s)
        else:
            division = divide_by_time(tick, self._steps)
            rows = over_rows(division, self._steps)
            domain.book(division, rows, self._steps, tick.joules)
            self._requests.book_host(rows)
            domain.settled_until_s = tick.end_s
        domain.counter.settle(tick)
        domain.pass_until(tick.end_s)

    def _lose_host(self, domain: GpuBook, until_s: float) -> None:
        """Wait no longer for what a domain counted up to a time."""
        self._forget_host(domain.settled_until_s, until_s)
        domain.pass_until(until_s)

    def _forget_host(self, start_s: float, end_s: float) -> None:
        """Nobody knows what the host drew in this span: requests that ran in it have no figure."""
        steps = self._steps
        self._requests.forget_host(steps.row_key[steps.rows(steps.within(start_s, end_s))])

    def _divide(self, gpu: GpuBook, tick: Tick, grams_per_joule: float) -> None:
        steps = self._steps
        division = divide(tick, steps, self._entry.coefficients)
        self._teach(gpu, tick, division)
        rows = over_rows(division, steps)
        gpu.book(division, rows, steps, tick.joules)
        self._requests.book(rows, grams_per_joule)
        if self._idle_by_time:
            self._requests.spread_idle(tick, division, grams_per_joule)

    def _teach(self, gpu: GpuBook, tick: Tick, division: Division) -> None:
        """What a tick tells of the steps' costs, and of the counter's lag."""
        part, steps = division.steps, self._steps
        clear = not steps.overhead[part].any() and not self._lowers(tick)
        if self._learner and clear:
            worked = division.busy_s, steps.loads[part], division.idle_s, division.awake_s
            averaged = tick.quality is Quality.POWER
            window_s = AVERAGED_WINDOW_S if averaged else WINDOW_S
            self._learner.see_tick(gpu.name, *worked, tick.joules, window_s=window_s)
        elif self._learner:
            self._learner.skip(gpu.name)  # nobody knows what was done for these joules
        if self._lags and clear and tick.quality is Quality.COUNTER:
            course = expected_course(tick, part, steps, self._entry.coefficients)
            self._lags.see_tick(gpu.name, tick, course)
        if self._watch is not None and clear and len(division.busy_s):
            self._watch(self._seen(tick, division))

    def _seen(self, tick: Tick, division: Division) -> SeenTick:
        part, steps = division.steps, self._steps
        idle_watts = self._entry.coefficients.idle_watts
        return SeenTick(
            steps.sums[part],
            division.busy_s / np.maximum(steps.end[part] - steps.start[part], TINY_S),
            float(division.busy_s.sum()) + division.awake_s,
            tick.joules - idle_watts * (division.idle_s - division.awake_s),
        )

    def _lowers(self, tick: Tick) -> bool:
        """Whether a tick is worse than the source was at its opening."""
        return tick.quality not in (Quality.COUNTER, self._quality)

    def _lower(self, start_s: float, end_s: float, quality: Quality) -> None:
        """Joules of this span are of no better quality: say so on every request that ran in it."""
        steps = self._steps
        rows = steps.rows(steps.within(start_s, end_s))
        self._requests.lower(steps.row_key[rows], quality.rank)

    def _finals(self, settled_s: float) -> list[RequestEnergy]:
        finals, provenance = [], self._provenance
        for slot in self._requests.done(settled_s, with_idle=self._idle_by_time):
            figures = self._requests.figures(slot)
            finals.append(self._requests.record(slot, figures, Status.FINAL, provenance))
            self._requests.free(slot)
        return finals

    def give_up(self, at_s: float, grams_per_joule: float = 0.0) -> list[RequestEnergy]:
        """No tick will come any more: what is still unsettled stays unknown, and is labelled so."""
        for book in (*self._gpus.values(), *self._host.values()):
            book.counter.close()
        finals = self.settle(at_s, grams_per_joule)
        for gpu in self._gpus.values():
            self._lose(gpu, at_s)
        for domain in self._host.values():
            self._lose_host(domain, at_s)
        return finals + self.settle(at_s, grams_per_joule)

    def _lose(self, gpu: GpuBook, until_s: float) -> None:
        """Wait no longer for what a GPU counted up to a time."""
        self._lower(gpu.settled_until_s, until_s, Quality.RESET)
        gpu.pass_until(until_s)

    def totals(self) -> list[GpuTotals]:
        """Each GPU's accounts up to its last settled tick."""
        return [gpu.totals(exchanges=self._model.exchanges) for gpu in self._gpus.values()]

    def host_totals(self) -> tuple[HostTotals, ...]:
        """Each domain's accounts up to its last settled tick."""
        source = self._host_source
        if source is None:
            return ()
        return tuple(
            HostTotals(book.name, source, book.counter.joules, tuple(book.joules.tolist()))
            for book in self._host.values()
        )
