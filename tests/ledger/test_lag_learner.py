"""The lag of a counter is learnt from bursts, whatever they draw, and from nothing else."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.ledger.coefficient_learner import CoefficientLearner
from llm_carbon_meter.ledger.counters import Tick
from llm_carbon_meter.ledger.division import Course
from llm_carbon_meter.ledger.lag_learner import LEAST_S, MOST_S, STEP_S, LagLearner, Sight
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.physics.step_work import Floats
from llm_carbon_meter.records import Account, EnergyReading, Quality, Source, StepEvent
from tests.support.steps.cost_models import H100, LLAMA
from tests.support.steps.ledgers import GPUS, close_to, ledger_of, overhead, step_of

POLL_S: Final = 0.05
PERIOD_S: Final = 0.02
STALE_S: Final = PERIOD_S / 2
"""A counter that moves at times is read so long after its move, in the mean."""
IDLE_W, BUSY_W = 90.0, 330.0
"""Where the data sheet expects 70 and 448."""

Lag = Callable[[float], float]


class Bursts:
    """A GPU under steps of 40 ms in bursts with pauses of any length, and its counter."""

    def __init__(self, over_s: float, idle_w: float = IDLE_W) -> None:
        self.random = np.random.default_rng(0)
        self.steps: list[tuple[float, float]] = []
        at_s = 0.2
        while at_s < over_s:
            for _ in range(int(self.random.integers(1, 12))):
                self.steps.append((at_s, at_s + 0.04))
                at_s += 0.04
            at_s += 0.4 * self.random.random()
        edges = np.array(self.steps)
        self._times = np.concatenate(([0.0], edges.ravel(), [over_s + 10]))
        watts = np.empty(len(self._times) - 1)
        watts[::2], watts[1::2] = idle_w, BUSY_W
        noise = 1 + 0.03 * self.random.standard_normal(len(watts))
        self._joules = np.insert(np.cumsum(np.diff(self._times) * watts * noise), 0, 0.0)
        self.over_s = over_s

    def readings(self, lag: Lag, gpu: str = "gpu-0") -> Iterator[EnergyReading]:
        """The counter moves every 20 ms, give or take 2, and is read every 50, give or take 3."""
        moves = np.cumsum(PERIOD_S + 0.002 * self.random.uniform(-1, 1, int(self.over_s * 55)))
        reached = -np.inf
        for at_s in np.arange(0.0, self.over_s, POLL_S) + 0.003 * self.random.random():
            moved_s = moves[max(int(np.searchsorted(moves, at_s)) - 1, 0)]
            reached = max(reached, moved_s - lag(moved_s))
            joules = float(np.interp(reached, self._times, self._joules))
            yield EnergyReading(float(at_s), gpu, joules)


def play(ledger: EnergyLedger, bursts: Bursts, lag: Lag, gpu: str = "gpu-0") -> Iterator[float]:
    """Enter a load and its readings; the times of the readings."""
    steps = iter([*bursts.steps, (np.inf, np.inf)])
    step = next(steps)
    for reading in bursts.readings(lag, gpu):
        while step[1] <= reading.monotonic_s:
            ledger.observe_steps([step_of(*step, "a", "b")])
            step = next(steps)
        ledger.observe_reading(reading)
        ledger.settle(min(reading.monotonic_s, step[0]))
        yield reading.monotonic_s


def learnt(lags: LagLearner, lag: Lag, over_s: float = 100.0, **options: Any) -> Floats:
    """The lag in use after every reading; 0 while nothing is learnt."""
    bursts = Bursts(over_s, options.pop("idle_w", IDLE_W))
    ledger = ledger_of(lags=lags, tick_s=1.0, **options)
    return np.array([lags.lags_s.get("gpu-0", 0.0) for _ in play(ledger, bursts, lag)])


@pytest.mark.parametrize("true_s", [0.0, 0.03, 0.12])
@pytest.mark.parametrize("learns", [False, True])
def test_the_lag_of_a_counter_is_learnt(true_s: float, learns: bool) -> None:
    """To 5 ms, under a data sheet whose watts are 30 % off, and while these are learnt, too."""
    pupil = CoefficientLearner(H100) if learns else None
    trail = learnt(LagLearner({}), lambda at_s: true_s, model=LLAMA, learner=pupil)
    assert trail[-1] == pytest.approx(true_s + STALE_S, abs=0.005)
    assert np.abs(np.diff(trail)).max() <= STEP_S + 1e-12


def test_a_gpu_that_idles_at_three_times_the_data_sheet_has_its_lag_found() -> None:
    """What idle time draws is no lag, however wrong it is thought to be; it takes longer."""
    trail = learnt(LagLearner({}), lambda at_s: 0.12, over_s=160.0, model=LLAMA, idle_w=200.0)
    assert trail[-1] == pytest.approx(0.12 + STALE_S, abs=0.01)


def test_it_stays_within_its_bounds() -> None:
    """A counter that is 100 ms early is followed as far as one can be early, and no further."""
    lags = LagLearner({"gpu-0": LEAST_S + 0.01})
    trail = learnt(lags, lambda at_s: -0.1)
    assert trail.min() == trail[-1] == LEAST_S


def noisy(lag_s: float, number: int, seed: int) -> Iterator[Sight]:
    """Ticks of a late counter whose reading is some 20 ms off, power swinging by a tenth."""
    random = np.random.default_rng(seed)
    for _ in range(number):
        watts = 0.1 * random.uniform(-1, 1, 16)
        yield Sight(lag_s * watts + 0.02 * random.standard_normal(16), watts)


def test_a_load_that_says_little_is_remembered_and_forgotten() -> None:
    """Nothing is told after some ticks of it; after minutes another lag has taken the first's
    place."""
    lags = LagLearner({})
    lags.beyond_s("gpu", 0.0)
    gpu = lags._gpus["gpu"]
    for number, (lag_s, length) in enumerate(((0.03, 20), (0.03, 400), (0.09, 300))):
        for view in noisy(lag_s, length, number):
            gpu.see(view, 1.0)
        assert gpu.learnt is (number > 0)
        assert number == 0 or gpu.lag_s == pytest.approx(lag_s, abs=0.015)


def test_a_lag_that_changes_is_followed() -> None:
    """Another 60 ms after 100 s: within two minutes they are known, and so are they when gone."""
    trail = learnt(LagLearner({}), lambda at_s: 0.09 if 100 < at_s < 250 else 0.03, over_s=400.0)
    for at_s, true_s in ((100, 0.03), (220, 0.09), (370, 0.03)):
        assert trail[int(at_s / POLL_S)] == pytest.approx(true_s + STALE_S, abs=0.008)
    assert np.abs(np.diff(trail[trail != 0])).max() <= STEP_S + 1e-12


def test_it_goes_on_with_what_was_kept() -> None:
    """From its first reading on, and keeps the lags of GPUs that it does not see."""
    lags = LagLearner({"gpu-0": 0.12 + STALE_S, "other": 0.07})
    assert lags.beyond_s("gpu-0", 0.1) == pytest.approx(0.02 + STALE_S)
    trail = learnt(LagLearner({"gpu-0": 0.12 + STALE_S}), lambda at_s: 0.12)
    assert np.abs(trail - 0.12 - STALE_S).max() < 0.01
    assert lags.lags_s["other"] == 0.07


def test_what_is_known_of_the_gpu_is_where_it_begins() -> None:
    """What the readings' times account for is not taken off again; what is learnt is the whole."""
    lags, bursts = LagLearner({}), Bursts(100.0)
    ledger, known_s = ledger_of(lags=lags, tick_s=1.0), 0.1
    steps = [step_of(*span, "a") for span in bursts.steps]
    told_s = []
    for reading in bursts.readings(lambda at_s: 0.03):
        at_s = reading.monotonic_s
        while steps and steps[0].done_s <= at_s:
            ledger.observe_steps([steps.pop(0)])
        corrected_s = at_s - known_s
        ledger.observe_reading(EnergyReading(corrected_s, "gpu-0", reading.joules, lag_s=known_s))
        ledger.settle(min(at_s, steps[0].dispatched_s if steps else at_s))
        told_s.append(ledger.totals()[0].counter_lag_s)
    assert told_s[0] == known_s
    assert told_s[-1] == pytest.approx(0.03 + STALE_S, abs=0.005)


