"""Requests whose lengths and arrivals follow the Azure 2023 conversation trace.

The demo's model has a context of 1024 tokens, the trace goes to 14,050: lengths are scaled down
linearly so that the trace's 99 % quantile becomes the longest allowed; what is longer is cut.
"""

from dataclasses import dataclass

import numpy as np

from llm_carbon_meter.data.azure_trace import conversation_quantiles, quantile


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request to send."""

    arrival_s: float
    """After the first request, at the trace's own pace (about 5.5 requests a second)."""
    prompt_tokens: int
    output_tokens: int


def draw(count: int, seed: int, max_prompt: int, max_output: int) -> list[TraceRequest]:
    """Draw requests by the inverse of the trace's distribution functions.

    The output length is drawn given the prompt's fifth, so that the two stay correlated.
    """
    tables = conversation_quantiles()
    random = np.random.default_rng(seed)
    gaps = [quantile(tables.interarrival_s, u) for u in random.random(count)]
    arrivals = np.cumsum([0.0, *gaps[1:]])[:count]
    prompt_scale = max_prompt / quantile(tables.prompt_tokens, 0.99)
    output_scale = max_output / quantile(tables.output_tokens, 0.99)
    requests = []
    for arrival, u, v in zip(arrivals, random.random(count), random.random(count), strict=True):
        fifths = tables.output_by_prompt_fifth
        prompt = quantile(tables.prompt_tokens, u) * prompt_scale
        output = quantile(fifths[int(u * len(fifths))], v) * output_scale
        requests.append(
            TraceRequest(float(arrival), _whole(prompt, max_prompt), _whole(output, max_output))
        )
    return requests


def _whole(tokens: float, maximum: int) -> int:
    return min(max(round(tokens), 1), maximum)
