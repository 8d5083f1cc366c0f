"""Accounts, tokens, samples and times of a driven scheduler's steps."""

from typing import TYPE_CHECKING
from unittest.mock import Mock

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome, StepEvent, StepKind
from tests.support.servers.driven_rows import (
    DECODE,
    PREFILL,
    WASTE,
    Start,
    assert_as_vllm_planned,
    assert_clean,
    both_runners,
    decodes,
    drives_vllm,
)

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    pass


pytestmark = drives_vllm


class TestSteps:
    def test_a_request_is_one_prefill_and_a_decode_per_further_token(
        self, start: Start, faults: Faults
    ) -> None:
        """Sync scheduler: accounts, tokens, samples and the end are exact."""
        drive = start()
        drive.add("a", 10, 4)
        drive.run()
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *decodes(10, 3)]
        end = drive.ends["a"]
        assert end.outcome is Outcome.FINISHED
        assert (end.prompt_tokens, end.cached_tokens, end.output_tokens) == (10, 0, 4)
        assert_clean(drive, faults)

    def test_steps_have_the_times_of_their_schedule_and_update(self, start: Start) -> None:
        """A step lasts from the return of schedule to the entry of update, one after the other."""
        drive = start()
        drive.add("a", 10, 4)
        drive.run()
        times = [time for step in drive.steps for time in (step.dispatched_s, step.done_s)]
        assert times == sorted(times)
        assert [step.step_id for step in drive.steps] == [1, 2, 3, 4]
        assert drive.ends["a"].monotonic_s >= times[-1]

    def test_chunks_of_a_prefill_share_steps_with_decodes(
        self, start: Start, faults: Faults
    ) -> None:
        """Only the last chunk samples, and a mixed step has both accounts."""
        drive = start(max_num_batched_tokens=16)
        drive.add("a", 10, 6)
        drive.add("b", 40, 2)
        drive.run()
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *decodes(10, 5)]
        assert drive.rows("b") == [
            (PREFILL, 6, 0, 0),
            (PREFILL, 15, 6, 0),
            (PREFILL, 15, 21, 0),
            (PREFILL, 4, 36, 1),
            *decodes(40, 1),
        ]
        assert list(drive.steps[1].accounts) == [DECODE, PREFILL]
        assert_clean(drive, faults)

    def test_a_cached_prefix_is_not_prefilled_again(self, start: Start, faults: Faults) -> None:
        """The first chunk starts behind the hit, and the end says how long it was."""
        drive = start()
        prompt = range(100, 140)
        drive.add("a", prompt, 3)
        drive.run()
        drive.add("b", prompt, 3)
        drive.run()
        assert drive.rows("b") == [(PREFILL, 8, 32, 1), *decodes(40, 2)]
        assert [drive.ends[name].cached_tokens for name in "ab"] == [0, 32]
        assert_clean(drive, faults)

    def test_a_step_that_only_tells_of_ends_is_no_work(self, start: Start, faults: Faults) -> None:
        """Such steps carry no request, and the steps around them still find their updates."""
        drive = start()
        for name in "ab":
            drive.add(name, 10, 2)
            drive.run()
        planned = [flight.output.total_num_scheduled_tokens for flight in drive.flown]
        assert planned == [10, 1, 0, 10, 1, 0]
        assert len(drive.steps) == 4
        assert drive.rows("b") == [(PREFILL, 10, 0, 1), *decodes(10, 1)]
        assert_clean(drive, faults)

    def test_pooling_is_prefill_that_samples_nothing(self, start: Start, faults: Faults) -> None:
        """An embedding in chunks, and an end without output tokens."""
        drive = start(runner="pooling", max_num_batched_tokens=16)
        drive.add_pooling("a", 40)
        drive.run()
        assert drive.rows("a") == [(PREFILL, 16, 0, 0), (PREFILL, 16, 16, 0), (PREFILL, 8, 32, 0)]
        assert drive.ends["a"].outcome is Outcome.FINISHED
        assert drive.ends["a"].output_tokens == 0
        assert_clean(drive, faults)

    def test_a_dummy_batch_is_overhead(self, start: Start) -> None:
        """What EngineCore runs for no request becomes a step without requests."""
        from vllm.v1.engine.core import EngineCore

        drive = start()
        core = EngineCore.__new__(EngineCore)
        core.scheduler, core.model_executor = drive.scheduler, Mock()
        core.execute_dummy_batch()
        drive.drain()
        (step,) = drive.timeline
        assert isinstance(step, StepEvent)
        assert step.kind is StepKind.OVERHEAD
        assert step.dispatched_s <= step.done_s


