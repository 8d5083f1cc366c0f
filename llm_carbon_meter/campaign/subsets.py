"""The Shapley value by its definition, from the joules of every subset of a step's requests."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Final, NamedTuple

import numpy as np

from llm_carbon_meter.ledger.attribution import shares
from llm_carbon_meter.physics.step_coefficients import sheet_coefficients
from llm_carbon_meter.physics.step_work import CostModel, StepRows, step_work

Subset = tuple[int, ...]


class StepMember(NamedTuple):
    """A request of a step: a prefill has nothing cached, a decode has one new token."""

    new: int
    cached: int


BATCHES: Final[Mapping[str, Sequence[StepMember]]] = {
    "decode": [StepMember(1, cached) for cached in (500, 4000, 16000)],
    "mixed": [StepMember(512, 0), StepMember(1, 2000), StepMember(1, 8000)],
    "prefill": [StepMember(256, 0), StepMember(1024, 0)],
    "four": [StepMember(1, cached) for cached in (300, 1200, 4800, 12000)],
}
"""Steps whose subsets a GPU runs, the most wanted first."""


def subsets(count: int) -> Iterator[Subset]:
    """Every one but the empty, the largest last."""
    for size in range(1, count + 1):
        yield from combinations(range(count), size)


def shapley_value(cost: Mapping[Subset, float], count: int) -> list[float]:
    """What each player adds, averaged over all orders in which they could have come.

    Args:
        cost: of every subset; nobody costs nothing.
        count: players.
    """
    cost = {(): 0.0, **cost}
    return [
        sum(
            (cost[tuple(sorted((*others, player)))] - cost[others])
            / (count * comb(count - 1, len(others)))
            for others in [subset for subset in cost if player not in subset]
        )
        for player in range(count)
    ]


def exact_shares(joules: Mapping[Subset, float], count: int) -> list[float]:
    """Shares of the whole step's joules, from those of every subset; they add up to 1."""
    whole = joules[tuple(range(count))]
    return [value / whole for value in shapley_value(joules, count)]


def modelled_shares(
    rows: Sequence[StepMember], step_s: float, model: CostModel, policy: str = "shapley"
) -> list[float]:
    """What the meter gives the requests of one step that took so long."""
    columns = StepRows(
        np.array([len(rows)], np.intp),
        np.array([row.new for row in rows], np.float64),
        np.array([row.cached for row in rows], np.float64),
        np.ones(len(rows)),
    )
    work, coefficients = step_work(columns, model), sheet_coefficients(model.gpu)
    found: list[float] = shares(policy, columns, work, np.array([step_s]), coefficients).tolist()
    return found
