"""What was served here: prompts in the prefix cache, drafts that were accepted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.predictor import served
from llm_carbon_meter.predictor.served import (
    Drafts,
    PrefixMemory,
    Prompt,
    PromptCache,
    ServedDrafts,
    drafts_of,
)
from llm_carbon_meter.records import Quality, RequestEnergy, Status
from tests.support.made.energies import energy_of

BLOCK = 16


def prompt(*tokens: int, **changes: Any) -> Prompt:
    """Of these tokens."""
    return replace(Prompt(len(tokens), tokens), **changes)


def ended(prompt_tokens: int, cached: int = 0, **changes: Any) -> RequestEnergy:
    """A request as it was served."""
    sizes = {"prompt_tokens": prompt_tokens, "cached_tokens": cached}
    return energy_of("request", Status.FINAL, **sizes, **changes)


@given(
    shared=st.integers(0, 100),
    own=st.integers(1, 100),
    other=st.integers(1, 100),
)
def test_whole_blocks_that_two_prompts_share_match(shared: int, own: int, other: int) -> None:
    """As vLLM counts them: never the last token."""
    memory = PrefixMemory(BLOCK)
    first, second = (prompt(*range(shared), *[-1 - n] * rest) for n, rest in ((0, own), (1, other)))
    assert memory.match(first, remember=True) == 0
    expected = min(shared, second.num_tokens - 1) // BLOCK * BLOCK
    assert memory.match(second, remember=False) == expected
    assert memory.match(first, remember=False) == (first.num_tokens - 1) // BLOCK * BLOCK


def test_long_prompts_match_in_coarser_steps() -> None:
    """Within a hundredth or so; a look that does not remember leaves nothing."""
    memory, shared = PrefixMemory(BLOCK), 50_000
    first, second = (prompt(*range(shared), *[-n] * 100) for n in (1, 2))
    assert memory.match(first, remember=False) == memory.match(first, remember=True) == 0
    assert 0.99 * shared < memory.match(second, remember=False) <= shared


def test_prompts_of_other_adapters_or_images_share_nothing() -> None:
    """The engine keeps them apart too."""
    memory, tokens = PrefixMemory(BLOCK), tuple(range(50))
    memory.match(prompt(*tokens, cache_key="one"), remember=True)
    assert memory.match(prompt(*tokens, cache_key="other"), remember=True) == 0
    assert memory.match(prompt(*tokens, cache_key="one"), remember=True) == 48


def test_the_oldest_prefixes_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used again stays; never more are remembered than shall be."""
    monkeypatch.setattr(served, "MOST_PREFIXES", 8)
    memory = PrefixMemory(BLOCK)
    often, *others = (prompt(*[n] * 33) for n in range(20))
    for sent in others:
        memory.match(often, remember=True)
        memory.match(sent, remember=True)
        assert len(memory._new) + len(memory._old) <= 8 + 2
    assert [memory.match(sent, remember=False) for sent in (often, others[0], others[-1])] == [
        *(32, 0, 32),
    ]


@pytest.mark.parametrize("odd", [2**70, "text", None])
def test_ids_of_no_tokeniser_match_nothing(odd: Any) -> None:
    """Clients may send anything."""
    assert PrefixMemory(BLOCK).match(prompt(*[odd] * 40), remember=True) == 0


def test_tokens_may_be_an_array() -> None:
    """As engines hold them."""
    memory, tokens = PrefixMemory(BLOCK), np.arange(101)
    assert memory.match(prompt(*range(101)), remember=True) == 0
    assert memory.match(Prompt(101, tokens), remember=False) == 96  # type: ignore[arg-type]


def test_what_the_engine_finds_is_what_is_expected() -> None:
    """A cache that gives half of what was sent before is known after some requests."""
    cache, again = PromptCache(BLOCK), prompt(*range(101))
    cache.match(again, remember=True)
    assert cache.expected(again, cache.match(again, remember=True)) == 96
    for _ in range(100):
        cache.see(ended(101, cached=48), matched=96)
    assert cache.expected(again, 96) == pytest.approx(48, rel=0.01)
    assert cache.expected(prompt(*range(7, 100)), 0) == 0
    assert cache.expected(Prompt(1000), 0) == pytest.approx(1000 * 48 / 101, rel=0.02)


def test_answers_in_the_cache_count_too() -> None:
    """The next turn of a chat finds more than its last prompt, but never its own last token."""
    cache, turn = PromptCache(BLOCK), prompt(*range(100))
    for _ in range(100):
        cache.see(ended(300, cached=150), matched=100)
    assert cache.expected(turn, 48) == pytest.approx(72, rel=0.01)
    assert cache.expected(turn, 96) == 99


def test_all_answers_but_the_first_find_their_prompt() -> None:
    """Four of a prompt of 101 tokens: three find 96."""
    cache = PromptCache(BLOCK)
    assert cache.expected(prompt(*range(101)), 0, num_sequences=4) == 3 * 96 / 4
    assert PromptCache(0).expected(prompt(*range(101)), 0, num_sequences=4) == 0


def test_without_a_cache_nothing_matches() -> None:
    """Nor where the tokens are not known."""
    without, tokens = PromptCache(0), prompt(*range(100))
    assert [without.match(tokens, remember=True) for _ in range(2)] == [0, 0]
    cache = PromptCache(BLOCK)
    assert [cache.match(Prompt(100), remember=True) for _ in range(2)] == [0, 0]


def test_drafts_are_those_that_were_accepted() -> None:
    """Ten steps of four positions that made 31 tokens: three a step."""
    energy = ended(10, output_tokens=31, decode_steps=10, decode_tokens=40)
    assert drafts_of(energy) == Drafts(verified=4.0, accepted=3.0)
    drafts = ServedDrafts()
    assert drafts.expected == Drafts(1.0, 1.0)
    for _ in range(50):
        drafts.see(energy)
    assert drafts.expected.verified == pytest.approx(4.0, rel=0.01)
    assert drafts.expected.accepted == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize(
    "energy",
    [
        ended(10, output_tokens=1),
        ended(10, output_tokens=9, decode_steps=8, decode_tokens=8),
        # a proxy sees tokens, no steps
        ended(10, output_tokens=9, decode_steps=2, decode_tokens=8, quality=Quality.OUTSIDE),
        # preempted: its second first token is no step of decode
        ended(10, output_tokens=9, decode_steps=9, decode_tokens=9),
    ],
)
def test_without_drafts_a_step_makes_a_token(energy: RequestEnergy) -> None:
    """Whatever else happened."""
    assert drafts_of(energy) == Drafts(1.0, 1.0)
