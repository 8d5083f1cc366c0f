"""What requests were served like here: prompts in the prefix cache, and drafts that were accepted.

Engines tell neither before a request runs. The API server knows which prompts it sent before, and
every finished request says what the cache really held and what its decode steps computed.
"""

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from llm_carbon_meter.physics.phases import PLAIN
from llm_carbon_meter.records import Quality, RequestEnergy

FORGET: Final = 0.98
"""What a request leaves of the weight of those before it."""
MOST_PREFIXES: Final = 65_536
"""Remembered; those that were not used for long go, as they do in an engine's cache."""
FINE: Final = 128
"""Prefixes of so many blocks are remembered one by one; of each doubling beyond, as many again."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a request that comes; nothing keeps its tokens."""

    num_tokens: int
    tokens: Sequence[int] | None = None
    """Ids, where they are known."""
    cache_key: Hashable = None
    """Prompts share their cache where they share this: adapter, images, salt."""
    remark: str = ""
    """What of the request the estimate leaves out."""
    adapter: str = ""
    """Of LoRA; empty for the model itself."""


class Share:
    """A ratio of two sums, in which the last requests weigh most.

    Args:
        expected: before any request.
        weight: of that, in units of the divisor.
    """

    def __init__(self, expected: float, weight: float) -> None:
        self._part, self._whole = expected * weight, weight

    @property
    def value(self) -> float:
        """As served of late."""
        return self._part / self._whole

    def see(self, part: float, whole: float) -> None:
        """A request has ended."""
        if whole > 0:
            self._part = FORGET * self._part + part
            self._whole = FORGET * self._whole + whole


class PrefixMemory:
    """Which beginnings of prompts were sent to the engines: hashes, never tokens.

    Args:
        block_tokens: the engine's cache holds multiples of these.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block = block_tokens
        self._new: dict[int, None] = {}
        """The last ones."""
        self._old: dict[int, None] = {}
        """Those before; what is used again is new again, and the others are forgotten together."""

    def match(self, prompt: Prompt, *, remember: bool) -> int:
        """Tokens at the beginning of a prompt that were sent before.

        Args:
            prompt: whose tokens are known.
            remember: whether it is sent now.
        """
        prefixes, matched = self._prefixes(prompt), 0
        for prefix, end in prefixes.items():
            if prefix not in self._new and prefix not in self._old:
                break
            matched = end
        if remember:
            self._new.update(dict.fromkeys(prefixes))
            if len(self._new) > MOST_PREFIXES // 2:
                self._old, self._new = self._new, {}
        return matched

    def _prefixes(self, prompt: Prompt) -> dict[int, int]:
        """Hashes and ends of beginnings; the last token is never taken from a cache."""
        try:
            data = array("q", () if prompt.tokens is None else prompt.tokens).tobytes()
        except (OverflowError, TypeError):  # ids that no tokeniser gives
            return {}
        found, prefix, start, step = {}, hash(prompt.cache_key), 0, self._block
        last, fine = prompt.num_tokens - 1, FINE * self._block
        while start + step <= last:
            end = start + step
            prefix = hash((prefix, data[8 * start : 8 * end]))
            found[prefix] = end
            if end >= fine:
                step, fine = 2 * step, 2 * fine
            start = end
        return found


class PromptCache:
    """Expects how much of a prompt an engine finds in its prefix cache.

    Args:
        block_tokens: the engine's cache holds multiples of these; 0 where it has none.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block = block_tokens
        self._memory = PrefixMemory(block_tokens)
        weight = float(max(block_tokens, 1))
        self._of_matched = Share(1.0, weight)
        self._of_new = Share(0.0, weight)
        self._of_all = Share(0.0, weight)

    def match(self, prompt: Prompt, *, remember: bool) -> int:
        """See `PrefixMemory.match`; without tokens or cache nothing matches."""
        if not self._block or prompt.tokens is None:
            return 0
        return self._memory.match(prompt, remember=remember)

    def expected(self, prompt: Prompt, matched: int, num_sequences: int = 1) -> float:
        """Tokens that the engine will find, as far as it found them of late.

        Args:
            prompt: of all answers.
            matched: tokens of it that were sent before.
            num_sequences: answers; the cache holds the prompt for all but the first. Their mean
                comes out.
        """
        if matched:
            first = self._of_matched.value * matched
        else:
            share = self._of_all if prompt.tokens is None else self._of_new
            first = share.value * prompt.num_tokens
        most = prompt.num_tokens - 1
        blocks = most // self._block * self._block if self._block else 0
        others = self._of_matched.value * blocks
        return (min(first, most) + (num_sequences - 1) * min(others, most)) / num_sequences

    def see(self, energy: RequestEnergy, matched: int) -> None:
        """A request of which so much was known has ended."""
        cached, prompt = float(energy.cached_tokens), energy.prompt_tokens
        if matched:
            self._of_matched.see(cached, matched)
        else:
            self._of_new.see(cached, prompt)
        self._of_all.see(cached, prompt)


@dataclass(frozen=True, slots=True)
class Drafts:
    """What a decode step does for a request; see `phases.Serving`."""

    verified: float = PLAIN.verified
    accepted: float = PLAIN.accepted


def drafts_of(energy: RequestEnergy) -> Drafts:
    """As one request was served; without decode steps, or where none were seen, as without drafts.

    A proxy sees the tokens that come, not the steps of the engine.
    """
    steps = energy.decode_steps
    if not steps or energy.quality is Quality.OUTSIDE:
        return Drafts()
    accepted = max((energy.output_tokens - 1) / steps, 1.0)
    return Drafts(max(energy.decode_tokens / steps, accepted), accepted)


class ServedDrafts:
    """The drafts of late."""

    def __init__(self) -> None:
        self._verified, self._accepted = Share(1.0, 1.0), Share(1.0, 1.0)

    @property
    def expected(self) -> Drafts:
        """Of the next request."""
        return Drafts(self._verified.value, self._accepted.value)

    def see(self, energy: RequestEnergy) -> None:
        """A request has ended."""
        steps, drafts = energy.decode_steps, drafts_of(energy)
        self._verified.see(drafts.verified * steps, steps)
        self._accepted.see(drafts.accepted * steps, steps)
