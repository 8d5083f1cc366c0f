"""What a server is asked: loads that a simulated world serves, one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Load:
    """One of them, by default the trace as it is."""

    name: str
    concurrency: int
    """Requests at once, at most."""
    share: float | None = None
    """Offered / what the concurrency can serve; None as the world has it."""
    burst: int = 1
    """Requests that come together."""
    swing_s: float | None = None
    """The rate of arrivals rises and falls between a tenth and ten tenths, each for so long."""
    prompt_factor: float = 1.0
    longest_prompt: int = 32768
    output_tokens: int | None = None
    """Of every request; None as in the trace."""
    cached_share: float | None = None
    """Of every prompt; None as the world has it."""
    drafts: int = 0
    """Tokens that a draft model proposes for each decode step."""
    accepted_share: float = 0.7
    """Of the drafts, each after the one before it."""


def plain(concurrency: int) -> Load:
    """The trace, with so many requests at once."""
    return Load(str(concurrency), concurrency)


PLAIN: Final = tuple(map(plain, (1, 8, 32, 128)))
SPECIAL: Final = (
    Load("prompts alone", 1, share=0.5, output_tokens=1),
    Load("bursts", 32, share=0.4, burst=16),
    Load("long contexts", 8, prompt_factor=12.0),
    Load("changing", 64, swing_s=20.0),
    Load("cached prefixes", 32, cached_share=0.8),
    Load("speculative", 16, drafts=3),
    Load("prefill half", 16, output_tokens=1),
    Load("decode half", 64, cached_share=1.0),
)
"""Loads of `kernel_truth` worlds beside the plain ones."""
ALL: Final[Sequence[Load]] = PLAIN + SPECIAL
