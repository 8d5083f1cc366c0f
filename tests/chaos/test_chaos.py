"""Ten minutes of everything that goes wrong."""

from pathlib import Path

import pytest

from .__main__ import chaos, summary
from .acts import ACTS

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_the_sums_are_right_after_all_that_happened(tmp_path: Path) -> None:
    """Everything happened at least twice; `verdict` says what must hold."""
    outcome = chaos(tmp_path, minutes=10, clients=32, seed=1)
    assert all(outcome.happened[name] >= 2 for name in ACTS), summary(outcome)
    assert all(line.holds for line in outcome.lines), summary(outcome)
