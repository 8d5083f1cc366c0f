"""The Shapley value by its definition, for a handful of players."""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb
from typing import TypeVar

Player = TypeVar("Player")


def shapley_value(
    cost: Callable[[Sequence[Player]], float], players: Sequence[Player]
) -> list[float]:
    """The mean marginal cost over all orders in which the players could join; nobody costs 0."""
    count = len(players)
    sets = [members for size in range(count + 1) for members in combinations(range(count), size)]
    cost_of = {members: cost([players[i] for i in members]) if members else 0.0 for members in sets}
    return [
        sum(
            (cost_of[tuple(sorted((*members, player)))] - cost_of[members])
            / (count * comb(count - 1, len(members)))
            for members in sets
            if player not in members
        )
        for player in range(count)
    ]
