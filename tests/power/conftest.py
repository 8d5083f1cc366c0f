"""A clock that a test moves."""

import pytest

from tests.support.scripted_nvml import MovableClock


@pytest.fixture
def clock() -> MovableClock:
    """For the meter under test."""
    return MovableClock()
