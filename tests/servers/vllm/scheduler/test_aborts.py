"""Requests that are aborted while they wait, prefill or decode."""

from typing import TYPE_CHECKING

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome
from tests.support.servers.driven_rows import (
    PREFILL,
    WASTE,
    Start,
    assert_clean,
    decodes,
    drives_vllm,
    sync_and_overlapped,
)

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    pass


pytestmark = drives_vllm


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

    def test_an_aborted_request_leaves_the_load(self, start: Start, faults: Faults) -> None:
        """The load is by API server, as vLLM's requests say which one sent them."""
        drive = start(max_num_seqs=2)
        for name, client in (("a", 0), ("b", 1), ("waits", 1)):
            drive.add(name, 10, 4, client_index=client)
        drive.turn()
        assert drive.load == {0: 1, 1: 1}
        drive.abort("b")
        assert drive.load == {0: 1}
        drive.turn()
        assert drive.load == {0: 1, 1: 1}
        drive.run()
        assert drive.load == {}
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
