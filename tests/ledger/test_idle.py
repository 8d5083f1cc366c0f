"""Idle joules: in their own account, and spread over the requests that are there."""

from hypothesis import given, settings

from llm_carbon_meter.records import Account
from tests.support.ledger_worlds import World, played, settlings, worlds
from tests.support.ledgers import book, close_to, end_of, ledger_of, read, step_of


@settings(max_examples=100, deadline=None)
@given(world=worlds(resets=False), settle_at=settlings)
def test_idle_by_time_spreads_but_keeps_the_accounts(world: World, settle_at: list[bool]) -> None:
    """Spread over requests, idle stays in its own account and nobody's other joules change."""
    apart = played(world, settle_at)
    spread = played(world, settle_at, idle_by_time=True)
    for first, second in zip(apart.ledger.totals(), spread.ledger.totals(), strict=True):
        assert first == second
    idle = sum(gpu.account_joules[Account.IDLE] for gpu in spread.ledger.totals())
    assert sum(record.accounts.idle for record in spread.final) <= idle * (1 + 1e-12)
    assert sum(record.accounts.idle for record in apart.final) == 0
    before = {record.request_id: record.joules for record in apart.final}
    for record in spread.final:
        assert record.joules - record.accounts.idle == close_to(before[record.request_id])


def test_idle_by_time_divides_by_presence() -> None:
    """Two requests in the system share the idle joules by the seconds that each was there."""
    ledger = ledger_of(idle_by_time=True)
    read(ledger, "gpu-0", (0, 0), (4, 400))
    ledger.observe_steps([step_of(0, 0, "a"), step_of(1, 1, "b")])
    ledger.close(end_of("a", 3))
    ledger.close(end_of("b", 2))
    figures = {record.request_id: record.accounts.idle for record in ledger.settle(4)}
    assert figures == close_to({"a": 300, "b": 100})
    assert book(ledger.totals()[0]) == {"idle": 400}


def test_idle_with_nobody_there_stays_idle() -> None:
    """An empty system spreads nothing."""
    ledger = ledger_of(idle_by_time=True)
    ledger.observe_steps([step_of(0, 1, "a")])
    ledger.close(end_of("a", 1))
    read(ledger, "gpu-0", (0, 0), (1, 100), (2, 170))
    (record,) = ledger.settle(2)
    assert (record.joules, record.accounts.idle) == (100, 0)
    assert book(ledger.totals()[0]) == {"decode": 100, "idle": 70}
