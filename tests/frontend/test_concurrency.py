"""How many requests share the batch of one that comes: own, of other API servers, waiting ones."""

import pytest

from llm_carbon_meter.frontend import concurrency as concurrency_module
from llm_carbon_meter.frontend.concurrency import SILENT_S, Concurrency
from llm_carbon_meter.records import EngineLoad


def counting(held: int = 0, most: int | None = None, index: int = 0) -> Concurrency:
    """The count of an API server whose engines hold some of its requests."""
    return Concurrency(index, lambda: held, most)


def test_a_request_that_comes_alone_is_one() -> None:
    """It counts itself, and a server's own count needs no engine's word."""
    assert counting().with_more(1) == 1
    assert counting(held=3).with_more(1) == 4


def test_all_that_come_together_count() -> None:
    """The answers of n > 1 and the prompts of a list share the batch."""
    assert counting(held=2).with_more(3) == 5


def test_requests_of_other_api_servers_count_and_its_own_count_once() -> None:
    """The engine knows them all; of its own requests the API server knows better."""
    second = counting(held=2, index=1)
    second.receive(EngineLoad(0, {0: 5, 1: 4, 2: 1}))
    assert second.with_more(1) == 9
    second.receive(EngineLoad(0, {1: 4}))
    assert second.with_more(1) == 3


@pytest.mark.parametrize(
    ("held", "coming", "expected"),
    [(0, 1, 1), (1, 1, 1), (2, 1, 2), (3, 1, 2), (0, 2, 1), (1, 4, 3)],
)
def test_engines_share_requests_evenly(held: int, coming: int, expected: int) -> None:
    """With two engines a request goes to the one that has fewer."""
    two = counting(held)
    for engine in (0, 1):
        two.receive(EngineLoad(engine, {}))
    assert two.with_more(coming) == expected


def test_who_waits_shares_no_batch() -> None:
    """An engine batches no more than it is made for."""
    full = counting(held=40, most=16)
    assert full.with_more(1) == 16
    assert counting(held=3, most=16).with_more(1) == 4


def test_a_silent_engine_holds_nothing_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a meter said that has ended since does not count for ever."""
    now_s = 100.0
    monkeypatch.setattr(concurrency_module.time, "monotonic", lambda: now_s)
    count = counting()
    count.receive(EngineLoad(0, {1: 7}))
    assert count.with_more(1) == 8
    now_s += SILENT_S
    assert count.with_more(1) == 1
