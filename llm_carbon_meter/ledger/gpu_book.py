"""One GPU's side of the book: its accounts, in joules and in seconds."""

from collections.abc import Iterable
from typing import Final

import numpy as np

from llm_carbon_meter.ledger.counters import GpuCounter
from llm_carbon_meter.ledger.division import Division, RowShares
from llm_carbon_meter.ledger.open_requests import COLUMNS, Figures
from llm_carbon_meter.ledger.open_steps import OpenSteps
from llm_carbon_meter.physics.step_work import Floats
from llm_carbon_meter.records import REQUEST_ACCOUNTS, Account, EnergyReading, GpuTotals

SCALE_MEMORY: Final = 0.9
"""Weight of the past, per tick, in the ratio of counted to expected joules."""
_OF_REQUESTS: Final = len(REQUEST_ACCOUNTS)


class GpuBook:
    """Accounts of one GPU, and the counter that they add up to.

    Args:
        name: as in the readings.
        counter: of this GPU.
    """

    def __init__(self, name: str, counter: GpuCounter) -> None:
        self.name = name
        self.counter = counter
        self.joules = np.zeros(len(Account))
        self.seconds = np.zeros(len(Account))
        self.allreduce_joules = 0.0
        self.settled_until_s = -np.inf
        self._scale_counted = 0.0
        self._scale_expected = 0.0

    @property
    def scale(self) -> float:
        """Counted / expected joules of late, while busy; 1 before the first such tick."""
        return self._scale_counted / self._scale_expected if self._scale_expected > 0 else 1.0

    def observe(self, reading: EnergyReading) -> None:
        """Enter a reading of the counter; the book begins with the first."""
        begun = self.counter.begun
        at_s = self.counter.observe(reading)
        if not begun:
            self.settled_until_s = at_s

    def unsettled_s(self, start_s: Floats, end_s: Floats) -> Floats:
        """How much of some spans no tick has covered."""
        return np.asarray(np.maximum(end_s - np.maximum(start_s, self.settled_until_s), 0.0))

    def book(self, division: Division, rows: RowShares, steps: OpenSteps, joules: float) -> None:
        """Book a tick that was divided.

        Args:
            division: of the tick.
            rows: its steps over their requests.
            steps: all that are open.
            joules: of the tick.
        """
        if division.busy_expected_joules > 0:  # an idle GPU says nothing of what a step draws
            busy_expected = division.busy_expected_joules
            self._scale_counted *= SCALE_MEMORY
            self._scale_counted += joules * busy_expected / division.expected_joules
            self._scale_expected = SCALE_MEMORY * self._scale_expected + busy_expected
        overhead = steps.overhead[division.steps]
        accounts = rows.keys % COLUMNS
        self.joules[:_OF_REQUESTS] += np.bincount(accounts, rows.joules, _OF_REQUESTS)
        self.joules[Account.OVERHEAD] += division.step_joules[overhead].sum()
        self.joules[Account.IDLE] += division.idle_joules
        self.seconds[:_OF_REQUESTS] += np.bincount(accounts, rows.seconds, _OF_REQUESTS)
        self.seconds[Account.OVERHEAD] += division.busy_s[overhead].sum()
        self.seconds[Account.IDLE] += division.idle_s
        self.allreduce_joules += float(division.step_joules @ steps.allreduce[division.steps])

    def pass_until(self, until_s: float) -> None:
        """What is left of the time up to a moment is nobody's."""
        if until_s > self.settled_until_s:
            self.seconds[Account.UNATTRIBUTED] += until_s - self.settled_until_s
            self.settled_until_s = until_s

    def totals(self, *, exchanges: bool) -> GpuTotals:
        """The accounts up to the last settled tick.

        Args:
            exchanges: whether the GPUs of a step exchange results.
        """
        return GpuTotals(
            self.name,
            self.counter.joules,
            tuple(self.joules.tolist()),
            tuple(self.seconds.tolist()),
            self.counter.watts,
            self.allreduce_joules if exchanges else None,
            self.counter.whole_lag_s,
        )


def unsettled(slot: int, steps: OpenSteps, gpus: Iterable[GpuBook], limit_watts: float) -> Figures:
    """Expected joules and seconds of a request's steps, or parts, that no tick has covered.

    Args:
        slot: of the request.
        steps: all that are open.
        gpus: that work on them.
        limit_watts: no GPU draws more.
    """
    rows = np.flatnonzero(steps.row_key // COLUMNS == slot)
    step = np.searchsorted(steps.first_row, rows, side="right") - 1
    joules, seconds = np.zeros(len(rows)), np.zeros(len(rows))
    for gpu in gpus:
        left_s = gpu.unsettled_s(steps.start[step], steps.end[step])
        joules += left_s * np.minimum(steps.watts[step] * gpu.scale, limit_watts)
        seconds += left_s
    share = steps.row_share[rows]
    by_column = np.bincount(steps.row_key[rows] % COLUMNS, joules * share, COLUMNS)
    return Figures(by_column.astype(np.float64), 0.0, float(seconds @ share))
