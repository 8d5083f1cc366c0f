"""Every estimate makes sense, on every model and GPU of the lists."""

import pytest

from tests.predictor.properties import count

STEP = 97
"""A prime: every model, GPU, parallelism and engine is among the deployments that are looked at."""


def test_no_property_is_violated() -> None:
    """Over a part of the whole list; the rest is in the slow test."""
    places, broken = count(STEP)
    assert places > 300
    assert not +broken


@pytest.mark.slow
def test_no_property_is_violated_anywhere() -> None:
    """Over the whole list of models, GPUs, parallelism, engines and loads."""
    places, broken = count()
    assert places > 30_000
    assert not +broken
