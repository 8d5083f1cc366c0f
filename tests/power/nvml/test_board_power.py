"""What a GPU can draw at most, and what is more than that."""

from typing import Any

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.power.nvml.board_power import LARGEST_WATTS, JumpWatch, board_watts


@pytest.mark.parametrize(
    ("extra", "watts"),
    [
        (("name NVIDIA A100-SXM4-80GB",), 400),
        (("name NVIDIA A100-SXM4-80GB", "limit 0 150"), 400),
        (("name NVIDIA A100-SXM4-80GB", "limit 0 500"), 500),
        (("name NVIDIA H101", "limit 0 1200"), 1200),
        (("name NVIDIA H101",), LARGEST_WATTS),
    ],
)
def test_the_board_power_is_the_most_that_anybody_names(
    stub: Any, extra: tuple[str, ...], watts: float
) -> None:
    """Data sheet, or the highest limit that the driver lets be set; never what is set now."""
    stub.steady(100, extra=extra)
    pynvml.nvmlInit()
    assert board_watts(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)) == watts
    pynvml.nvmlShutdown()


def test_a_counter_that_stood_still_may_catch_up() -> None:
    """Ten seconds at full power in one move are possible, and a second of it in a millisecond."""
    watch = JumpWatch(400.0)
    assert not watch.jumps(0.0, 1e9)
    assert not watch.jumps(9.9, 1e9)
    assert not watch.jumps(10.0, 1e9 + 4000)
    assert not watch.jumps(10.001, 1e9 + 4400)
    assert watch.jumps(10.002, 1e9 + 1.1e6)
    assert not watch.jumps(10.1, 1e9 + 1.1e6 + 40)
    assert not watch.jumps(10.2, 5.0)


@given(st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 400)), max_size=50))
def test_what_a_board_draws_is_never_a_jump(pieces: list[tuple[float, float]]) -> None:
    """Whatever it draws up to its board power, and however often it is read."""
    watch, at_s, joules = JumpWatch(400.0), 0.0, 0.0
    for seconds, watts in pieces:
        at_s, joules = at_s + seconds, joules + seconds * watts
        assert not watch.jumps(at_s, joules)
