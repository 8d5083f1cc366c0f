"""Conservation under any order of steps, ticks, ends and resets."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.records import REQUEST_ACCOUNTS, Account, Status
from tests.support.cost_models import QWEN
from tests.support.ledger_worlds import (
    World,
    of_gpu,
    owed,
    played,
    settlings,
    spans_of,
    ticks_of,
    worlds,
)
from tests.support.ledgers import GPUS, close_to, end_of, ledger_of, read, step_of


@settings(max_examples=150, deadline=None)
@given(world=worlds(), settle_at=settlings, tick_s=st.sampled_from([0.0, 0.1, 0.3]))
def test_every_joule_of_a_counter_is_in_one_account(
    world: World, settle_at: list[bool], tick_s: float
) -> None:
    """Each GPU's accounts add up to the increments of its own counter, resets left out."""
    play = played(world, settle_at, tick_s=tick_s)
    for totals in play.ledger.totals():
        values = [reading.joules for reading in of_gpu(world, totals.gpu)]
        grown = sum(max(b - a, 0.0) for a, b in pairwise(values))
        assert totals.counter_joules == close_to(grown)
        assert sum(totals.account_joules) == close_to(grown)
        assert totals.account_joules[Account.UNATTRIBUTED] == 0


@settings(max_examples=150, deadline=None)
@given(world=worlds(), settle_at=settlings)
def test_requests_and_the_other_accounts_make_the_total(
    world: World, settle_at: list[bool]
) -> None:
    """Final figures, overhead, idle and unattributed together are all that was counted."""
    play = played(world, settle_at)
    accounts = np.sum([gpu.account_joules for gpu in play.ledger.totals()], axis=0)
    requests = sum(record.joules for record in play.final)
    others = accounts[[Account.OVERHEAD, Account.IDLE, Account.UNATTRIBUTED]].sum()
    assert requests + others == close_to(sum(g.counter_joules for g in play.ledger.totals()))
    assert sum(record.accounts.waste for record in play.final) == close_to(accounts[Account.WASTE])
    assert sorted(r.request_id for r in play.final) == sorted(e.request_id for e in world.ends)
    assert all(record.status is Status.FINAL for record in play.final)
    assert play.ledger.num_open == play.ledger.num_closed == 0


@settings(max_examples=150, deadline=None)
@given(world=worlds(), settle_at=settlings)
def test_figures_equal_the_sums_done_one_by_one(world: World, settle_at: list[bool]) -> None:
    """Each request has what its steps' parts of each tick come to, account by account."""
    play = played(world, settle_at)
    expected = owed(world)
    for record in play.final:
        figures = (
            record.prefill_joules,
            record.decode_joules,
            record.accounts.recompute,
            record.accounts.waste,
        )
        for account, joules in enumerate(figures):
            assert joules == close_to(expected.get((record.request_id, account), 0.0))


@settings(max_examples=100, deadline=None)
@given(world=worlds(), settle_at=settlings)
def test_no_joules_from_outside_a_lifetime(world: World, settle_at: list[bool]) -> None:
    """A request can have no more than the ticks hold that overlap one of its steps."""
    play = played(world, settle_at)
    for record in play.final:
        spans = [s for s in spans_of(world.steps) if record.request_id in s[2].request_ids]
        touching = sum(
            joules
            for gpu in GPUS
            for start, end, joules in ticks_of(world, gpu)
            if any(start < s_end and s_start < end for s_start, s_end, _ in spans)
        )
        assert record.joules <= touching * (1 + 1e-12)
        assert record.joules >= 0


@settings(max_examples=100, deadline=None)
@given(world=worlds())
def test_accounts_only_grow(world: World) -> None:
    """After every event, no account of any GPU is lower than before."""
    history = np.array(played(world, [True]).accounts)
    assert (np.diff(history, axis=0) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(world=worlds(resets=False), settle_at=settlings)
def test_every_second_of_a_gpu_is_in_one_account(world: World, settle_at: list[bool]) -> None:
    """Those of the requests are their records'; what was embodied is shared by them."""
    play = played(world, settle_at, embodied_grams_per_gpu_s=3.0)
    totals = play.ledger.totals()
    for gpu, held in zip(totals, play.ledger._gpus.values(), strict=True):
        first_s = min(reading.monotonic_s for reading in world.readings if reading.gpu == gpu.gpu)
        assert sum(gpu.account_seconds) == close_to(held.settled_until_s - first_s)
    of_requests = sum(sum(gpu.account_seconds[: len(REQUEST_ACCOUNTS)]) for gpu in totals)
    assert sum(record.gpu_seconds for record in play.final) <= of_requests * (1 + 1e-9)
    for record in (*play.final, *play.provisional):
        assert record.embodied_grams == close_to(3.0 * record.gpu_seconds)


@settings(max_examples=100, deadline=None)
@given(world=worlds(), settle_at=settlings)
def test_grams_follow_the_joules(world: World, settle_at: list[bool]) -> None:
    """At a constant intensity, grams are joules times grams per joule, everywhere."""
    play = played(world, settle_at, grams_per_joule=2.0)
    for record in play.provisional + play.final:
        assert record.operational_grams == close_to(2 * record.joules)
    accounts = np.sum([gpu.account_joules for gpu in play.ledger.totals()], axis=0)
    assert play.ledger.account_grams.tolist() == close_to((2 * accounts).tolist())


@pytest.mark.parametrize("policy", ["shapley", "tokens", "flops", "equal"])
def test_every_policy_gives_the_same_total(policy: str) -> None:
    """A policy moves joules between requests, never in or out."""
    ledger = ledger_of(model=QWEN, policy=policy)
    read(ledger, "gpu-0", (0, 0), (1, 100))
    ledger.observe_steps([step_of(0, 1, "a", "b", new=[300, 1], accounts=[0, 1])])
    ledger.close(end_of("a", 1))
    ledger.close(end_of("b", 1))
    a, b = ledger.settle(1)
    assert a.joules + b.joules == pytest.approx(100)
    assert (a.joules == pytest.approx(50)) is (policy == "equal")