class TestTwoStepsInFlight:
    def test_the_step_after_a_stop_token_is_waste(self, start: Start, faults: Faults) -> None:
        """Async scheduling: its row is in a step that vLLM drops, and the end comes after that."""
        drive = start(overlapped=True)
        drive.add("a", 10, 9, stop_at=3)
        drive.add("b", 5, 6)
        drive.run(depth=2)
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *decodes(10, 2), (WASTE, 1, 12, 1)]
        assert drive.rows("b") == [(PREFILL, 5, 0, 1), *decodes(5, 5)]
        assert drive.ends["a"].output_tokens == 3
        assert drive.timeline.index(drive.ends["a"]) == 1 + drive.timeline.index(drive.steps[3])
        assert_clean(drive, faults)

    def test_a_request_that_ends_by_length_wastes_nothing(
        self, start: Start, faults: Faults
    ) -> None:
        """Its end is foreseen: no further step has it, alone and among others."""
        drive = start(overlapped=True)
        drive.add("a", 10, 3)
        drive.add("b", 5, 6)
        drive.run(depth=2)
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *decodes(10, 2)]
        assert drive.ends["a"].output_tokens == 3
        assert_clean(drive, faults)

    def test_decodes_count_tokens_that_are_still_in_flight(self, start: Start) -> None:
        """The second step is scheduled before the first token exists, and still is decode."""
        drive = start(overlapped=True)
        drive.add("a", 10, 4)
        drive.schedule()
        drive.schedule()
        assert drive.requests["a"].num_output_tokens == 0
        drive.run(depth=2)
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *decodes(10, 3)]

    def test_chunks_are_in_flight_together(self, start: Start, faults: Faults) -> None:
        """Two chunks of one prefill at a time, none counted twice."""
        drive = start(overlapped=True, max_num_batched_tokens=16)
        drive.add("a", 40, 2)
        drive.run(depth=2)
        chunks = [(PREFILL, 16, 0, 0), (PREFILL, 16, 16, 0), (PREFILL, 8, 32, 1)]
        assert drive.rows("a") == [*chunks, *decodes(40, 1)]
        assert_clean(drive, faults)

    def test_a_deep_queue_is_first_in_first_out(self, start: Start, faults: Faults) -> None:
        """Pipeline parallel: three steps in flight, each paired with its own update."""
        drive = start(pp=3, max_num_batched_tokens=16, max_num_seqs=2)
        for name in "abcd":
            drive.add(name, 24, 3)
        drive.run(depth=3)
        for name in "abcd":
            assert drive.tokens(name, PREFILL) == 24
            assert drive.tokens(name, DECODE) == 2
            assert drive.ends[name].output_tokens == 3
        assert_as_vllm_planned(drive)
        overlaps = [
            later.dispatched_s < earlier.done_s
            for earlier, later in zip(drive.steps, drive.steps[2:], strict=False)
        ]
        assert any(overlaps)
        assert_clean(drive, faults)


class TestSessions:
    @both_runners
    def test_a_longer_prompt_is_learnt(self, start: Start, faults: Faults, v2: bool) -> None:
        """Streaming input: the same request comes again with more prompt, in chunks."""
        drive = start(v2=v2, max_num_batched_tokens=16)
        drive.add("a", 10, 3, resumable=True)
        drive.run()
        assert drive.ends == {}
        drive.add("a", 40, 2, resumable=True)
        drive.run()
        more = [row for row in drive.rows("a")[3:] if row.account is PREFILL]
        assert sum(row.scheduled for row in more) == 40
        assert [row.sampled for row in more] == [0, 0, 1]
