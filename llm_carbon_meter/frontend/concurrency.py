"""How many requests share an engine's batch with a request that comes now."""

import time
from collections.abc import Callable
from typing import Final

from llm_carbon_meter.records import HEARTBEAT_S, EngineLoad

SILENT_S: Final = 3 * HEARTBEAT_S
"""Engines not heard for this long are not metered: answers must not wait for their figures."""

Held = Callable[[], int]
"""Gives how many requests of one API server its engines hold."""


class Concurrency:
    """Counts requests that the engines run or are about to run.

    The API server's own requests are counted exactly. Those of other API servers are as the engines
    last told them.

    Args:
        index: of this API server.
        held: gives its own requests that the engines hold.
        most: requests that an engine batches at once; None where nobody knows.
    """

    def __init__(self, index: int, held: Held, most: int | None) -> None:
        self._index = index
        self._held = held
        self._most = most
        self._loads: dict[int, tuple[EngineLoad, float]] = {}
        """The last load of each engine, and when it was heard."""

    def receive(self, load: EngineLoad) -> None:
        """An engine says whose requests it holds."""
        self._loads[load.engine] = load, time.monotonic()

    def with_more(self, coming: int) -> int:
        """Requests in the fullest batch that gets one of ``coming`` requests, these included.

        vLLM gives a request to the engine that has the fewest, so engines share requests evenly.
        Requests beyond what an engine batches at once wait, and share no batch.
        """
        held, engines = self._held() + self._of_others(), max(len(self._loads), 1)
        in_batch = (held + coming - 1) // engines + 1
        return in_batch if self._most is None else min(in_batch, self._most)

    def _of_others(self) -> int:
        since_s = time.monotonic() - SILENT_S
        return sum(
            count
            for load, heard_s in list(self._loads.values())
            for index, count in load.requests.items()
            if heard_s > since_s and index != self._index
        )
