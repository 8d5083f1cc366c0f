"""How others divide: over lifetimes, as codecarbon does, and whole, as snapshot meters do."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.records import EnergyReading

from .playing import Run

Floats = npt.NDArray[np.float64]


class Lives(NamedTuple):
    """From when to when requests were in the server, shape (requests,)."""

    names: Sequence[str]
    start_s: Floats
    end_s: Floats


def lives_of(run: Run) -> Lives:
    """Of all requests that ran a step."""
    ends = [end for end in run.served.ends if end.request_id in run.causes]
    names = [end.request_id for end in ends]
    start = np.array([run.served.arrived_s[name] for name in names])
    return Lives(names, start, np.array([end.monotonic_s for end in ends]))


def counted(readings: Sequence[EnergyReading]) -> tuple[Floats, Floats]:
    """Times and joules of a counter without its resets."""
    grown = [max(after.joules - before.joules, 0.0) for before, after in pairwise(readings)]
    return np.array([r.monotonic_s for r in readings]), np.insert(np.cumsum(grown), 0, 0.0)


def time_overlap(run: Run) -> Mapping[str, float]:
    """At every moment the GPUs' power is divided equally among the requests in the server."""
    lives = lives_of(run)
    edges = np.unique(np.concatenate((lives.start_s, lives.end_s)))
    present = np.searchsorted(np.sort(lives.start_s), edges[:-1], side="right")
    present = present - np.searchsorted(np.sort(lives.end_s), edges[:-1], side="right")
    joules = np.zeros(len(lives.names))
    for readings in run.seen.values():
        pieces = np.diff(np.interp(edges, *counted(readings))) / np.maximum(present, 1)
        shared = np.insert(np.cumsum(pieces), 0, 0.0)
        joules += np.interp(lives.end_s, edges, shared) - np.interp(lives.start_s, edges, shared)
    return dict(zip(lives.names, joules.tolist(), strict=True))


def whole_gpu(run: Run) -> Mapping[str, float]:
    """The counter at a request's end less the counter at its start, whoever else was there."""
    lives = lives_of(run)
    joules = np.zeros(len(lives.names))
    for readings in run.seen.values():
        times, values = counted(readings)
        last = [np.searchsorted(times, at, side="right") - 1 for at in (lives.start_s, lives.end_s)]
        joules += values[last[1]] - values[last[0]]
    return dict(zip(lives.names, joules.tolist(), strict=True))


BASELINES: Mapping[str, Callable[[Run], Mapping[str, float]]] = {
    "time overlap": time_overlap,
    "whole GPU": whole_gpu,
}
