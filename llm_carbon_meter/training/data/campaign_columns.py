"""Columns and words of a campaign's file, for those who write it and those who learn from it."""

from typing import Final

OCCASION: Final = (
    *("model", "changes", "dtype", "quantisation", "tensor_parallel", "weights"),
    *("batch", "prompt_tokens", "output_tokens", "phase"),
    *("gpu", "engine", "engine_version", "source"),
)
"""Columns that say what is repeated."""
PREFILL: Final = "prefill"
"""A phase: an answer of one token comes from the prefill."""
WHOLE: Final = "prefill+decode"
