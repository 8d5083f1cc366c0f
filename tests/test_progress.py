"""Progress bars and those who read them."""

import io
import sys
import time

import pytest

from llm_carbon_meter.progress import SECONDS, SECONDS_IN_A_LOG, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "most"), [(Terminal(), 1.5 / SECONDS), (io.StringIO(), 1.5 / SECONDS_IN_A_LOG)]
)
def test_a_bar_is_moved_seldom(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, most: float
) -> None:
    """In one and a half seconds once on a terminal, and never in a log, beside its two ends."""
    monkeypatch.setattr(sys, "stderr", stream)
    until_s = time.monotonic() + 1.5
    with progress(total=10**9) as bar:
        while time.monotonic() < until_s:
            bar.update()
    assert stream.getvalue().count("\r") <= 3 + most