def test_a_steady_load_tells_nothing() -> None:
    """Always idle or always busy, whatever the lag: nothing is learnt, and what was kept stays."""
    for steps in ([], [(0.1 * n, 0.1 * n + 0.1) for n in range(600)]):
        for before in ({}, {"gpu-0": 0.04}):
            lags = LagLearner(before)
            ledger = ledger_of(lags=lags, tick_s=1.0)
            for number, at_s in enumerate(np.arange(0.0, 60.0, POLL_S).tolist()):
                if steps and not number % 2:
                    ledger.observe_steps([step_of(*steps[number // 2], "a")])
                ledger.observe_reading(EnergyReading(at_s, "gpu-0", 300 * at_s))
                ledger.settle(at_s)
            assert lags.lags_s == before
            assert ledger.totals()[0].counter_lag_s == before.get("gpu-0")


@pytest.mark.parametrize("spoilt", ["overhead", "power", "contended", "short", ""])
def test_ticks_of_unknown_content_teach_nothing(spoilt: str) -> None:
    """Dummy batches in each, an average of power, another process, or hardly a reading."""
    lags, bursts = LagLearner({}), Bursts(60.0)
    quality = {"power": Quality.POWER, "contended": Quality.CONTENDED}.get(spoilt, Quality.COUNTER)
    usual = Quality.POWER if spoilt == "power" else Quality.COUNTER
    ledger = EnergyLedger(
        GPUS[:1],
        LLAMA,
        Source.MEASURED,
        usual,
        lags=lags,
        tick_s=0.2 if spoilt == "short" else 1.0,
    )
    steps: list[StepEvent] = [step_of(*span, "a") for span in bursts.steps]
    if spoilt == "overhead":
        steps[::4] = [overhead(*span) for span in bursts.steps[::4]]
    for reading in bursts.readings(lambda at_s: 0.1):
        at_s = reading.monotonic_s
        while steps and steps[0].done_s <= at_s:
            ledger.observe_steps([steps.pop(0)])
        ledger.observe_reading(EnergyReading(at_s, "gpu-0", reading.joules, quality=quality))
        ledger.settle(min(at_s, steps[0].dispatched_s if steps else at_s))
    assert bool(lags.lags_s) is not bool(spoilt)


finite = st.floats(-1e9, 1e9)


@settings(max_examples=60, deadline=None)
@given(
    ticks=st.lists(st.lists(finite, min_size=20, max_size=20), min_size=1, max_size=20),
    known_s=st.floats(0.0, 1.0),
    before_s=finite,
)
def test_garbage_stays_within_bounds(
    ticks: list[list[float]], known_s: float, before_s: float
) -> None:
    """Whatever readings say or a file had, the lag is a number between its bounds."""
    lags = LagLearner({"gpu": before_s})
    lags.beyond_s("gpu", known_s)
    for number, values in enumerate(ticks):
        times = (number + np.arange(20) / 20).tolist()
        readings = [EnergyReading(t, "gpu", j) for t, j in zip(times, values, strict=True)]
        tick = Tick(number, number + 1, 1.0, 1.0, False, Quality.COUNTER, readings)
        edges = number + np.array([0.0, 0.3, 0.6, 1.0])
        lags.see_tick("gpu", tick, Course(edges, np.array([0.0, 30.0, 230.0, 260.0])))
        assert LEAST_S <= lags.lags_s["gpu"] <= known_s + MOST_S


@settings(max_examples=60, deadline=None)
@given(
    lags_s=st.lists(st.floats(-0.05, 0.5), min_size=1, max_size=8),
    tick_s=st.sampled_from([0.0, 0.3]),
)
def test_every_joule_is_booked_once_while_the_lag_moves(lags_s: list[float], tick_s: float) -> None:
    """Ticks stay contiguous and in order, even where the lag jumps as it never does in use."""
    bursts, ledger, joules = Bursts(20.0), ledger_of(tick_s=tick_s), 0.0
    counter, spans = ledger._gpus["gpu-0"].counter, []
    steps = [step_of(*span, "a") for span in bursts.steps]
    for number in range(400):
        at_s = number * POLL_S
        ledger.observe_steps([step for step in steps if at_s - POLL_S < step.done_s <= at_s])
        counter.lag_s = lags_s[number // 20 % len(lags_s)]
        joules += 10.0
        ledger.observe_reading(EnergyReading(at_s, "gpu-0", joules))
        spans += [(tick.start_s, tick.end_s) for tick in counter.ticks if tick.end_s <= at_s]
        ledger.settle(at_s)  # these are gone from the counter
    ledger.give_up(100.0)
    totals = ledger.totals()[0]
    assert all(start < end for start, end in spans)
    assert all(first[1] == second[0] for first, second in pairwise(spans))
    assert totals.counter_joules == close_to(joules - 10.0)
    assert sum(totals.account_joules) == close_to(joules - 10.0)


def test_learning_leaves_the_balance() -> None:
    """Accounts add up to the counter, and no second is lost, while a large lag is learnt."""
    lags, bursts = LagLearner({}), Bursts(60.0)
    ledger = ledger_of(lags=lags, tick_s=1.0)
    for _ in play(ledger, bursts, lambda at_s: 0.2):
        totals = ledger.totals()[0]
        assert sum(totals.account_joules) == close_to(totals.counter_joules)
    assert lags.lags_s["gpu-0"] > 0.1
    assert totals.account_joules[Account.UNATTRIBUTED] == 0
