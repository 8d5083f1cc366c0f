"""Step events as columns, one row per scheduled request, and the counts of steps and tokens."""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter

import numpy as np

from llm_carbon_meter.physics.step_work import Floats, Ints, StepRows
from llm_carbon_meter.records import REQUEST_ACCOUNTS, Account, StepEvent


def step_rows(events: Sequence[StepEvent]) -> StepRows:
    """The requests of steps that have some."""
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


def account_column(events: Sequence[StepEvent]) -> Ints:
    """The account of every row."""
    # By way of bytes: a tenth of the time that numpy takes over a list of enum members.
    column = b"".join(bytes(event.accounts) for event in events)
    return np.frombuffer(column, np.uint8).astype(np.intp)


def occupancy(events: Sequence[StepEvent], last_done_s: float) -> tuple[Floats, Floats]:
    """When each step had the GPUs: from its dispatch or the end of the one before, if later.

    Args:
        events: in the order in which they were dispatched.
        last_done_s: when the step before them was done.
    """
    end = np.maximum.accumulate([max(event.done_s, last_done_s) for event in events])
    before = np.concatenate(([last_done_s], end[:-1]))
    return np.clip([event.dispatched_s for event in events], before, end), end


class StepCounts:
    """Steps and tokens so far, by phase."""

    def __init__(self) -> None:
        self.steps = {"prefill": 0, "decode": 0, "mixed": 0}
        self.tokens = {account.label: 0 for account in REQUEST_ACCOUNTS}

    def add(self, rows: StepRows, accounts: Ints) -> None:
        """Count steps, given the account of every row."""
        filling = (accounts == Account.PREFILL) | (accounts == Account.RECOMPUTE)
        fills = rows.per_step(filling.astype(np.float64))
        self.steps["prefill"] += int((fills == rows.counts).sum())
        self.steps["decode"] += int((fills == 0).sum())
        self.steps["mixed"] += int(((fills > 0) & (fills < rows.counts)).sum())
        tokens = np.bincount(accounts, rows.new_tokens, len(REQUEST_ACCOUNTS))
        for account in REQUEST_ACCOUNTS:
            self.tokens[account.label] += int(tokens[account])
