"""How far a few of a deployment's own measurements correct its estimates.

The meter's own posterior learns from some measured configurations of a deployment that no fit has
seen, and the deployment's other configurations are judged. Beside it stands what one factor does.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.predictor.fitted_physics import FittedPhysics, Prior
from llm_carbon_meter.predictor.gnn import Z_80
from llm_carbon_meter.predictor.posterior import ENERGY_NOISE, FactorPosterior, Steps, expected
from llm_carbon_meter.training.fit.examples import Examples
from llm_carbon_meter.training.fit.train import priors_of

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

SHOWN: Final = (0, 1, 2, 3, 5, 8)
"""Configurations of its own that a deployment has shown."""
STATED: Final = 3
"""Of these, the number of the goals."""
DRAWS: Final = 10
JUDGED: Final = 2
"""A deployment has at least so many rows more than it shows, else it is left out."""


@dataclass(frozen=True, slots=True)
class OwnRows:
    """Of each row the mean over the draws that judge it, nan where none does; shapes (shown, n)."""

    ape: Floats
    """Absolute error of the posterior's estimate [%]."""
    one_factor_ape: Floats
    """Of the prior's estimate times the mean ratio of what was shown."""
    inside: Floats
    """Whether the 80 % interval holds it [%]."""

    def stacked(self) -> Floats:
        """All in one array, shape (3, shown, n)."""
        return np.stack((self.ape, self.one_factor_ape, self.inside))


def from_own_rows(data: Examples, physics: FittedPhysics) -> OwnRows:
    """Judge the rows of deployments that the physics was not fitted to."""
    priors, places = priors_of(data, physics)
    sums, counts = np.zeros((3, len(SHOWN), len(data))), np.zeros((len(SHOWN), len(data)))
    for name in np.unique(data.deployments):
        own = np.flatnonzero(data.deployments == name)
        prior = priors[places[own[0]]]
        for seed in range(DRAWS):
            order = np.random.default_rng(seed).permutation(own)
            for number, shown in enumerate(SHOWN):
                rest = order[shown:]
                if len(rest) >= JUDGED:
                    sums[:, number, rest] += _judge(data, physics, prior, order[:shown], rest)
                    counts[number, rest] += 1
    with np.errstate(invalid="ignore"):
        return OwnRows(*(sums / counts))


def _judge(
    data: Examples, physics: FittedPhysics, prior: Prior, shown: Places, rest: Places
) -> Floats:
    """Errors of the rest by posterior and by one factor, and whether it is inside; (3, rest)."""
    posterior = FactorPosterior(physics, prior)
    for place in shown:
        posterior.observe(_steps(data, place), _boards(data, place), None)
    factor = float(np.mean([_error(data, physics, prior, place) for place in shown] or [0.0]))
    now, columns = posterior.factors, []
    for place in rest:
        law, measured = expected(physics, now.mean, _steps(data, place)), _boards(data, place)
        error = np.log(measured) - law.boards
        alone = _error(data, physics, prior, place) - factor
        variance = law.boards_slopes @ now.covariance @ law.boards_slopes
        inside = abs(error) <= Z_80 * np.sqrt(variance + ENERGY_NOISE**2)
        columns.append((_percent(error), _percent(alone), 100.0 * inside))
    return np.array(columns).T


def _percent(error: float) -> float:
    """Absolute error of an estimate [%], of ln(measured / estimated)."""
    return float(100 * abs(np.exp(-error) - 1))


def _error(data: Examples, physics: FittedPhysics, prior: Prior, place: int) -> float:
    """ln(measured / prior's estimate)."""
    law = expected(physics, prior.mean, _steps(data, place))
    return float(np.log(_boards(data, place)) - law.boards)


def _steps(data: Examples, place: int) -> Steps:
    return Steps(data.terms[place], np.ones(2))


def _boards(data: Examples, place: int) -> float:
    return float(data.joules[place] / data.board_joules[place])
