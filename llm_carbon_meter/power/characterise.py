"""How a sensor behaves, from polling it quickly: period, lag, agreement, cost of a call.

Arithmetic on series of times (seconds) and joules or watts, each of shape (polls,).
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading, Quality

Floats = npt.NDArray[np.floating[Any]]

MAX_LAG_S: Final = 0.5
LAG_STEP_S: Final = 0.001
MIN_VARIATION: Final = 0.05
"""Standard deviation of the power / its mean, below which nothing says when it was drawn."""


@dataclass(frozen=True, slots=True)
class Polled:
    """What polling one GPU gave."""

    times_s: Floats
    joules: Floats
    watts: Floats
    """nan where the GPU did not say."""
    quality: Quality
    """Of the last reading."""

    @property
    def intervals_s(self) -> Floats:
        """Between the moves of the counter."""
        return np.diff(self.times_s[moves(self.joules)])

    @property
    def period_s(self) -> float | None:
        """Median period of a counter; None where the counter hardly moved."""
        return float(np.median(self.intervals_s)) if len(self.intervals_s) > 1 else None

    @property
    def mean_watts(self) -> float:
        """By the counter, from its first move to its last; nan where it hardly moved."""
        moved = moves(self.joules)
        if len(moved) < 2:
            return float("nan")
        first, last = moved[0], moved[-1]
        elapsed_s = self.times_s[last] - self.times_s[first]
        return float((self.joules[last] - self.joules[first]) / elapsed_s)


def poll(
    meter: PowerMeter,
    seconds: float,
    pause_s: float = 0.001,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Mapping[str, Polled], Floats]:
    """Read as quickly as pauses allow.

    Returns:
        The series of every GPU, and the seconds that each reading of all GPUs took.

    Raises:
        PowerError: a reading failed altogether.
    """
    readings: dict[str, list[EnergyReading]] = {gpu: [] for gpu in meter.gpus}
    took_s: list[float] = []
    end_s = clock() + seconds
    while not took_s or clock() < end_s:
        before_s = clock()
        together = meter.read()
        took_s.append(clock() - before_s)
        for reading in together:
            readings[reading.gpu].append(reading)
        time.sleep(pause_s)
    return {gpu: _polled(seen) for gpu, seen in readings.items() if seen}, np.array(took_s)


def _polled(readings: Sequence[EnergyReading]) -> Polled:
    watts = [float("nan") if reading.watts is None else reading.watts for reading in readings]
    return Polled(
        np.array([reading.monotonic_s for reading in readings]),
        np.array([reading.joules for reading in readings]),
        np.array(watts),
        readings[-1].quality,
    )


def moves(joules: Floats) -> npt.NDArray[np.intp]:
    """Polls at which a counter had moved since the poll before."""
    return np.flatnonzero(np.diff(joules)) + 1


def histogram_ms(intervals_s: Floats) -> dict[int, int]:
    """How often an interval was so many milliseconds, rounded."""
    return dict(sorted(Counter(np.rint(1000 * intervals_s).astype(int).tolist()).items()))


def integrated(times_s: Floats, watts: Floats) -> Floats:
    """Joules since the first poll, power on straight lines between polls."""
    areas = np.diff(times_s) * (watts[1:] + watts[:-1]) / 2
    return np.concatenate(([0.0], np.cumsum(areas)))


def agreement(polled: Polled) -> float | None:
    """Counter / integral of the power, from the counter's first move to its last; None: unknown."""
    moved = moves(polled.joules)
    if len(moved) < 2 or np.isnan(polled.watts).any():
        return None
    first, last = moved[0], moved[-1]
    power = integrated(polled.times_s, polled.watts)
    drawn = power[last] - power[first]
    return float((polled.joules[last] - polled.joules[first]) / drawn) if drawn > 0 else None


def lag_s(polled: Polled) -> float | None:
    """How much later than its power a counter shows what was drawn: the shift that fits best.

    None where the power is too steady to tell, or where there is none.
    """
    times_s, watts = polled.times_s, polled.watts
    moved = moves(polled.joules)
    moved = moved[times_s[moved] >= times_s[0] + MAX_LAG_S]
    if len(moved) < 3 or not np.std(watts) > MIN_VARIATION * np.mean(watts):
        return None
    counted, power = polled.joules[moved], integrated(times_s, watts)
    lags_s = np.arange(0.0, MAX_LAG_S, LAG_STEP_S)
    misfits = [_misfit(counted, np.interp(times_s[moved] - lag, times_s, power)) for lag in lags_s]
    return float(lags_s[int(np.argmin(misfits))])


def _misfit(counted: Floats, drawn: Floats) -> float:
    """Squares left of the counter after a line through the power's joules."""
    line = np.polynomial.Polynomial.fit(drawn, counted, 1)
    return float(np.square(counted - line(drawn)).sum())


def onset_lag_s(times_s: Floats, joules: Floats, began_s: float) -> float:
    """How much later than a steady load began a counter shows it: where two lines meet.

    One line is fitted to the moves before the load, one to the last half of those under it; the
    GPU's own rise to full power is in the figure.
    """
    moved = moves(joules)
    at_s, shown = times_s[moved] - began_s, joules[moved]
    before, under = at_s < 0, at_s > at_s[-1] / 2
    rate0, offset0 = np.polyfit(at_s[before], shown[before], 1)
    rate1, offset1 = np.polyfit(at_s[under], shown[under], 1)
    return float((offset0 - offset1) / (rate1 - rate0))
