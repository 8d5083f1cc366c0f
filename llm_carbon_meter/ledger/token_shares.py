"""The Shapley value of a cost that hangs on the sum of tokens alone: that of the linear kernels.

Weights are streamed once for all, experts by who touches them, and computing may outlast both. So
what a request's tokens add depends on who is there already. Owen's multilinear extension (1972)
averages over that: all others are there with the same chance, and every chance counts alike. Here
the largest others are there or not, one by one; of the rest nobody is there, or its mean tokens.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from llm_carbon_meter.physics.linear_kernels import ACTIVITIES, GRID, GRID_SHARES
from llm_carbon_meter.physics.step_coefficients import StepCoefficients
from llm_carbon_meter.physics.step_work import HEAD, CostModel, Floats, StepRows

LARGEST: Final = 4
"""Others that are there or not, one by one; a step has few chunks of prompts."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)
CHANCES: Final = (_NODES + 1) / 2
SETS: Final = (np.arange(2**LARGEST)[:, None] >> np.arange(LARGEST) & 1).astype(np.float64)
"""Who of the largest is there, shape (sets, LARGEST)."""
SET_WEIGHTS: Final = (
    np.where(SETS[:, :, None] > 0, CHANCES, 1 - CHANCES).prod(axis=1) * _WEIGHTS / 2
)
"""How often each set meets each chance, shape (sets, chances)."""


@dataclass(frozen=True, slots=True)
class LinearJoules:
    """What the linear kernels of a step cost, static power included, at the points of `GRID`."""

    joules: Floats

    @classmethod
    def of(cls, model: CostModel, coefficients: StepCoefficients) -> "LinearJoules":
        """Of a model whose architecture is known."""
        linear = model.by_tokens
        load_watts = coefficients.load_watts[: len(ACTIVITIES)]
        watts = coefficients.static_watts + load_watts @ linear.activities
        seconds = linear.seconds * (coefficients.seconds[2:HEAD] @ GRID_SHARES)
        return cls(np.maximum.accumulate(watts * seconds))  # more tokens never cost less

    def at(self, tokens: Floats) -> Floats:
        """Of steps with these tokens; below one token as of one."""
        return np.interp(tokens, GRID, self.joules)


def token_shares(rows: StepRows, cost: LinearJoules) -> Floats:
    """Joules that each request causes of its step's linear kernels, shape (rows,)."""
    shares = rows.per_row(cost.at(rows.per_step(rows.new_tokens)) / rows.counts)
    fewest, most = (f.reduceat(rows.new_tokens, rows.starts) for f in (np.minimum, np.maximum))
    mixed = most > fewest
    if mixed.any():
        shares[np.repeat(mixed, rows.counts)] = _mixed_shares(rows.of_steps(mixed), cost)
    return shares


def _mixed_shares(rows: StepRows, cost: LinearJoules) -> Floats:
    """Of steps whose requests have different numbers of tokens."""
    steps = np.repeat(np.arange(len(rows.counts)), rows.counts)
    order = np.lexsort((-rows.new_tokens, steps))  # the largest of each step first
    tokens, place = rows.new_tokens[order], np.arange(len(order)) - rows.per_row(rows.starts)
    before = np.concatenate((tokens[-1:], tokens[:-1]))
    fresh = (place == 0) | (tokens != before)  # equal ones cause as much
    largest = np.zeros((len(rows.counts), LARGEST + 1))
    leading = place <= LARGEST
    largest[steps[leading], place[leading].astype(np.intp)] = tokens[leading]
    found = _added(
        tokens[fresh],
        _without(largest[steps[fresh]], place[fresh]),
        rows.per_row(rows.per_step(rows.new_tokens))[fresh],
        rows.per_row(rows.counts)[fresh],
        cost,
    )
    shares = np.empty(len(order))
    shares[order] = found[np.cumsum(fresh) - 1]
    # The first token brings the weights along, and is anybody's.
    first = cost.joules[0]
    rest = np.maximum(cost.at(rows.per_step(rows.new_tokens)) - first, 0.0)
    summed = rows.per_step(shares)
    exact = rest / np.where(summed > 0, summed, 1.0)
    return np.asarray(shares * rows.per_row(exact) + rows.per_row(first / rows.counts))


def _without(largest: Floats, place: Floats) -> Floats:
    """The largest others of players, shape (players, LARGEST).

    Args:
        largest: tokens of the largest of each player's step, shape (players, LARGEST + 1).
        place: of the player among the step's requests.
    """
    earlier = np.arange(LARGEST) < place[:, None]
    return np.where(earlier, largest[:, :LARGEST], largest[:, 1:])


def _added(
    tokens: Floats, others: Floats, whole: Floats, counts: Floats, cost: LinearJoules
) -> Floats:
    """What players add to those who are there, in the mean.

    Args:
        tokens: of the players.
        others: as `_without` gives them.
        whole: tokens of the players' steps.
        counts: requests of these steps.
        cost: of tokens.
    """
    rest = np.maximum(whole - tokens - others.sum(axis=1), 0.0)
    nobody = (1 - CHANCES) ** np.maximum(counts - 1 - LARGEST, 0.0)[:, None]
    somebody = rest[:, None] * CHANCES / np.where(nobody < 1, 1 - nobody, 1.0)
    largest = others @ SETS.T

    def marginal(there: Floats) -> Floats:
        own = tokens.reshape(-1, *(1,) * (there.ndim - 1))
        return np.asarray(cost.at(there + own) - cost.at(there))

    alone = np.einsum("ps,sc,pc->p", marginal(largest), SET_WEIGHTS, nobody)
    beside = marginal(largest[:, :, None] + somebody[:, None, :])
    return np.asarray(alone + np.einsum("psc,sc,pc->p", beside, SET_WEIGHTS, 1 - nobody))
