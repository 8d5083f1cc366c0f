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


def arrivals(world: World, per_s: float, until_s: float, seed: int) -> list[Arrival]:
    """Consecutive requests of the trace, from a random one on, at another mean rate."""
    random = np.random.default_rng([7, world.seed, seed])
    trace, values = trace_of(world.trace), world.values
    count = int(per_s * until_s * 1.5) + 20
    rows = (random.integers(len(trace.gaps_s)) + np.arange(count)) % len(trace.gaps_s)
    gaps = trace.gaps_s[rows]
    times = np.cumsum(gaps * (1 / per_s) / max(gaps.mean(), 1e-9))
    brief = random.random(count) < values["brief_requests"]
    few = random.integers(1, 4, count)
    hit = random.random(count) < values["prefix_hits"]
    stops = random.random(count) < values["stopped_requests"]
    requests = []
    for number, row in enumerate(rows.tolist()):
        prompt = max(trace.prompt_tokens[row], 1)
        cached = int(prompt * values["cached_prompt_share"]) // CACHE_BLOCK * CACHE_BLOCK
        requests.append(
            Arrival(
                f"r{number}",
                float(times[number]),
                prompt,
                int(few[number]) if brief[number] else max(trace.output_tokens[row], 1),
                min(cached, prompt - 1) // CACHE_BLOCK * CACHE_BLOCK if hit[number] else 0,
                bool(stops[number]),
            )
        )
    return [request for request in requests if request.arrived_s < until_s]
