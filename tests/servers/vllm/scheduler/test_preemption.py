"""Work that a preempted request repeats."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome
from tests.support.servers.driven_rows import (
    FEW_BLOCKS,
    PREFILL,
    RECOMPUTE,
    Start,
    assert_clean,
    both_runners,
    decodes,
    drives_vllm,
    sync_and_overlapped,
)

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    from tests.support.servers.driving import Row


pytestmark = drives_vllm


def preempted_positions(rows: Sequence["Row"]) -> int:
    """How far a request had come when it was preempted first."""
    first = next(index for index, row in enumerate(rows) if row.account is RECOMPUTE)
    return rows[first - 1].computed + rows[first - 1].scheduled


@sync_and_overlapped
@both_runners
class TestPreemption:
    """Two requests outgrow the cache: the second gives way, and starts again."""

    def test_repeated_work_is_recompute(
        self, start: Start, faults: Faults, overlapped: bool, v2: bool
    ) -> None:
        """In the shape of either model runner; the new token of its last chunk included."""
        drive = start(overlapped=overlapped, v2=v2, **FEW_BLOCKS)
        drive.add("a", 20, 20)
        drive.add("b", 20, 20)
        drive.run(depth=1 + overlapped)
        assert drive.requests["b"].num_preemptions == 1
        assert drive.rows("a") == [(PREFILL, 20, 0, 1), *decodes(20, 19)]
        rows = drive.rows("b")
        reached = preempted_positions(rows)
        assert rows == [
            (PREFILL, 20, 0, 1),
            *decodes(20, reached - 20),
            (RECOMPUTE, reached + 1, 0, 1),
            *decodes(reached + 1, 38 - reached),
        ]
        assert drive.ends["b"].output_tokens == 20
        assert_clean(drive, faults)

    def test_repeated_work_in_chunks_is_recompute(
        self, start: Start, faults: Faults, overlapped: bool, v2: bool
    ) -> None:
        """Every chunk of it; only the last one samples, and prefill is counted once."""
        drive = start(overlapped=overlapped, v2=v2, **FEW_BLOCKS, max_num_batched_tokens=16)
        drive.add("a", 20, 20)
        drive.add("b", 20, 20)
        drive.run(depth=1 + overlapped)
        assert drive.requests["b"].num_preemptions == 1
        again = [row for row in drive.rows("b") if row.account is RECOMPUTE]
        assert [row.computed for row in again[:2]] == [0, 16]
        assert [row.sampled for row in again] == [0] * (len(again) - 1) + [1]
        assert sum(row.scheduled for row in again) == preempted_positions(drive.rows("b")) + 1
        assert drive.tokens("b", PREFILL) == 20
        sampled = sum(row.sampled for row in drive.rows("b"))
        assert sampled == drive.ends["b"].output_tokens == 20
        assert_clean(drive, faults)

    def test_what_is_still_cached_is_not_repeated(
        self, start: Start, faults: Faults, overlapped: bool, v2: bool
    ) -> None:
        """The resumed request starts behind its cached blocks; its own prompt was no hit."""
        drive = start(overlapped=overlapped, v2=v2, blocks=5)
        drive.add("a", 20, 14)
        drive.add("b", 20, 20)
        drive.run(depth=1 + overlapped)
        assert drive.requests["b"].num_preemptions == 1
        (again,) = [row for row in drive.rows("b") if row.account is RECOMPUTE]
        assert again.computed == 16
        assert again.computed + again.scheduled == preempted_positions(drive.rows("b")) + 1
        assert drive.ends["b"].cached_tokens == 0
        assert_clean(drive, faults)

    def test_a_single_repeated_token_is_recompute(
        self, start: Start, faults: Faults, overlapped: bool, v2: bool
    ) -> None:
        """All but the last computed token still cached: the smallest step that repeats work."""
        drive = start(overlapped=overlapped, v2=v2, blocks=6)
        drive.add("a", 19, 20)
        drive.add("b", 20, 20)
        drive.run(depth=1 + overlapped)
        assert preempted_positions(drive.rows("b")) == 33
        assert drive.rows("b")[14:] == [(RECOMPUTE, 2, 32, 1), *decodes(34, 5)]
        assert_clean(drive, faults)

    def test_an_abort_while_preempted_leaves_nothing(
        self, start: Start, faults: Faults, overlapped: bool, v2: bool
    ) -> None:
        """It waits in vLLM's queue again, known to the capture, when it is aborted."""
        drive = start(overlapped=overlapped, v2=v2, **FEW_BLOCKS)
        drive.add("a", 20, 20)
        request = drive.add("b", 20, 20)
        while not request.num_preemptions:
            drive.turn(depth=1 + overlapped)
        drive.abort("b")
        drive.run(depth=1 + overlapped)
        assert drive.ends["b"].outcome is Outcome.ABORTED
        assert drive.tokens("b", RECOMPUTE) == 0
        assert_clean(drive, faults)

    def test_a_prefill_that_starts_again_is_recompute(
        self, start: Start, faults: Faults, overlapped: bool, v2: bool
    ) -> None:
        """Preempted before its last chunk: what was computed once is repeated work."""
        drive = start(
            overlapped=overlapped,
            v2=v2,
            blocks=6,
            enable_prefix_caching=False,
            max_num_batched_tokens=16,
        )
        drive.add("a", 30, 12)
        drive.turn()
        drive.add("b", 48, 4)
        drive.run(depth=1 + overlapped)
        assert drive.requests["b"].num_preemptions == 1
        assert drive.tokens("b", RECOMPUTE) > 0
        assert drive.tokens("b", PREFILL) <= 48
        assert_clean(drive, faults)
