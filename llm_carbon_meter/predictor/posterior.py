"""What a deployment has shown of its factors: a Gaussian over their logarithms, learnt as it works.

It begins as the prior of its kin. Each observation compares the law's time and energy of some steps
with what was measured, and moves the factors along what that observation depends on, as far as the
covariance allows (a Kalman filter on the linearised law). Where all loads are alike, that is mostly
what all factors have in common. Nothing is forgotten but what is seen anew.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.predictor.fitted_physics import FittedPhysics, Prior
from llm_carbon_meter.predictor.step_law import FACTORS, Constants, constants_of, spent
from llm_carbon_meter.records import DeploymentFactors

Floats = NDArray[np.float64]

NUDGE: Final = 0.02
"""By which each factor is moved to see what depends on it."""
ENERGY_NOISE: Final = 0.05
"""Standard deviation of ln(measured / law) where all factors are right."""
SECONDS_NOISE: Final = 0.1
OUTLIER: Final = 2.0
"""Standard deviations beyond which an observation counts less."""
KEPT: Final = 0.97
"""Of what is known along an observation, before it is seen."""
BOUND: Final = 5.0
"""Standard deviations of the prior that no factor goes beyond."""


class Expected(NamedTuple):
    """The law of some steps together, as logarithms, and what it depends on."""

    boards: float
    seconds: float
    boards_slopes: Floats
    """Shape (factors,)."""
    seconds_slopes: Floats


@dataclass(frozen=True, slots=True)
class Steps:
    """Some steps, or the phases of a batch."""

    terms: Floats
    """`step_law.TERMS` of each, shape (steps, terms)."""
    parts: Floats
    """How much of each is meant, shape (steps,)."""


def expected(physics: FittedPhysics, mean: Floats, steps: Steps) -> Expected:
    """What the law says of some steps together."""
    sets = np.stack((mean, *(mean + NUDGE * np.eye(len(FACTORS)))))
    laws = Constants(*(part[:, None] for part in constants_of(physics, sets, np)))
    both = spent(laws, steps.terms[:, None])  # (laws, steps, 1)
    seconds, boards = (np.log(column[..., 0] @ steps.parts) for column in both)
    slopes = ((column[1:] - column[0]) / NUDGE for column in (boards, seconds))
    return Expected(float(boards[0]), float(seconds[0]), *slopes)


class FactorPosterior:
    """The factors of one deployment.

    Args:
        physics: the law.
        prior: of the deployment.
        seen: what it has shown before; None for nothing.
    """

    def __init__(self, physics: FittedPhysics, prior: Prior, seen: Prior | None = None) -> None:
        self._physics, self._prior = physics, prior
        self._mean = (seen or prior).mean.copy()
        self._covariance = (seen or prior).covariance.copy()
        self._deviation = np.sqrt(np.diag(prior.covariance))

    @property
    def factors(self) -> Prior:
        """As known now."""
        return Prior(self._mean.copy(), self._covariance.copy())

    def record(self, ticks: int) -> DeploymentFactors:
        """The same to be sent and kept, of so many ticks."""
        rows = tuple(tuple(row) for row in self._covariance.tolist())
        return DeploymentFactors(tuple(self._mean.tolist()), rows, ticks)

    def observe(self, steps: Steps, boards: float | None, seconds: float | None) -> None:
        """Learn from some steps that were measured together.

        Args:
            steps: them.
            boards: their energy per GPU, in units of the law's power x 1 s; None where unknown.
            seconds: their time, likewise.
        """
        if seconds is not None:
            law = expected(self._physics, self._mean, steps)
            self._learn(np.log(seconds) - law.seconds, law.seconds_slopes, SECONDS_NOISE)
        if boards is not None:
            law = expected(self._physics, self._mean, steps)
            self._learn(np.log(boards) - law.boards, law.boards_slopes, ENERGY_NOISE)

    def _learn(self, error: float, slopes: Floats, noise: float) -> None:
        along = self._covariance @ slopes
        variance = float(slopes @ along)
        most = float(slopes @ self._prior.covariance @ slopes)
        if variance <= 0:
            return
        wider = max(min(variance / KEPT, most) / variance - 1, 0.0)
        self._covariance += wider / variance * np.outer(along, along)
        along, variance = along * (1 + wider), variance * (1 + wider)
        deviation = np.sqrt(variance + noise**2)
        trust = min(1.0, OUTLIER * deviation / max(abs(error), 1e-12))
        gain = along / (variance + noise**2 / trust)
        self._covariance -= np.outer(gain, along)
        self._covariance = (self._covariance + self._covariance.T) / 2
        reach, middle = BOUND * self._deviation, self._prior.mean
        self._mean = np.clip(self._mean + gain * error, middle - reach, middle + reach)
