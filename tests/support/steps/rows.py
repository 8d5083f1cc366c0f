"""The requests of a step, row by row."""

from typing import NamedTuple


class Row(NamedTuple):
    """A request of a step."""

    new: int
    cached: int
    sampled: int


MIXED = [Row(512, 512, 0), Row(1, 100, 1), Row(1, 1000, 1), Row(1, 4000, 1)]
"""The worked example: a prefill chunk and three decodes."""
