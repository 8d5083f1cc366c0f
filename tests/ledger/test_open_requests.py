"""A request's place in the ledger: opened, filled, closed, and used again by another request."""

import tracemalloc

import pytest

from llm_carbon_meter.records import Outcome, Quality, Source
from tests.support.steps.ledgers import close_to, end_of, ledger_of, read, step_of


def test_an_id_that_comes_again_opens_a_new_account() -> None:
    """Even before the first one is final, its successor starts at nothing."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0))
    ledger.observe_steps([step_of(0, 1, "a")])
    ledger.close(end_of("a", 1))
    ledger.observe_steps([step_of(1, 2, "a"), step_of(2, 3, "a")])
    ledger.close(end_of("a", 3))
    read(ledger, "gpu-0", (1, 100), (3, 110))
    first, second = ledger.settle(3)
    assert (first.joules, first.num_steps, first.last_step_s) == (100, 1, 1)
    assert (second.joules, second.num_steps, second.first_step_s) == (10, 2, 1)


def test_a_reused_place_starts_clean() -> None:
    """Joules, steps and damage of a finished request do not pass to the next."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 100), (1, 5))
    ledger.observe_steps([step_of(0, 1, "damaged")])
    ledger.close(end_of("damaged", 1))
    (damaged,) = ledger.settle(1)
    assert damaged.quality is Quality.RESET
    ledger.observe_steps([step_of(1, 2, "clean")])
    ledger.close(end_of("clean", 2))
    read(ledger, "gpu-0", (2, 6))
    (clean,) = ledger.settle(2)
    assert (clean.quality, clean.joules, clean.num_steps) == (Quality.COUNTER, 1, 1)


def test_ten_thousand_requests_keep_the_book_small() -> None:
    """Places and steps are reused: five thousand requests after the first ten leave nothing."""
    ledger = ledger_of(idle_by_time=True)
    read(ledger, "gpu-0", (0, 0))

    def serve(numbers: range) -> float:
        joules = 0.0
        for first in numbers[::10]:
            ten = {f"r{at_s}": at_s for at_s in range(first, first + 10)}
            ledger.observe_steps([step_of(at_s, at_s + 0.5, name) for name, at_s in ten.items()])
            for name, at_s in ten.items():
                ledger.close(end_of(name, at_s + 0.5))
            read(ledger, "gpu-0", (first + 10, (first + 10) * 10))
            records = ledger.settle(first + 10)
            assert [record.request_id for record in records] == list(ten)
            joules += sum(record.joules for record in records)
        return joules

    tracemalloc.start()
    try:
        serve(range(10_000))  # Python keeps up to 2000 dead tuples of a size
        before = tracemalloc.get_traced_memory()[0]
        joules = serve(range(10_000, 15_000))
        assert tracemalloc.get_traced_memory()[0] - before < 40_000
    finally:
        tracemalloc.stop()
    assert joules == pytest.approx(50_000)
    assert ledger.num_open == ledger.num_closed == 0


def test_many_open_requests_fit() -> None:
    """The book grows with the requests that are open, and each keeps its own figure."""
    ledger = ledger_of()
    names = [f"r{number}" for number in range(1000)]
    read(ledger, "gpu-0", (0, 0))
    for number, name in enumerate(names):
        ledger.observe_steps([step_of(number, number + 1, name)])
        read(ledger, "gpu-0", (number + 1, (number + 1) * (number + 2) / 2))
        ledger.settle(number + 1)
    assert ledger.num_open == 1000
    assert ledger.open_requests() == names
    records = [ledger.close(end_of(name, 1000)) for name in names]
    assert [record.joules for record in records] == close_to([n + 1.0 for n in range(1000)])
    assert len(ledger.settle(1000)) == 1000


def test_a_record_says_how_its_request_ran() -> None:
    """Steps, company, times, lengths and engine are in the record."""
    ledger = ledger_of(engine=3)
    read(ledger, "gpu-0", (0, 0), (6, 60))
    ledger.observe_steps([step_of(1, 2, "a"), step_of(2, 3, "a", "b", "c"), step_of(4, 5, "b")])
    record = ledger.close(end_of("a", 4, Outcome.ABORTED))
    assert (record.engine, record.source, record.outcome) == (3, Source.MEASURED, Outcome.ABORTED)
    assert (record.prompt_tokens, record.cached_tokens, record.output_tokens) == (7, 2, 5)
    assert (record.num_steps, record.mean_running) == (2, 2.0)
    assert (record.first_step_s, record.last_step_s) == (1, 3)
