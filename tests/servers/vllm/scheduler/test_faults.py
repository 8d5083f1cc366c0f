"""Lost steps, late meters and our own errors: vLLM's requests are answered all the same."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import RequestEnd
from llm_carbon_meter.servers.shared import events
from llm_carbon_meter.servers.vllm import capture as vllm_capture
from tests.support.servers.driven_rows import (
    PREFILL,
    Start,
    decodes,
    drives_vllm,
    sync_and_overlapped,
)

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    from tests.support.servers.driving import BareHooks


pytestmark = drives_vllm


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

        from tests.support.servers.driving import bare_hooks, restored, wrap_engine

        before = dict(vars(Scheduler))
        with restored(Scheduler):
            wrap_engine(bare_hooks(), EngineCore=Mock(), Executor=type("Executor", (), {}))
            assert vars(Scheduler)["schedule"] is not before["schedule"]
        assert dict(vars(Scheduler)) == before
