"""vLLM's own Scheduler and AsyncScheduler, driven by hand, for what a CPU server cannot show.

The hooks are installed on vLLM's real classes, as the plugin does, and taken off after each test.
"""

import dataclasses
import logging
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import (
    Account,
    EngineTotals,
    Outcome,
    PowerError,
    Quality,
    RequestEnd,
    RequestEnergy,
    Status,
    StepEvent,
    StepKind,
)
from llm_carbon_meter.servers.shared import events, meter_process
from llm_carbon_meter.servers.shared.channel import Subscriber, engine_name
from llm_carbon_meter.servers.shared.steps import StepDecoder
from llm_carbon_meter.servers.vllm import capture as vllm_capture
from llm_carbon_meter.servers.vllm import engine_hooks as vllm_engine

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    from tests.support.driving import BareHooks, Drive, Row

pytestmark = [
    pytest.mark.engine,
    # torch says so of itself while vLLM imports it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

PREFILL, DECODE, RECOMPUTE, WASTE = list(Account)[:4]
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
FEW_BLOCKS = {"blocks": 5, "enable_prefix_caching": False}

sync_and_overlapped = pytest.mark.parametrize("overlapped", [False, True], ids=["sync", "async"])
both_runners = pytest.mark.parametrize("v2", [False, True], ids=["V1", "V2"])

Start = Callable[..., "Drive"]


@pytest.fixture
def hooks() -> Iterator["BareHooks"]:
    """Our hooks on vLLM's classes, without threads."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import Executor

    from tests.support.driving import bare_hooks, restored

    with restored(Scheduler, AsyncScheduler, EngineCore, Executor):
        bare = bare_hooks()
        bare.install(Scheduler, EngineCore, Executor)
        yield bare


@pytest.fixture
def start(tiny_model: Path, hooks: "BareHooks") -> Start:
    """Makes a scheduler that the hooks meter."""
    from tests.support.driving import Drive, engine_config, make_scheduler

    def make(
        *, overlapped: bool = False, v2: bool = False, blocks: int = 100, pp: int = 1, **more: Any
    ) -> Drive:
        config = engine_config(tiny_model, **more)
        config.parallel_config.pipeline_parallel_size = pp
        scheduler = make_scheduler(config, overlapped=overlapped, v2=v2, blocks=blocks)
        return Drive(scheduler, hooks.engine(scheduler).capture, StepDecoder(hooks._faults))

    return make


@pytest.fixture
def faults(hooks: "BareHooks") -> Faults:
    """What the hooks counted."""
    return hooks._faults


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
    from tests.support.driving import rows_of

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


class TestAborts:
    @sync_and_overlapped
    def test_what_an_aborted_request_has_in_flight_is_waste(
        self, start: Start, faults: Faults, overlapped: bool
    ) -> None:
        """Between result and update: its rows are waste, others' are not, and its end comes."""
        drive = start(overlapped=overlapped)
        drive.add("a", 10, 9)
        drive.add("b", 10, 9)
        drive.schedule()
        drive.update()
        in_flight = 1 + overlapped
        for _ in range(in_flight):
            drive.schedule()
        drive.abort("a")
        assert "a" not in drive.ends
        drive.run(depth=in_flight)
        wasted = [(WASTE, 1, 10 + place, 1) for place in range(in_flight)]
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *wasted]
        assert drive.rows("b") == [(PREFILL, 10, 0, 1), *decodes(10, 8)]
        assert drive.ends["a"].outcome is Outcome.ABORTED
        assert drive.ends["a"].output_tokens == 1
        assert_clean(drive, faults)

    def test_an_abort_in_mid_prefill(self, start: Start, faults: Faults) -> None:
        """The chunk in flight is waste, the earlier ones were prefill."""
        drive = start(max_num_batched_tokens=16)
        drive.add("a", 40, 2)
        drive.turn()
        drive.schedule()
        drive.abort("a")
        drive.run()
        assert drive.rows("a") == [(PREFILL, 16, 0, 0), (WASTE, 16, 16, 0)]
        assert_clean(drive, faults)

    def test_a_request_that_never_ran_has_an_end(self, start: Start, faults: Faults) -> None:
        """Aborted while waiting: no step, outcome aborted, prompt length known."""
        drive = start(max_num_seqs=1)
        drive.add("a", 10, 3)
        drive.add("b", 12, 3)
        drive.schedule()
        drive.abort("b")
        drive.run()
        assert drive.rows("b") == []
        end = drive.ends["b"]
        assert (end.outcome, end.prompt_tokens, end.cached_tokens) == (Outcome.ABORTED, 12, 0)
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *decodes(10, 2)]
        assert_clean(drive, faults)

    @pytest.mark.parametrize("in_flight", [0, 1])
    def test_an_abort_said_twice_is_one_end(
        self, start: Start, faults: Faults, in_flight: int
    ) -> None:
        """A client that goes away is reported once or twice (`Drive.ends` refuses doubles)."""
        drive = start()
        drive.add("a", 10, 9)
        drive.turn()
        for _ in range(in_flight):
            drive.schedule()
        drive.abort("a")
        drive.abort("a")
        drive.run()
        drive.abort("a")
        assert list(drive.ends) == ["a"]
        assert_clean(drive, faults)

    def test_a_request_that_vllm_fails_is_failed(self, start: Start, faults: Faults) -> None:
        """`finish_requests` with the error status."""
        from vllm.v1.request import RequestStatus

        drive = start()
        drive.add("a", 10, 9)
        drive.turn()
        drive.scheduler.finish_requests("a", RequestStatus.FINISHED_ERROR)
        drive.run()
        assert drive.ends["a"].outcome is Outcome.FAILED
        assert_clean(drive, faults)


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


