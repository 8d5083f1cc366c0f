"""What a test expects of a driven scheduler's rows.

Unlike `tests.support.servers.driving`, this module imports no vLLM: tests are collected without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Account, RequestEnd

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    from tests.support.servers.driving import Drive


PREFILL, DECODE, RECOMPUTE, WASTE = list(Account)[:4]
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
FEW_BLOCKS = {"blocks": 5, "enable_prefix_caching": False}
sync_and_overlapped = pytest.mark.parametrize("overlapped", [False, True], ids=["sync", "async"])
drives_vllm = [
    pytest.mark.engine,
    # torch says so of itself while vLLM imports it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
"""Marks of a module whose tests drive vLLM's own classes."""
both_runners = pytest.mark.parametrize("v2", [False, True], ids=["V1", "V2"])
Start = Callable[..., "Drive"]


def decodes(computed: int, count: int) -> list[tuple[Account, int, int, int]]:
    """Rows of decode steps without drafts, from a number of computed tokens on."""
    return [(DECODE, 1, computed + place, 1) for place in range(count)]


def assert_clean(drive: "Drive", faults: Faults) -> None:
    """Nothing is remembered, nothing went wrong, and ends come after the last step."""
    assert drive.leftovers == {}
    assert faults.counts == {}
    ended: set[str] = set()
    for event in drive.timeline:
        if isinstance(event, RequestEnd):
            ended.add(event.request_id)
        else:
            assert ended.isdisjoint(event.request_ids)


def assert_as_vllm_planned(drive: "Drive") -> None:
    """Every scheduled token is in one row, in the account that the request's positions tell."""
    from tests.support.servers.driving import rows_of

    planned = [flight for flight in drive.flown if flight.output.total_num_scheduled_tokens]
    for step, flight in zip(drive.steps, planned, strict=True):
        rows = rows_of(step)
        assert {n: row.scheduled for n, row in rows.items()} == flight.output.num_scheduled_tokens
        for name, row in rows.items():
            samples = 1 + flight.drafts(name) if name in flight.sampling else 0
            if name in flight.dropped:
                assert row.account is WASTE
            elif flight.accounts[name] is RECOMPUTE and row.account is PREFILL:
                # Has a test of its own: test_a_prefill_that_starts_again_is_recompute.
                assert row.computed < drive.requests[name].num_prompt_tokens
            else:
                assert row.account is flight.accounts[name]
            # So has this: test_a_padded_first_step_samples_its_drafts.
            assert row.sampled == samples or (flight.is_padded(name) and row.sampled == 1)
