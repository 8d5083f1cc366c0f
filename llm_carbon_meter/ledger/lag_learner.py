"""Learns how late each GPU's counter shows what was drawn, from the readings inside its ticks.

A counter that is late by D shows at time t the joules drawn until t - D. Where a lag of L was taken
off the times of the readings, they follow the expected joules X and the expected watts P by

    counted(t) = c + a t + b X(t) - (D - L) P(t)

c, a and b are fitted in every tick anew: they take up what idle and busy time truly draw there. So
only the moments at which power rises or falls tell of D, and a steady load tells nothing. Only
ticks of an energy counter may come here: an average of power shows no such moments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from llm_carbon_meter.ledger.counters import Tick
from llm_carbon_meter.ledger.division import Course
from llm_carbon_meter.physics.step_work import Floats

EDGE_S: Final = 0.025
"""Watts at a reading are the mean over this long on either side: halfway to the next reading."""
MIN_READINGS: Final = 8
"""Of a tick that teaches; four quantities are fitted to them."""
MEMORY_S: Final = 100.0
"""Within some minutes another lag is followed: after an update of the driver, for example."""
LEAST_S: Final = -0.05
"""A sensor that looks at the last quarter of every 0.1 s is early by 37 ms; so is, in effect, a
counter beside an engine that learns late that its step is done."""
MOST_S: Final = 0.5
"""Beyond what is known of the GPU's type; half of a tick, and all that `check` looks for."""
FINE_S: Final = 0.002
"""Standard error of which no more is remembered: sharp bursts let the lag follow in half a minute,
where a load that says little needs all of `MEMORY_S`."""
SURE_S: Final = 0.015
"""Standard error with which a lag is told and moved."""
CLEAR: Final = 3.0
"""Or an error of so many standard errors."""
AFAR_S: Final = 0.1
"""Seen from so far away, a lag looks shorter than it is: a move by this much leaves little of what
was seen before."""
PACE: Final = 0.2
"""Share of its error by which the lag is moved with each tick."""
STEP_S: Final = 0.005
"""And no more than this: far less than the time between two readings, so that none is passed."""
USUAL_ERROR_S: Final = 0.02
"""Of a reading's time, before any was seen: a counter's period is 20 to 100 ms."""
OUTLIER: Final = 2.5
"""A tick with errors beyond this many times the usual one pulls no harder."""
SHARED: Final = 1.5
"""Errors of neighbouring readings have much in common: their variance counts so many times."""
TINY: Final = 1e-9


class Sight(NamedTuple):
    """What the readings of a tick show beside the tick's own c, a and b, shape (readings,)."""

    late_s: Floats
    """Joules that are missing, if no lag were taken off, in seconds at the tick's mean watts."""
    watts: Floats
    """Expected, as shares of the tick's mean."""


def sight(tick: Tick, course: Course) -> Sight | None:
    """Look at a tick; None where it has too few readings.

    Args:
        tick: of an energy counter.
        course: joules expected in it.
    """
    times_s = np.array([reading.monotonic_s for reading in tick.readings])
    inside = (times_s >= tick.start_s + EDGE_S) & (times_s <= tick.end_s - EDGE_S)
    if inside.sum() < MIN_READINGS:
        return None
    times_s = times_s[inside]
    columns = [(reading.joules, reading.lag_s) for reading in tick.readings]
    joules, lags_s = np.array(columns)[inside].T
    expected, after, before = (course.joules_at(times_s + by) for by in (0.0, EDGE_S, -EDGE_S))
    scale = tick.joules / course.joules[-1]
    watts = scale * (after - before) / (2 * EDGE_S)
    level = np.column_stack((np.ones(len(times_s)), times_s - times_s[0], expected - expected[0]))
    basis, _ = np.linalg.qr(level)
    missing = lags_s * watts - (joules - joules[0])
    mean_watts = scale * course.joules[-1] / (tick.end_s - tick.start_s)
    late, drawn = (column - basis @ (basis.T @ column) for column in (missing, watts))
    return Sight(late / mean_watts, drawn / mean_watts)


@dataclass(slots=True)
class _GpuLag:
    """One GPU: sums of what was seen, which fade, and the lag in use."""

    lag_s: float
    low_s: float
    high_s: float
    learnt: bool
    usual_error_s: float = USUAL_ERROR_S
    seen: float = 0.0
    """Sum of watts x watts."""
    late_s: float = 0.0
    """Sum of watts x seconds."""

    def see(self, view: Sight, length_s: float) -> None:
        """Add a tick, and move the lag where it is clearly wrong."""
        errors_s = view.late_s - self.lag_s * view.watts
        error_s = float(np.sqrt(np.square(errors_s).mean()))
        trust = min(1.0, OUTLIER * self.usual_error_s / max(error_s, TINY))
        most_s = OUTLIER * self.usual_error_s
        self.usual_error_s += 0.05 * (min(error_s, most_s) - self.usual_error_s)
        self._fade(length_s / MEMORY_S)
        self.seen += trust * float(view.watts @ view.watts)
        self.late_s += trust * float(view.watts @ view.late_s)
        most = SHARED * (self.usual_error_s / FINE_S) ** 2
        if self.seen > most:
            self._fade(float(np.log(self.seen / most)))
        if self.seen > TINY:
            self._move()

    def _move(self) -> None:
        """By a share of the error, less what of it may be chance."""
        standard_error_s = self.usual_error_s * (SHARED / self.seen) ** 0.5
        wrong_s = self.late_s / self.seen - self.lag_s
        if standard_error_s > max(SURE_S, abs(wrong_s) / CLEAR):
            return
        self.learnt = True
        certain = max(1 - (standard_error_s / max(abs(wrong_s), TINY)) ** 2, 0.0)
        move_s = min(max(PACE * certain * wrong_s, -STEP_S), STEP_S)
        self.lag_s = min(max(self.lag_s + move_s, self.low_s), self.high_s)
        self._fade(abs(move_s) / AFAR_S)

    def _fade(self, age: float) -> None:
        self.seen *= float(np.exp(-age))
        self.late_s *= float(np.exp(-age))


class LagLearner:
    """Learns the lags of an engine's counters, each for itself.

    Args:
        lags_s: by GPU, as an earlier learner left them.
    """

    def __init__(self, lags_s: Mapping[str, float]) -> None:
        self._before_s = lags_s
        self._gpus: dict[str, _GpuLag] = {}

    @property
    def lags_s(self) -> Mapping[str, float]:
        """By GPU, where it is learnt, and what was kept of other GPUs."""
        learnt_s = {name: gpu.lag_s for name, gpu in self._gpus.items() if gpu.learnt}
        return {**self._before_s, **learnt_s}

    def beyond_s(self, gpu: str, known_s: float) -> float | None:
        """What to take off a reading's time now; None while nothing is learnt.

        Args:
            gpu: its name.
            known_s: lag of such GPUs, already taken off.
        """
        if gpu not in self._gpus:
            low_s, high_s = min(LEAST_S, known_s), known_s + MOST_S
            begin_s = min(max(self._before_s.get(gpu, known_s), low_s), high_s)
            self._gpus[gpu] = _GpuLag(begin_s, low_s, high_s, gpu in self._before_s)
        state = self._gpus[gpu]
        return state.lag_s - known_s if state.learnt else None

    def see_tick(self, gpu: str, tick: Tick, course: Course) -> None:
        """A counter's tick, of which everything that was done in it is known."""
        view = sight(tick, course)
        if view is not None:
            self._gpus[gpu].see(view, tick.end_s - tick.start_s)
