"""The ledger's steps as columns: those that some GPU's counter has not covered yet."""

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.physics.phases import SUMS
from llm_carbon_meter.physics.step_coefficients import LOADS
from llm_carbon_meter.physics.step_work import Floats, Ints


class OpenSteps(NamedTuple):
    """Disjoint and in order; their rows, one per scheduled request, one after another."""

    start: Floats
    """Seconds, as are all times."""
    end: Floats
    watts: Floats
    """Expected, of each GPU."""
    loads: Floats
    """As `attribution.step_loads` has them, shape (steps, loads)."""
    allreduce: Floats
    """Share of the step's time."""
    sums: Floats
    """`phases.SUMS`, shape (steps, sums); 0 where nobody looks at them."""
    overhead: npt.NDArray[np.bool_]
    counts: Ints
    """Rows of each step."""
    row_key: Ints
    """Of `open_requests`: whose, and on which account."""
    row_share: Floats
    """Of the step's joules."""

    @classmethod
    def empty(cls) -> Self:
        """No steps."""
        return cls.idling(np.zeros(0), np.zeros(0), 0.0)

    @classmethod
    def idling(cls, start: Floats, end: Floats, idle_watts: float) -> Self:
        """Steps of which nothing but their times is known yet: no load, no rows."""
        number = len(start)
        return cls(
            start,
            end,
            np.full(number, idle_watts),
            np.zeros((number, len(LOADS))),
            np.zeros(number),
            np.zeros((number, len(SUMS))),
            np.zeros(number, np.bool_),
            np.zeros(number, np.intp),
            np.zeros(0, np.intp),
            np.zeros(0),
        )

    @property
    def first_row(self) -> Ints:
        """First row of each step, and the number of rows behind the last."""
        return np.concatenate(([0], np.cumsum(self.counts)))

    def rows(self, steps: slice) -> slice:
        """The rows of a range of steps."""
        first = int(self.counts[: steps.start].sum())
        return slice(first, first + int(self.counts[steps].sum()))

    def append(self, other: Self) -> Self:
        """Columns of these steps and of later ones."""
        pairs: Any = zip(self, other, strict=True)
        return type(self)(*(np.concatenate(pair) for pair in pairs))

    def after(self, time_s: float) -> Self:
        """Drop the steps that ended by then."""
        first = int(np.searchsorted(self.end, time_s, side="right"))
        row = int(self.counts[:first].sum())
        of_rows = 2
        begins = [first] * (len(self) - of_rows) + [row] * of_rows
        pairs: Any = zip(self, begins, strict=True)
        return type(self)(*(column[begin:] for column, begin in pairs))

    def within(self, start_s: float, end_s: float) -> slice:
        """The steps that overlap a span."""
        first = int(np.searchsorted(self.end, start_s, side="right"))
        last = int(np.searchsorted(self.start, end_s, side="left"))
        return slice(first, max(first, last))