class TestFaults:
    @sync_and_overlapped
    def test_a_lost_update_is_counted_and_skipped(
        self, start: Start, faults: Faults, overlapped: bool
    ) -> None:
        """An exception between schedule and update: the steps behind it pair as before."""
        drive = start(overlapped=overlapped)
        drive.add("a", 10, 9)
        drive.turn()
        drive.schedule()
        lost = drive.flights.popleft()
        request = drive.requests["a"]
        for count in lost.output.num_scheduled_tokens.values():  # what a retry would do
            request.num_computed_tokens -= count
            request.num_in_flight_tokens -= count
            request.num_output_placeholders -= overlapped
        drive.run(depth=1 + overlapped)
        assert faults.counts == {"step_pairing": 1}
        assert drive.rows("a") == [(PREFILL, 10, 0, 1), *decodes(10, 8)]
        assert not drive.decoder._in_flight

    def test_a_lost_step_is_not_taken_for_the_next(
        self, start: Start, faults: Faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Python gives a new SchedulerOutput the address of one that is gone: pairs stay right."""
        monkeypatch.setattr(vllm_capture, "id", lambda _: 1, raising=False)
        drive = start()
        drive.add("a", 10, 1)
        drive.scheduler.schedule(False)  # returned to nobody
        drive.add("b", 12, 3)
        for _ in range(4):
            drive.turn()
        assert drive.rows("b") == [(PREFILL, 12, 0, 1), *decodes(12, 2)]
        assert list(drive.ends) == ["b"]
        assert faults.counts == {"step_pairing": 1}

    def test_a_meter_that_comes_late_goes_on_with_what_is_left(
        self, start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The oldest events are lost, first steps included; the rest pairs and nothing stays."""
        monkeypatch.setattr(events, "MAX_WAITING", 8)
        drive = start()
        drive.lazy = True
        drive.add("a", 10, 20)
        for _ in range(12):
            drive.turn()
        drive.drain()
        drive.lazy = False
        drive.run()
        assert drive.rows("a") == decodes(17, 12)
        assert drive.ends["a"].output_tokens == 20
        assert drive.leftovers == {}

    def test_lost_events_are_counted(
        self, start: Start, faults: Faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What did not fit while nobody came is a fault for all to see."""
        monkeypatch.setattr(events, "MAX_WAITING", 8)
        drive = start()
        drive.lazy = True
        drive.add("a", 10, 20)
        for _ in range(12):
            drive.turn()
        drive.drain()
        assert faults.counts

    def test_an_id_that_comes_again_at_once(self, start: Start, faults: Faults) -> None:
        """Ids need not be random (a vLLM setting): the old request still is in flight."""
        drive = start(overlapped=True)
        drive.add("a", 10, 9, stop_at=2)
        while "a" in drive.scheduler.requests:
            drive.turn(depth=2)
        assert drive.flights
        drive.add("a", 12, 9)
        drive.run(depth=2)
        ends = [event for event in drive.timeline if isinstance(event, RequestEnd)]
        assert [(end.request_id, end.prompt_tokens) for end in ends] == [("a", 10), ("a", 12)]
        assert drive.tokens("a", PREFILL) == 10 + 12
        assert drive.leftovers == {}
        assert faults.counts == {}

    @pytest.mark.parametrize("broken", ["scheduled", "done", "ended"])
    def test_our_errors_never_reach_vllm(
        self,
        start: Start,
        hooks: "BareHooks",
        faults: Faults,
        broken: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Requests are answered, one fault is counted and logged, and metering goes silent."""
        drive = start()
        capture = Mock(wraps=drive.capture)
        getattr(capture, broken).side_effect = AttributeError("renamed in this vLLM")
        hooks.attach(drive.scheduler, capture)
        request = drive.add("a", 10, 4)
        with caplog.at_level(logging.WARNING):
            drive.run()
        assert list(request.output_token_ids) == [101, 102, 103, 104]
        assert faults.counts == {"engine": 1}
        assert hooks.engine(drive.scheduler) is None
        assert getattr(capture, broken).call_count == 1
        assert [record.name for record in caplog.records].count("llm_carbon_meter") == 1
        assert "renamed in this vLLM" in caplog.text

    @pytest.mark.parametrize(
        "call",
        [
            lambda scheduler: scheduler.schedule(),
            lambda scheduler: scheduler.schedule(False),
            lambda scheduler: scheduler.schedule(throttle_prefills=False),
        ],
        ids=["none", "positional", "keyword"],
    )
    def test_arguments_pass_through(
        self, start: Start, faults: Faults, call: Callable[[Any], Any]
    ) -> None:
        """vLLM calls schedule with one positional argument; other ways are as good."""
        drive = start()
        drive.add("a", 10, 1)
        output = call(drive.scheduler)
        assert output.num_scheduled_tokens == {"a": 10}
        assert faults.counts == {}

    def test_update_by_keyword_is_answered(self, start: Start) -> None:
        """Whatever metering makes of it, vLLM gets its result."""
        drive = start()
        drive.add("a", 10, 1)
        flight = drive.schedule()
        outputs = drive.scheduler.update_from_output(
            scheduler_output=flight.output, model_runner_output=drive.run_model(flight)
        )
        assert outputs[0].outputs[0].new_token_ids == [101]

    def test_vllms_own_errors_pass_through(self, start: Start) -> None:
        """An exception of schedule stays vLLM's, and no step is entered for it."""
        drive = start()
        drive.add("a", 10, 1)
        drive.scheduler.kv_cache_manager = SimpleNamespace(
            new_step_starts=Mock(side_effect=RuntimeError("vLLM's own"))
        )
        with pytest.raises(RuntimeError, match="vLLM's own"):
            drive.scheduler.schedule(False)
        assert drive.leftovers == {}

    def test_the_hooks_leave_vllms_classes_as_they_were(self) -> None:
        """After the tests before this one: no wrapper is left on a class."""
        from vllm.v1.core.sched.scheduler import Scheduler

        from tests.support.driving import bare_hooks, restored

        before = dict(vars(Scheduler))
        with restored(Scheduler):
            bare_hooks().install(Scheduler, Mock(), type("Executor", (), {}))
            assert vars(Scheduler)["schedule"] is not before["schedule"]
        assert dict(vars(Scheduler)) == before


@dataclass(frozen=True)
class Engine:
    """A configuration in which vLLM may run."""

    overlapped: bool
    v2: bool
    pp: int
    blocks: int
    max_num_batched_tokens: int
    enable_prefix_caching: bool
    accepted: int | None
    """Of three drafts; None without speculation."""

    @property
    def depth(self) -> int:
        """Steps in flight (`VllmConfig.max_concurrent_batches`)."""
        return self.pp + self.overlapped

    def start(self, start: Start) -> "Drive":
        arguments = dataclasses.asdict(self)
        accepted = arguments.pop("accepted")
        if accepted is None:
            drive = start(**arguments)
        else:
            drive = start(**arguments, speculative_config=NGRAM)
            drive.accepted = accepted
            drive.drafts = 0 if self.overlapped else 3
        drive.lazy = True
        return drive

    @property
    def exists(self) -> bool:
        """Two combinations are not offered by vLLM."""
        plain = self.v2 or not self.overlapped
        return self.pp == 1 or (plain and self.accepted is None)


engines = st.builds(
    Engine,
    overlapped=st.booleans(),
    v2=st.booleans(),
    pp=st.sampled_from([1, 1, 2]),
    blocks=st.sampled_from([6, 8, 100]),
    max_num_batched_tokens=st.sampled_from([16, 48, 200]),
    enable_prefix_caching=st.booleans(),
    accepted=st.sampled_from([None, None, 0, 1, 3]),
).filter(lambda engine: engine.exists)

additions = st.fixed_dictionaries(
    {
        "prompt": st.integers(1, 40) | st.integers(17, 40).map(range),  # of its own, or shared
        "output": st.integers(1, 24),
        "stop_at": st.integers(0, 24),
    }
)
things = st.lists(
    additions
    | st.sampled_from(["turn", "turn", "turn", "schedule", "update"])
    | st.tuples(st.just("abort"), st.integers(0, 5))
    | st.tuples(st.just("drain"), st.integers(1, 20)),
    max_size=40,
)


def happen(drive: "Drive", thing: Any, depth: int) -> None:
    """One thing that can happen to an engine, if it can happen now."""
    match thing:
        case {"prompt": prompt, "output": output, "stop_at": stop_at}:
            drive.add(f"r{len(drive.requests)}", prompt, output, stop_at)
        case "turn":
            drive.turn(depth)
        case "schedule":
            if len(drive.flights) < depth and drive.scheduler.has_requests():
                drive.schedule()
        case "update":
            if drive.flights:
                drive.update()
        case "abort", number:
            drive.abort(f"r{number}")
        case "drain", rows:
            drive.drain_some(rows)


def assert_whole(drive: "Drive", name: str) -> None:
    """A request's rows and its end fit together and what vLLM knows of the request."""
    request, end, rows = drive.requests[name], drive.ends[name], drive.rows(name)
    aborted = str(request.get_finished_reason()) == "abort"
    assert end.outcome is (Outcome.ABORTED if aborted else Outcome.FINISHED)
    assert end.prompt_tokens == request.num_prompt_tokens
    assert end.output_tokens == request.num_output_tokens
    assert end.cached_tokens == (rows[0].computed if rows else 0)
    planned = {flight.accounts.get(name) for flight in drive.flown}
    drafts = any(flight.drafts(name) for flight in drive.flown)
    sampled = sum(row.sampled for row in rows if row.account is not WASTE)
    assert sampled == end.output_tokens or (drafts and sampled > end.output_tokens)
    if end.output_tokens and RECOMPUTE not in planned and not drafts:
        assert drive.tokens(name, PREFILL) == end.prompt_tokens - end.cached_tokens


class TestWhateverHappens:
    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(engine=engines, script=things)
    def test_every_token_is_accounted_for(
        self, start: Start, faults: Faults, engine: Engine, script: list[Any]
    ) -> None:
        """Any mix of arrivals, lengths, aborts and preemptions, and a meter that comes late."""
        drive = engine.start(start)
        for thing in script:
            happen(drive, thing, engine.depth)
        drive.run(engine.depth)
        drive.drain()
        assert_as_vllm_planned(drive)
        assert set(drive.ends) == set(drive.requests)
        for name in drive.requests:
            assert_whole(drive, name)
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


@dataclass
class Metered:
    """An engine whose hooks start the meter's real process; what it publishes is heard here."""

    drive: "Drive"
    hooks: vllm_engine.EngineHooks
    heard: list[Any]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The meter's process of the moment."""
        return self.hooks._engines[id(self.drive.scheduler)].meter._process

    @property
    def totals(self) -> list[EngineTotals]:
        return [message for message in self.heard if isinstance(message, EngineTotals)]

    @property
    def finals(self) -> dict[str, RequestEnergy]:
        return {
            message.request_id: message
            for message in self.heard
            if isinstance(message, RequestEnergy) and message.status is Status.FINAL
        }

    def serve(self, *names: str) -> None:
        for name in names:
            self.drive.add(name, 20, 12, stop_at=8)
        self.drive.run(depth=2)


def eventually(true: Callable[[], object]) -> None:
    """Wait, ten seconds at most."""
    patience = time.monotonic() + 10
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.01)


@pytest.fixture
def metered(tiny_model: Path, faults_of_engine: Faults) -> Iterator[Metered]:
    """The hooks as the plugin installs them, on an engine with async scheduling."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import Executor

    from tests.support.driving import Drive, engine_config, make_scheduler, restored

    heard: list[Any] = []
    with tempfile.TemporaryDirectory() as folder, restored(Scheduler, EngineCore, Executor):
        directory = str(Path(folder, "channel"))
        subscriber = Subscriber(directory, [engine_name(0)], heard.append, Faults())
        hooks = vllm_engine.EngineHooks(
            Config(power="modelled", channel_dir=directory), faults_of_engine
        )
        hooks.install(Scheduler, EngineCore, Executor)
        scheduler = make_scheduler(engine_config(tiny_model), overlapped=True)
        capture = hooks._engines[id(scheduler)].capture
        engine = Metered(Drive(scheduler, capture, StepDecoder(Faults()), lazy=True), hooks, heard)
        eventually(lambda: heard)
        yield engine
        scheduler.shutdown()
        subscriber.close()
        assert "llm-carbon-sender" not in {thread.name for thread in threading.enumerate()}
        assert not list(Path(folder).iterdir())


@pytest.fixture
def faults_of_engine() -> Faults:
    """Counts on the engine's side."""
    return Faults()


class TestWholeEngine:
    def test_from_schedule_to_published_joules(
        self, metered: Metered, faults_of_engine: Faults
    ) -> None:
        """A process starts, joules add up, the process and the thread beside the engine end."""
        metered.serve(*"abc")
        process = metered.process
        metered.drive.scheduler.shutdown()
        assert process.returncode == 0
        eventually(lambda: len(metered.finals) == 3 and metered.totals[-1].open_requests == 0)
        totals, finals = metered.totals[-1], metered.finals
        assert all(record.output_tokens == 8 for record in finals.values())
        assert all(record.waste_joules > 0 for record in finals.values())
        assert {record.quality for record in finals.values()} == {Quality.MODELLED}
        (gpu,) = totals.gpus
        charged = sum(gpu.account_joules[: len(Account) - 3])
        assert sum(record.joules for record in finals.values()) == pytest.approx(charged, rel=1e-9)
        assert totals.accounted_ratio == pytest.approx(1, rel=1e-9)
        assert totals.tokens == {"prefill": 60, "decode": 21, "recompute": 0, "waste": 3}
        assert totals.errors == {}
        assert faults_of_engine.counts == {}

    def test_a_killed_meter_is_replaced(
        self, metered: Metered, faults_of_engine: Faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The engine goes on; whoever ran meanwhile is known in part and says so."""
        monkeypatch.setattr(meter_process, "RESTART_S", 0.1)
        first = metered.process
        metered.drive.add("across", 20, 40)
        metered.drive.turn(depth=2)
        first.kill()
        eventually(lambda: metered.process is not first)
        eventually(lambda: metered.totals[-1].errors.get("meter_process") == 1)
        assert len({totals.session for totals in metered.totals}) == 2
        metered.serve("after")
        eventually(lambda: len(metered.finals) == 2)
        assert metered.finals["across"].quality is Quality.RESET
        assert metered.finals["after"].quality is Quality.MODELLED
        assert faults_of_engine.counts == {"meter_process": 1}

    def test_the_meter_ends_with_its_engine(self, metered: Metered) -> None:
        """An engine that is killed says nothing: what runs is closed, settled and published."""
        metered.drive.add("a", 20, 40)
        for _ in range(9):
            metered.drive.turn(depth=2)
        eventually(lambda: metered.totals[-1].open_requests == 1)
        metered.hooks._engines[id(metered.drive.scheduler)].meter._connection.close()
        assert metered.process.wait(10) == 0
        eventually(lambda: metered.finals)
        assert metered.finals["a"].outcome is Outcome.ABORTED

    def test_a_power_source_that_cannot_be_opened(self, tiny_model: Path) -> None:
        """The reason comes back from the process; strict settings stop the start with it."""
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor.abstract import Executor

        from tests.support.driving import engine_config, make_scheduler, restored

        with tempfile.TemporaryDirectory() as folder, restored(Scheduler, EngineCore, Executor):
            config = Config(power="replay:/no/such/file", channel_dir=folder, strict=True)
            vllm_engine.EngineHooks(config, Faults()).install(Scheduler, EngineCore, Executor)
            with pytest.raises(PowerError, match="/no/such/file"):
                make_scheduler(engine_config(tiny_model))
