"""The exact Shapley value of a cost, for a handful of players."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from llm_carbon_meter.campaign.subsets import shapley_value, subsets

Player = TypeVar("Player")


def shapley_of(cost: Callable[[Sequence[Player]], float], players: Sequence[Player]) -> list[float]:
    """Of a cost that is asked for every subset."""
    count = len(players)
    cost_of = {members: cost([players[i] for i in members]) for members in subsets(count)}
    return shapley_value(cost_of, count)
