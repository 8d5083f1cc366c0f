"""Requests of a simulated world: lengths and arrivals of the Azure 2023 traces."""

import csv
import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.config import DATA_VARIABLE
from llm_carbon_meter.data.azure_trace import conversation_quantiles
from llm_carbon_meter.demo.trace import draw as draw_quantiles

from .loads import Load
from .ranges import World

Floats = npt.NDArray[np.float64]

CACHE_BLOCK: Final = 16
"""Tokens; the prefix cache knows whole blocks, and never a whole prompt."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """One of the trace's requests after the other."""

    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    gaps_s: Floats
    """Between arrivals, at the trace's own pace."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it comes."""

    name: str
    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Found in the prefix cache, if it is not preempted before."""
    stops: bool
    """Ends by a stop token, which async scheduling sees one step late."""


@cache
def trace_of(kind: str) -> Lengths:
    """A trace of the data folder; the package's quantiles where there is no folder."""
    folder = os.environ.get(DATA_VARIABLE, "")
    if not folder:
        return _quantiles()
    path = Path(folder) / "azure_llm_trace_2023" / f"AzureLLMInferenceTrace_{kind}.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    times = np.array([_seconds(row["TIMESTAMP"]) for row in rows])
    return Lengths(
        [int(row["ContextTokens"]) for row in rows],
        [int(row["GeneratedTokens"]) for row in rows],
        np.diff(times, prepend=times[0]),
    )


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp[:26]).timestamp()


def _quantiles() -> Lengths:
    tables = conversation_quantiles()
    longest = round(tables.prompt_tokens[99]), round(tables.output_tokens[99])
    drawn = draw_quantiles(tables.rows, 0, *longest)
    times = np.array([request.arrival_s for request in drawn])
    prompts = [request.prompt_tokens for request in drawn]
    outputs = [request.output_tokens for request in drawn]
    return Lengths(prompts, outputs, np.diff(times, prepend=0.0))


def arrivals(world: World, load: Load, per_s: float, until_s: float) -> list[Arrival]:
    """Consecutive requests of the trace, from a random one on, at another mean rate."""
    random = np.random.default_rng([7, world.seed, load.concurrency])
    trace, values = trace_of(world.trace), world.values
    count = int(per_s * until_s * 1.5) + 20
    rows = (random.integers(len(trace.gaps_s)) + np.arange(count)) % len(trace.gaps_s)
    gaps = trace.gaps_s[rows]
    times = _together(np.cumsum(gaps * (1 / per_s) / max(gaps.mean(), 1e-9)), load)
    brief = random.random(count) < values["brief_requests"]
    few = random.integers(1, 4, count)
    hit = random.random(count) < values["prefix_hits"]
    stops = random.random(count) < values["stopped_requests"]
    requests = []
    for number, row in enumerate(rows.tolist()):
        prompt = max(trace.prompt_tokens[row], 1)
        prompt = max(min(int(prompt * load.prompt_factor), load.longest_prompt), 1)
        output = int(few[number]) if brief[number] else max(trace.output_tokens[row], 1)
        requests.append(
            Arrival(
                f"r{number}",
                float(times[number]),
                prompt,
                load.output_tokens or output,
                _cached(prompt, bool(hit[number]), values["cached_prompt_share"], load),
                bool(stops[number]),
            )
        )
    return [request for request in requests if request.arrived_s < until_s]


def _cached(prompt: int, hit: bool, share: float, load: Load) -> int:
    """Tokens that the prefix cache holds, or that another engine has sent."""
    if load.cached_share == 1.0:
        return prompt - 1
    if load.cached_share is not None:
        hit, share = True, load.cached_share
    cached = int(prompt * share) // CACHE_BLOCK * CACHE_BLOCK
    return min(cached, prompt - 1) // CACHE_BLOCK * CACHE_BLOCK if hit else 0


def _together(times: Floats, load: Load) -> Floats:
    """Arrivals in bursts, or faster and slower by turns; their number stays."""
    if load.burst > 1:
        first = np.arange(len(times)) // load.burst * load.burst
        return np.asarray(times[first])
    if load.swing_s is None:
        return times
    # Of every two swings the first has a tenth of the arrivals: time runs ten times as slowly.
    turns, rest = np.divmod(times, 2 * load.swing_s)
    quiet = 2 * load.swing_s / 11
    slow = rest < quiet
    inside = np.where(slow, rest / quiet, 1 + (rest - quiet) / (2 * load.swing_s - quiet))
    return np.asarray((2 * turns + inside) * load.swing_s)
