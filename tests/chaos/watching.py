"""Memory and file descriptors of processes over time."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Final, NamedTuple

import psutil

PERIOD_S: Final = 5.0
WARM_S: Final = 120.0
"""Of a process's life: caches fill, and allocators find their size."""
SETTLED_S: Final = 90.0
"""A slope is told of those that were seen so long after that."""
MEGABYTE: Final = 1e6


class Reading(NamedTuple):
    """Of one process."""

    at_s: float
    megabytes: float
    """Its own memory, without shared pages."""
    descriptors: int


@dataclass
class Watch:
    """Reads some processes until it is cancelled.

    Args:
        processes: gives those of the moment, by name.
    """

    processes: Callable[[], Mapping[str, psutil.Process]]
    seen: dict[tuple[str, int], list[Reading]] = field(default_factory=dict)
    """By name and number."""

    async def run(self) -> None:
        """A reading of each in every period."""
        while True:
            with contextlib.suppress(psutil.Error):
                for name, process in self.processes().items():
                    readings = self.seen.setdefault((name, process.pid), [])
                    readings.append(await asyncio.to_thread(_read, process))
            await asyncio.sleep(PERIOD_S)

    def grown(self) -> Mapping[str, tuple[float, int]]:
        """Megabytes a minute, and descriptors more at the end than after the warm-up; of those
        that lived long enough."""
        told = {}
        for (name, number), readings in self.seen.items():
            warm = [one for one in readings if one.at_s > readings[0].at_s + WARM_S]
            if warm and warm[-1].at_s - warm[0].at_s > SETTLED_S:
                third = max(len(warm) // 3, 1)
                more = _fewest(warm[-third:]) - _fewest(warm[:third])
                told[f"{name} {number}"] = 60 * _slope(warm), more
        return told


def _read(process: psutil.Process) -> Reading:
    return Reading(time.monotonic(), process.memory_full_info().uss / MEGABYTE, process.num_fds())


def _fewest(readings: Iterable[Reading]) -> int:
    """Descriptors while few connections are open."""
    return min(one.descriptors for one in readings)


def _slope(readings: list[Reading]) -> float:
    """Megabytes a second: the median of all pairs' (Theil and Sen)."""
    return median(
        (later.megabytes - sooner.megabytes) / (later.at_s - sooner.at_s)
        for sooner, later in combinations(readings, 2)
    )
