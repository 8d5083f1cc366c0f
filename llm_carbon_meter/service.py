"""The one lifecycle of the meter's threads: each is started once, takes turns, and is stopped."""

import threading
from collections.abc import Callable


class Service:
    """A daemon thread that takes turns until it is stopped.

    Args:
        name: of the thread.
        turn: does a piece of work; returns the seconds until the next turn.
        failed: hears what a turn raised; returns the seconds until the next turn.
        wake: ends a pause early when it is set.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], float],
        failed: Callable[[Exception], float],
        wake: threading.Event | None = None,
    ) -> None:
        self._turn = turn
        self._failed = failed
        self._wake = wake or threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def ended(self) -> bool:
        """Whether no turn is under way and none will be taken."""
        return not self._thread.is_alive()

    def start(self) -> None:
        """Take the first turn, on a thread of its own; returns at once."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Take no further turn, and wait a bounded time for the one under way."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def pause(self, seconds: float) -> bool:
        """Wait inside a turn; True where the service was stopped meanwhile."""
        return self._stopping.wait(seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                pause_s = self._turn()
            except Exception as error:  # noqa: BLE001 - boundary: a thread lives as long as its owner
                pause_s = self._failed(error)
            self._wake.wait(pause_s)
            self._wake.clear()
