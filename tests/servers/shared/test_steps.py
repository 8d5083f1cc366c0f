"""Steps are made of captured events without vLLM: pairs, phases, ends."""

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Account, EventBatch, Outcome, RequestEnd
from llm_carbon_meter.servers.shared.events import Done, Event, NewRow, Scheduled
from llm_carbon_meter.servers.shared.steps import StepDecoder, phase

PREFILL, DECODE, RECOMPUTE, WASTE = list(Account)[:4]


def decoded(*events: Event) -> EventBatch:
    """What a decoder makes of events."""
    decoder = StepDecoder(Faults())
    for event in events:
        decoder.feed(event)
    return decoder.drain(1000)


def first(key: int, at_s: float, computed: int, tokens: int) -> Scheduled:
    """A request "a" of 48 prompt tokens, as workers first hear of it."""
    return Scheduled(key, at_s, {"a": tokens}, [NewRow("a", 48, computed, 0, False)], [], [], [])


def again(key: int, at_s: float, computed: int, tokens: int, output: int) -> Scheduled:
    """The same request in a later step."""
    return Scheduled(key, at_s, {"a": tokens}, [], ["a"], [computed], [output])


@pytest.mark.parametrize(
    ("output", "computed", "new", "account", "sampled"),
    [
        (0, 0, 16, PREFILL, 0),
        (0, 32, 16, PREFILL, 1),
        (5, 52, 1, DECODE, 1),
        (5, 0, 16, RECOMPUTE, 0),
        (5, 32, 21, RECOMPUTE, 1),
    ],
)
def test_phase_of_a_part_of_a_step(
    output: int, computed: int, new: int, account: Account, sampled: int
) -> None:
    """A prompt is prefill until it is whole; tokens that were there before are recompute."""
    assert phase(48, output, computed, new) == (account, sampled)


def test_a_prefill_that_starts_again_repeats_only_what_it_had() -> None:
    """Preempted at 32 of 48 prompt tokens: up to there it is recompute, then prefill."""
    batch = decoded(
        first(1, 0.0, 0, 32),
        Done(1, 1.0),
        again(2, 1.0, 0, 32, 0),
        Done(2, 2.0),
        again(3, 2.0, 32, 16, 0),
        Done(3, 3.0),
    )
    assert [step.accounts for step in batch.steps] == [[PREFILL], [RECOMPUTE], [PREFILL]]


def test_a_load_is_of_the_requests_that_were_in_a_step_and_have_not_ended() -> None:
    """By the API server that sent them; a request in its last step has ended already."""
    sent = [
        NewRow(name, 48, 0, 0, False, client) for name, client in zip("abc", (0, 1, 1), strict=True)
    ]
    counts = dict.fromkeys("abc", 48)
    ends = [RequestEnd(name, Outcome.FINISHED, 48, 0, 1, 1.5) for name in "bacx"]
    begun = (Scheduled(1, 0.0, counts, sent, [], [], []), Done(1, 1.0))
    running = (*begun, Scheduled(2, 1.0, dict.fromkeys("abc", 1), [], [*"abc"], [48] * 3, [1] * 3))
    assert decoded().load == {}
    assert decoded(*running).load == {0: 1, 1: 2}
    assert decoded(*running, ends[0]).load == {0: 1, 1: 1}
    assert decoded(*running, *ends).load == {}


def test_an_end_waits_for_the_step_in_flight() -> None:
    """A request that ended while a step was running is closed after it, and that was waste."""
    end = RequestEnd("a", Outcome.STOPPED, 48, 0, 1, 1.5)
    running = (first(1, 0.0, 0, 48), Done(1, 1.0), again(2, 1.0, 48, 1, 1), end)
    assert decoded(*running).ends == []
    batch = decoded(*running, Done(2, 2.0))
    assert [ended.request_id for ended in batch.ends] == ["a"]
    assert [step.accounts for step in batch.steps] == [[PREFILL], [WASTE]]


@pytest.mark.parametrize(("computed", "usage", "cached"), [(32, 0, 32), (0, 40, 40)])
def test_cached_tokens_are_known_from_the_first_step_or_told_at_the_end(
    computed: int, usage: int, cached: int
) -> None:
    """Of an engine from its scheduler, of a server seen from outside from its usage."""
    end = RequestEnd("a", Outcome.FINISHED, 48, usage, 1, 1.0)
    batch = decoded(first(1, 0.0, computed, 48 - computed), Done(1, 1.0), end)
    assert [end.cached_tokens for end in batch.ends] == [cached]
