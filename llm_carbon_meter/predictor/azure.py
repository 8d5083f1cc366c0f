"""Lengths and arrivals of real conversations: quantile tables of the Azure 2023 trace.

The prior of output lengths before a deployment has served anything, and the demo's traffic.
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
class ConversationQuantiles:
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


@cache
def conversation_quantiles() -> ConversationQuantiles:
    """Read the tables that the package carries."""
    file = resources.files("llm_carbon_meter") / "data" / "azure_conversation.json"
    tables = json.loads(file.read_text(encoding="utf-8"))
    return ConversationQuantiles(
        source=tables["source"],
        rows=tables["rows"],
        prompt_tokens=tuple(tables["prompt_tokens"]),
        output_tokens=tuple(tables["output_tokens"]),
        interarrival_s=tuple(tables["interarrival_s"]),
        output_by_prompt_fifth=tuple(tuple(row) for row in tables["output_by_prompt_fifth"]),
    )
