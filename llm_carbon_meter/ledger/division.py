"""How one tick of a counter is divided over the steps and gaps that it covers: pure arithmetic.

In proportion to expected watts x time; the sum is the counter's.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.ledger.counters import Tick
from llm_carbon_meter.ledger.open_steps import OpenSteps
from llm_carbon_meter.physics.step_coefficients import AWAKE_S, StepCoefficients
from llm_carbon_meter.physics.step_work import Floats, Ints


class Division(NamedTuple):
    """The joules and seconds of a tick."""

    steps: slice
    """The steps that overlap the tick."""
    busy_s: Floats
    """Of each step inside the tick."""
    step_joules: Floats
    idle_s: float
    awake_s: float
    """Part of idle_s: gaps so short that clocks stayed up."""
    idle_joules: float
    busy_expected_joules: float
    """As the coefficients expect the steps."""
    expected_joules: float
    """As the coefficients expect steps and gaps."""


class _Pieces(NamedTuple):
    """Steps inside a tick, and the gaps before, between and after them."""

    start_s: Floats
    end_s: Floats
    gaps_s: Floats

    @classmethod
    def of(cls, tick: Tick, part: slice, steps: OpenSteps) -> "_Pieces":
        start_s = np.maximum(steps.start[part], tick.start_s)
        end_s = np.minimum(steps.end[part], tick.end_s)
        gaps_s = np.append(start_s, tick.end_s) - np.insert(end_s, 0, tick.start_s)
        return cls(start_s, end_s, np.maximum(gaps_s, 0.0))

    @property
    def awake(self) -> npt.NDArray[np.bool_]:
        return self.gaps_s < AWAKE_S


def divide(tick: Tick, steps: OpenSteps, coefficients: StepCoefficients) -> Division:
    """Divide a GPU's tick that lost nothing, by the watts expected of it."""
    return _divide(tick, steps, steps.watts, coefficients.idle_watts, coefficients.gap_watts)


def divide_by_time(tick: Tick, steps: OpenSteps) -> Division:
    """Divide a tick that lost nothing by time alone: the host's, whose power follows no step."""
    return _divide(tick, steps, np.ones(len(steps.watts)), 1.0, 1.0)


def _divide(
    tick: Tick, steps: OpenSteps, watts: Floats, idle_watts: float, gap_watts: float
) -> Division:
    part = steps.within(tick.start_s, tick.end_s)
    pieces = _Pieces.of(tick, part, steps)
    busy_s = pieces.end_s - pieces.start_s
    expected = watts[part] * busy_s
    idle_s, awake_s = float(pieces.gaps_s.sum()), float(pieces.gaps_s[pieces.awake].sum())
    idle_expected = idle_watts * (idle_s - awake_s)
    idle_expected += gap_watts * awake_s
    busy_expected = float(expected.sum())
    total = busy_expected + idle_expected
    return Division(
        part,
        busy_s,
        tick.joules * expected / total,
        idle_s,
        awake_s,
        tick.joules * idle_expected / total,
        busy_expected,
        total,
    )


class Course(NamedTuple):
    """Joules expected from a tick's start to some times in it, power being constant in between."""

    times_s: Floats
    joules: Floats

    def joules_at(self, times_s: Floats) -> Floats:
        """Joules from the tick's start to other times."""
        return np.interp(times_s, self.times_s, self.joules)


def expected_course(
    tick: Tick, part: slice, steps: OpenSteps, coefficients: StepCoefficients
) -> Course:
    """When the steps and gaps of a tick are expected to have drawn what.

    Args:
        tick: to be divided.
        part: the steps that overlap the tick.
        steps: all that are open.
        coefficients: what they cost.
    """
    start_s, end_s, gaps_s = found = _Pieces.of(tick, part, steps)
    joules = np.zeros(2 * len(start_s) + 1)
    gap_watts = np.where(found.awake, coefficients.gap_watts, coefficients.idle_watts)
    joules[::2] = gaps_s * gap_watts
    joules[1::2] = (end_s - start_s) * steps.watts[part]
    edges = np.column_stack((start_s, end_s)).ravel()
    times = np.concatenate(([tick.start_s], edges, [tick.end_s]))
    return Course(times, np.insert(np.cumsum(joules), 0, 0.0))


class RowShares(NamedTuple):
    """A division's steps, divided over their rows: one per scheduled request."""

    keys: Ints
    """Request and account of each row, as `open_requests` has them."""
    joules: Floats
    seconds: Floats


def over_rows(division: Division, steps: OpenSteps) -> RowShares:
    """Divide each step of a tick over its requests, by their shares of the step."""
    rows, counts = steps.rows(division.steps), steps.counts[division.steps]
    share = steps.row_share[rows]
    return RowShares(
        steps.row_key[rows],
        np.repeat(division.step_joules, counts) * share,
        np.repeat(division.busy_s, counts) * share,
    )
