"""The estimator of a running server: it learns how long answers are, and how far it is off."""

from dataclasses import replace
from pathlib import Path

from llm_carbon_meter.data.azure_trace import conversation_quantiles
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.formats.kept_state import KeptState
from llm_carbon_meter.predictor.calibration import Calibration, State, identity, learnable_log_ratio
from llm_carbon_meter.predictor.estimator import DeploymentEstimator
from llm_carbon_meter.predictor.lengths import OutputLengths, exact_length
from llm_carbon_meter.records import (
    CarbonIntensity,
    EnergyEstimate,
    EstimateQuery,
    RequestEnergy,
    RequestRecord,
)


class LiveEstimator:
    """Estimates before and, given what is known then, after a request.

    Args:
        estimator: of this deployment.
        file: keeps the calibration over a restart; None to keep none.
        writes: whether this API server is the one that writes it; all read it.
        faults: counts of what went wrong.
    """

    def __init__(
        self, estimator: DeploymentEstimator, file: Path | None, writes: bool, faults: Faults
    ) -> None:
        self._estimator = estimator
        holds_for = identity(estimator.deployment, estimator.method)
        self._file = KeptState(file, State, holds_for, faults, "calibration")
        self._writes = writes
        self._lengths = OutputLengths(conversation_quantiles().output_tokens)
        self._calibration = self._file.load(Calibration) or Calibration()
        self._learnt = False

    @property
    def intensity(self) -> CarbonIntensity:
        """Of the grid, for the grams."""
        return self._estimator.intensity

    @intensity.setter
    def intensity(self, now: CarbonIntensity) -> None:
        self._estimator.intensity = now

    def estimate(self, query: EstimateQuery) -> EnergyEstimate:
        """Estimate a request that has not run.

        Raises:
            MeterError: the query makes no sense.
        """
        if query.output_tokens is None:
            lengths = self._lengths.forecast(query.max_tokens)
        else:
            lengths = exact_length(query.output_tokens)
        estimate = self._estimator.estimate(query, lengths)
        factor = self._calibration.factor
        return estimate if factor == 1.0 else replace(estimate, calibration=factor)

    def conditional(self, energy: RequestEnergy) -> EnergyEstimate:
        """What would have been estimated, had its length and concurrency been known.

        Raises:
            MeterError: the request had no prompt.
        """
        return self.estimate(
            EstimateQuery(
                energy.prompt_tokens,
                None,
                concurrency=max(1.0, energy.mean_running),
                output_tokens=energy.output_tokens,
            )
        )

    def learn_length(self, output_tokens: int) -> None:
        """An answer ended by itself or at its limit."""
        self._lengths.observe(output_tokens)

    def learn(self, record: RequestRecord) -> None:
        """Learn from a finished record, of this API server or another one."""
        log_ratio = learnable_log_ratio(record)
        if log_ratio is None:
            return
        self._calibration.observe(log_ratio)
        self._learnt = True
        if self._file.is_due:
            self.save()

    def save(self) -> None:
        """Write the calibration file, where there is one of ours and something was learnt."""
        if self._writes and self._learnt:
            self._file.save(self._calibration.state)
