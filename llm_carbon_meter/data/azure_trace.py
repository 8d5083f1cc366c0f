"""Lengths and arrivals of real requests: quantile tables of the Azure 2023 traces.

Of conversations: the prior of output lengths before a deployment has served anything, and the
demo's traffic. Of code completions too: what is measured for training.
``examples/make_azure_quantiles.py`` makes the tables; the trace itself is not shipped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class TraceQuantiles:
    """Quantiles at equal steps of probability, from the minimum to the maximum."""

    source: str
    rows: int
    prompt_tokens: Sequence[float]
    output_tokens: Sequence[float]
    interarrival_s: Sequence[float]
    output_by_prompt_fifth: Sequence[Sequence[float]]
    """Output tokens of the shortest fifth of the prompts, the next fifth, …"""


def quantile(quantiles: Sequence[float], probability: Any) -> Any:
    """Between quantiles at equal steps of probability; of a number, or of many at once."""
    return np.interp(probability, np.linspace(0, 1, len(quantiles)), quantiles)


def conversation_quantiles() -> TraceQuantiles:
    """Read the tables of conversations that the package carries."""
    return _tables("azure_conversation.json")


def code_quantiles() -> TraceQuantiles:
    """Read the tables of code completions that the package carries."""
    return _tables("azure_code.json")


@cache
def _tables(name: str) -> TraceQuantiles:
    file = resources.files("llm_carbon_meter") / "data" / name
    tables = json.loads(file.read_text(encoding="utf-8"))
    return TraceQuantiles(
        source=tables["source"],
        rows=tables["rows"],
        prompt_tokens=tuple(tables["prompt_tokens"]),
        output_tokens=tuple(tables["output_tokens"]),
        interarrival_s=tuple(tables["interarrival_s"]),
        output_by_prompt_fifth=tuple(tuple(row) for row in tables["output_by_prompt_fifth"]),
    )
