"""The Shapley value of a cost that hangs on the sum of tokens alone: that of the linear kernels.

Weights are streamed once for all, experts by who touches them, and computing may outlast both. So
what a request's tokens add depends on who is there already. Owen's multilinear extension (1972)
averages over that: all others are there with the same chance, and every chance counts alike. Here
the largest others are there or not, one by one; of the tokens of the rest, a part is there.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from llm_carbon_meter.physics.linear_kernels import knot_shares, linear_kernels
from llm_carbon_meter.physics.step_coefficients import StepCoefficients
from llm_carbon_meter.physics.step_work import HEAD, CostModel, Floats, StepRows

LARGEST: Final = 4
"""Others that are there or not, one by one; a step has few chunks of prompts."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
CHANCES: Final = (_NODES + 1) / 2
SETS: Final = (np.arange(2**LARGEST)[:, None] >> np.arange(LARGEST) & 1).astype(np.float64)
"""Who of the largest is there, shape (sets, LARGEST)."""
SET_WEIGHTS: Final = (
    np.where(SETS[:, :, None] > 0, CHANCES, 1 - CHANCES).prod(axis=1) * _WEIGHTS / 2
)
"""How often each set meets each chance, shape (sets, chances)."""
GRID: Final = np.unique(np.round(np.logspace(0, 18, 145, base=2)))
"""Tokens at which costs are computed; they are interpolated in between."""


@dataclass(frozen=True, slots=True)
class LinearJoules:
    """What the linear kernels of a step cost, static power included, at the points of `GRID`."""

    joules: Floats

    @classmethod
    def of(cls, model: CostModel, coefficients: StepCoefficients) -> "LinearJoules":
        """Of a model whose architecture is known."""
        assert model.costs is not None
        linear = linear_kernels(GRID, model.costs, model.gpu)
        watts = coefficients.static_watts + coefficients.load_watts[:3] @ linear.activities
        seconds = linear.seconds * (coefficients.seconds[2:HEAD] @ knot_shares(GRID))
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
    fresh = (place == 0) | (tokens != np.roll(tokens, 1))  # the next ones cause as much
    largest = np.zeros((len(rows.counts), LARGEST + 1))
    leading = place <= LARGEST
    largest[steps[leading], place[leading].astype(np.intp)] = tokens[leading]
    found = _added(
        tokens[fresh],
        _without(largest[steps[fresh]], place[fresh]),
        rows.per_row(rows.per_step(rows.new_tokens))[fresh],
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


def _added(tokens: Floats, others: Floats, whole: Floats, cost: LinearJoules) -> Floats:
    """What players add to those who are there, in the mean.

    Args:
        tokens: of the players.
        others: as `_without` gives them.
        whole: tokens of the players' steps.
        cost: of tokens.
    """
    rest = np.maximum(whole - tokens - others.sum(axis=1), 0.0)
    there = (others @ SETS.T)[:, :, None] + rest[:, None, None] * CHANCES
    added = cost.at(there + tokens[:, None, None]) - cost.at(there)
    return np.asarray(np.einsum("psc,sc->p", added, SET_WEIGHTS))
