"""Draft tokens: decode work, accepted or not."""

from typing import TYPE_CHECKING

import pytest

from llm_carbon_meter.faults import Faults
from tests.support.servers.driven_rows import (
    DECODE,
    FEW_BLOCKS,
    NGRAM,
    PREFILL,
    RECOMPUTE,
    WASTE,
    Start,
    assert_clean,
    both_runners,
    drives_vllm,
    sync_and_overlapped,
)

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    from tests.support.servers.driving import Drive


pytestmark = drives_vllm


class TestSpeculation:
    def test_drafts_are_decode_work_accepted_or_not(self, start: Start, faults: Faults) -> None:
        """n is one more than the drafts, all positions sample, nothing becomes recompute."""
        drive = start(speculative_config=NGRAM)
        drive.drafts, drive.accepted = 3, 1
        drive.add("a", 10, 9)
        drive.run()
        verified = [(DECODE, 4, computed, 4) for computed in (10, 12, 14, 16)]
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *verified]
        assert drive.ends["a"].output_tokens == 9
        assert_clean(drive, faults)

    @pytest.mark.parametrize("accepted", [0, 1, 3])
    @both_runners
    def test_placeholders_of_drafts_are_decode_work(
        self, start: Start, faults: Faults, accepted: int, v2: bool
    ) -> None:
        """Async scheduling: rejections come late, and still nothing becomes recompute."""
        drive = start(overlapped=True, v2=v2, speculative_config=NGRAM)
        drive.accepted = accepted
        drive.add("a", 10, 9)
        drive.add("b", 33, 12)
        drive.run(depth=2)
        for name, prompt, output in (("a", 10, 9), ("b", 33, 12)):
            first, *rest = drive.rows(name)
            assert first == (PREFILL, prompt, 0, 1)
            assert {row.account for row in rest} <= {DECODE, WASTE}
            assert all(row.scheduled == row.sampled == 4 for row in rest)
            verified = sum(row.account is DECODE for row in rest)
            assert verified == -(-(output - 1) // (1 + accepted))
            assert drive.ends[name].output_tokens == output
        assert_clean(drive, faults)

    @sync_and_overlapped
    @both_runners
    def test_preemption_among_drafts(
        self, start: Start, faults: Faults, overlapped: bool, v2: bool
    ) -> None:
        """Only positions that had been kept are computed again."""
        drive = start(overlapped=overlapped, v2=v2, **FEW_BLOCKS, speculative_config=NGRAM)
        drive.drafts, drive.accepted = 0 if overlapped else 3, 1
        drive.add("a", 20, 20)
        drive.add("b", 20, 20)
        drive.run(depth=1 + overlapped)
        assert drive.requests["b"].num_preemptions >= 1
        assert drive.tokens("b", PREFILL) == 20
        assert drive.tokens("b", RECOMPUTE) > 20
        assert drive.ends["b"].output_tokens == 20
        assert_clean(drive, faults)

    def padded(self, start: Start, overlapped: bool) -> "Drive":
        """A request whose whole prompt but one token is cached, with padded drafts."""
        drive = start(overlapped=overlapped, speculative_config=NGRAM)
        prompt = range(100, 133)
        drive.add("a", prompt, 2)
        drive.run(depth=1 + overlapped)
        drive.add("b", prompt, 3)
        drive.run(depth=1 + overlapped)
        return drive

    @sync_and_overlapped
    def test_a_padded_first_step_is_prefill(
        self, start: Start, faults: Faults, overlapped: bool
    ) -> None:
        """vLLM pads it to the size of a decode; the padding is rejected, not recomputed."""
        drive = self.padded(start, overlapped)
        first, *rest = drive.rows("b")
        assert (first.account, first.scheduled, first.computed) == (PREFILL, 4, 32)
        assert {row.account for row in rest} <= {DECODE, WASTE}
        assert drive.ends["b"].cached_tokens == 32
        assert_clean(drive, faults)

    @sync_and_overlapped
    def test_a_padded_first_step_samples_its_drafts(self, start: Start, overlapped: bool) -> None:
        """Positions whose logits are computed include drafts, padded ones too."""
        assert self.padded(start, overlapped).rows("b")[0].sampled == 4
