"""Enters finished steps into the book: what each was expected to draw, and its requests' shares."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from llm_carbon_meter.ledger.attribution import allreduce_shares, shares, step_loads, step_watts
from llm_carbon_meter.ledger.coefficient_learner import CoefficientLearner
from llm_carbon_meter.ledger.open_requests import OpenRequests
from llm_carbon_meter.ledger.open_steps import OpenSteps
from llm_carbon_meter.ledger.step_columns import StepCounts, account_column, occupancy, step_rows
from llm_carbon_meter.physics.step_coefficients import StepCoefficients, sheet_coefficients
from llm_carbon_meter.physics.step_work import CostModel, Floats, step_sums, step_work
from llm_carbon_meter.records import StepEvent, StepKind


class StepEntry:
    """Makes columns of step events.

    Args:
        model: physics behind the proportions.
        policy: a key of `attribution.POLICIES`.
        learner: learns from the steps' seconds; without one the data sheet holds.
        with_sums: whether somebody looks at what the steps are made of.
    """

    def __init__(
        self,
        model: CostModel,
        policy: str,
        learner: CoefficientLearner | None,
        *,
        with_sums: bool = False,
    ) -> None:
        self.counts = StepCounts()
        self._model = model
        self.policy = policy
        self._learner = learner
        self._summed = model.costs if with_sums else None
        self._sheet = sheet_coefficients(model.gpu)
        self._last_done_s = -np.inf

    @property
    def coefficients(self) -> StepCoefficients:
        """What steps cost, as known now."""
        return self._learner.coefficients if self._learner else self._sheet

    def enter(self, events: Sequence[StepEvent], requests: OpenRequests) -> OpenSteps:
        """Enter steps and their requests, in the order in which they were dispatched."""
        if not events:
            return OpenSteps.empty()
        start, end = occupancy(events, self._last_done_s)
        self._last_done_s = float(end[-1])
        # An empty serving step did nothing: its time is idle.
        worked = [bool(event.request_ids) or event.kind is StepKind.OVERHEAD for event in events]
        events = [event for event, has_work in zip(events, worked, strict=True) if has_work]
        steps = OpenSteps.idling(start[worked], end[worked], self.coefficients.idle_watts)
        steps.overhead[:] = [event.kind is StepKind.OVERHEAD for event in events]
        steps.counts[:] = [len(event.request_ids) for event in events]
        serving = [event for event in events if event.request_ids]
        return self._serve(steps, serving, requests) if serving else steps

    def _serve(
        self, steps: OpenSteps, events: Sequence[StepEvent], requests: OpenRequests
    ) -> OpenSteps:
        """Fill in the steps that have requests; these are the events."""
        serving, coefficients = steps.counts > 0, self.coefficients
        rows, accounts = step_rows(events), account_column(events)
        start, end = steps.start[serving], steps.end[serving]
        work, durations = step_work(rows, self._model), end - start
        loads = step_loads(rows, work, coefficients)
        steps.loads[serving] = loads
        steps.watts[serving] = step_watts(loads, coefficients)
        steps.allreduce[serving] = allreduce_shares(rows, durations, self._model)
        if self._summed is not None:
            steps.sums[serving] = step_sums(rows, self._summed)
        row_share: Floats = shares(self.policy, rows, work, durations, coefficients)
        ids = list(chain.from_iterable(event.request_ids for event in events))
        row_key = requests.enter(ids, rows, accounts, start, end)
        self.counts.add(rows, accounts)
        if self._learner and work:
            self._learner.see_steps(work, durations)
        return steps._replace(row_key=row_key, row_share=row_share)
