"""Whether estimates stay true: their error over a sliding window, and when it is too much.

Judged by requests that were really measured, are finished, and of trusted quality.
Conditional errors, given the true length and concurrency, are the predictor's; end to end ones hold
the guess of the answer's length too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.records import Outcome, Quality, RequestRecord, Source, Status

Series = tuple[str, str]
"""Stage and basis."""
SERIES: Final[Sequence[Series]] = tuple(
    product(("raw", "calibrated"), ("conditional", "end_to_end"))
)
WATCHED: Final[Sequence[Series]] = (("calibrated", "conditional"), ("calibrated", "end_to_end"))
"""What can alarm: estimates as clients were told them, and the same given the true length and
concurrency. In a sum the luck of single answers' lengths averages out."""
CLEARS_BELOW: Final = 0.8
"""An alarm ends below this part of the threshold, so that it does not flicker."""
TRUSTED: Final = frozenset({Quality.COUNTER, Quality.POWER})
CAPACITY: Final = 8192
"""Requests that a window holds at most, the latest."""


class Error(NamedTuple):
    """How far estimates are off; (estimated - measured) / measured throughout."""

    drift_ratio: float
    """Of the sums, as the energy bill sees it."""
    median_ratio: float
    """Of single requests."""
    p90_absolute_ratio: float
    """Nine requests in ten are off by no more than this."""


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What the window of one engine says."""

    num_requests: int
    since_s: float
    """When the oldest of them finished."""
    errors: Mapping[Series, Error]


def judging_joules(record: RequestRecord) -> float | None:
    """Measured joules of a finished record; None where it judges no estimate.

    Idle joules that the settings spread over requests are in no estimate.
    """
    estimate, energy = record.conditional, record.energy
    if (
        estimate is None
        or estimate.facility
        or energy is None
        or energy.source is not Source.MEASURED
        or energy.status is not Status.FINAL
        or energy.quality not in TRUSTED
        or energy.outcome is not Outcome.FINISHED
    ):
        return None
    return energy.accounts.busy if energy.accounts.busy > 0 else None


def joules_of(record: RequestRecord) -> tuple[float, Sequence[float]] | None:
    """Measured joules of a record and the estimated ones as in SERIES; None: not judged."""
    measured = judging_joules(record)
    if measured is None or record.conditional is None or record.estimate is None:
        return None
    estimates = (record.conditional, record.estimate)
    raw = [estimate.joules for estimate in estimates]
    calibrated = [estimate.calibrated.joules for estimate in estimates]
    return measured, raw + calibrated


def is_drifting(drift_ratio: float, threshold: float, before: bool) -> bool:
    """Whether there is an alarm, given whether there was one before."""
    return abs(drift_ratio) > threshold * (CLEARS_BELOW if before else 1.0)


class DriftWindow:
    """The latest requests of one engine.

    Args:
        window_s: how long a request counts.
        min_requests: with fewer nothing is said; at most CAPACITY.
    """

    def __init__(self, window_s: float, min_requests: int) -> None:
        self._window_s = window_s
        self._min_requests = min_requests
        self._finished_s = np.full(CAPACITY, -np.inf)
        self._measured = np.ones(CAPACITY)
        self._estimated = np.zeros((CAPACITY, len(SERIES)))
        self._count = 0

    def observe(self, measured: float, estimated: Sequence[float], now_s: float) -> None:
        """A request finished: its joules, the estimated ones as in SERIES."""
        row = self._count % CAPACITY
        self._finished_s[row], self._measured[row] = now_s, measured
        self._estimated[row] = estimated
        self._count += 1

    def report(self, now_s: float) -> DriftReport | None:
        """The errors now; None while too few requests are in the window."""
        rows = self._finished_s > now_s - self._window_s
        num_requests = int(rows.sum())
        if num_requests < self._min_requests:
            return None
        errors = _errors(self._measured[rows], self._estimated[rows])
        return DriftReport(num_requests, float(self._finished_s[rows].min()), errors)


def _errors(
    measured: NDArray[np.float64], estimated: NDArray[np.float64]
) -> Mapping[Series, Error]:
    """``measured`` of shape (requests,), ``estimated`` of shape (requests, series)."""
    of_sums = estimated.sum(axis=0) / measured.sum() - 1
    ratios = estimated / measured[:, None] - 1
    medians, widths = np.median(ratios, axis=0), np.quantile(np.abs(ratios), 0.9, axis=0)
    rows = zip(of_sums.tolist(), medians.tolist(), widths.tolist(), strict=True)
    return {series: Error(*row) for series, row in zip(SERIES, rows, strict=True)}


class Alarm(NamedTuple):
    """Whether one series of an engine drifts."""

    series: Series
    drifting: bool
    changed_s: float | None
    """How long the state that ended here had lasted; None where nothing changed."""


class Verdict(NamedTuple):
    """What is to be told of one engine."""

    engine: int
    report: DriftReport | None
    """None once too few requests are left; an alarm then stays until there are enough again."""
    alarms: Sequence[Alarm]
    """One for each series of WATCHED."""


@dataclass(slots=True)
class _State:
    """Of one series."""

    begun_s: float
    drifting: bool = False


class _Engine:
    """A window, and the states of its series."""

    def __init__(self, window: DriftWindow, begun_s: float) -> None:
        self.window = window
        self.states = {series: _State(begun_s) for series in WATCHED}
        self.judged = False


class DriftMonitor:
    """The windows and alarms of all engines of one model; the caller's clock, no thread.

    Args:
        threshold: |drift_ratio| beyond which there is an alarm.
        window_s: how long a request counts.
        min_requests: with fewer nothing is said.
    """

    def __init__(self, threshold: float, window_s: float, min_requests: int) -> None:
        self._threshold = threshold
        self._window_s = window_s
        self._min_requests = min_requests
        self._engines: dict[int, _Engine] = {}

    def observe(self, record: RequestRecord, now_s: float) -> None:
        """A record is final, of this API server or another one."""
        joules = joules_of(record)
        if joules is None or record.energy is None:
            return
        number = record.energy.engine
        if number not in self._engines:
            window = DriftWindow(self._window_s, self._min_requests)
            self._engines[number] = _Engine(window, now_s)
        self._engines[number].window.observe(*joules, now_s)

    def judge(self, now_s: float) -> Sequence[Verdict]:
        """Every engine of which something could be said, now or before."""
        verdicts = (
            self._judge(number, engine, now_s) for number, engine in list(self._engines.items())
        )
        return [verdict for verdict in verdicts if self._engines[verdict.engine].judged]

    def _judge(self, number: int, engine: _Engine, now_s: float) -> Verdict:
        report = engine.window.report(now_s)
        engine.judged = engine.judged or report is not None
        alarms = [
            self._alarm(series, state, report.errors[series].drift_ratio if report else None, now_s)
            for series, state in engine.states.items()
        ]
        return Verdict(number, report, alarms)

    def _alarm(
        self, series: Series, state: _State, drift_ratio: float | None, now_s: float
    ) -> Alarm:
        """The alarm of a series; where too few requests are left it stays as it was."""
        before, changed_s = state.drifting, None
        if drift_ratio is not None:
            state.drifting = is_drifting(drift_ratio, self._threshold, before)
        if state.drifting != before:
            changed_s, state.begun_s = now_s - state.begun_s, now_s
        return Alarm(series, state.drifting, changed_s)


def error_ratios(record: RequestRecord) -> Mapping[tuple[str, str], float]:
    """(estimated - measured) / measured by stage and basis; empty unless it was really measured.

    ``conditional`` is given the true length and concurrency; clients were told ``end_to_end``.
    """
    energy = record.energy
    if (
        energy is None
        or energy.source is not Source.MEASURED
        or energy.outcome not in (Outcome.FINISHED, Outcome.STOPPED)
    ):
        return {}
    measured = energy.accounts.busy
    bases = {"conditional": record.conditional, "end_to_end": record.estimate}
    return {
        (stage, basis): shown.joules / measured - 1
        for basis, estimate in bases.items()
        if estimate is not None and measured > 0
        for stage, shown in (("raw", estimate), ("calibrated", estimate.calibrated))
    }
