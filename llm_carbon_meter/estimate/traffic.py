"""What a deployment is planned for: so many requests a month, of which lengths, and how uneven."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np

from llm_carbon_meter.data.azure_trace import (
    TraceQuantiles,
    code_quantiles,
    conversation_quantiles,
    quantile,
)
from llm_carbon_meter.predictor.energy_model import Floats
from llm_carbon_meter.records import MeterError

SECONDS_PER_MONTH: Final = 365 / 12 * 86_400.0
PEAK: Final = 2.0
"""Requests a second in the busiest hours over the month's mean, unless told otherwise."""
MOST_REQUESTS: Final = 1e15
"""A month; nobody has as many."""
POINTS: Final = 201
"""At which a trace's quantiles are averaged."""
TRACES: Final[Mapping[str, Callable[[], TraceQuantiles]]] = {
    "conversation": conversation_quantiles,
    "code": code_quantiles,
}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Kinds of requests, each an equal share of all."""

    prompt_tokens: Floats
    """Of each kind, shape (kinds,)."""
    output_tokens: Floats
    """Likewise."""
    longest: tuple[float, float]
    """Prompt and output tokens that a server must take."""
    name: str
    """In words."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of a month.

    Raises:
        MeterError: a number that cannot be used.
    """

    requests: float
    """A month, of `SECONDS_PER_MONTH`."""
    lengths: Lengths
    peak: float = PEAK
    """The rate that a deployment must serve, over the mean rate."""

    def __post_init__(self) -> None:
        if not 1 <= self.requests <= MOST_REQUESTS:  # also refuses nan
            raise MeterError(
                f"requests is {self.requests:g}; expected 1 to {MOST_REQUESTS:g} a month"
            )
        if not (isfinite(self.peak) and self.peak >= 1):
            raise MeterError(f"peak is {self.peak:g}; a peak is at least the mean: 1 or more")

    @property
    def rate(self) -> float:
        """Mean requests a second."""
        return self.requests / SECONDS_PER_MONTH


def positive(name: str, value: float, advice: str) -> float:
    """A number above 0.

    Raises:
        MeterError: another one.
    """
    if not (isfinite(value) and value > 0):
        raise MeterError(f"{name} is {value:g}; expected a number above 0: {advice}")
    return value


def equal_lengths(prompt_tokens: float, output_tokens: float) -> Lengths:
    """All requests alike.

    Raises:
        MeterError: a number below 1.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        if not (isfinite(value) and value >= 1):
            raise MeterError(f"{name} is {value:g}; it must be at least 1, and finite")
    return Lengths(
        np.array([prompt_tokens], np.float64),
        np.array([output_tokens], np.float64),
        (prompt_tokens, output_tokens),
        f"{prompt_tokens:g} prompt and {output_tokens:g} output tokens",
    )


def trace_lengths(name: str) -> Lengths:
    """The mean request of each fifth of a trace of `TRACES`, by the length of its prompt."""
    trace = TRACES[name]()
    parts = trace.output_by_prompt_fifth
    at = (np.arange(POINTS * len(parts)) + 0.5) / (POINTS * len(parts))
    prompts = quantile(trace.prompt_tokens, at).reshape(len(parts), POINTS).mean(1)
    outputs = np.array([_mean(part) for part in parts])
    longest = max(trace.prompt_tokens), max(trace.output_tokens)
    mean = f"{prompts.mean():.0f} prompt and {outputs.mean():.0f} output tokens on average"
    return Lengths(prompts, outputs, longest, f"Azure's {name} trace, {mean}")


def _mean(quantiles: Sequence[float]) -> float:
    return float(quantile(quantiles, (np.arange(POINTS) + 0.5) / POINTS).mean())
