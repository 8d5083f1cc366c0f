"""Waits for what another thread or process does."""

import time
from collections.abc import Callable
from typing import Any


def eventually(ask: Callable[[], Any], what: str = "an answer", timeout_s: float = 15.0) -> Any:
    """Ask until there is an answer."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")
