"""The steps that a proxy makes up, as the meter's decoder reads them."""

import asyncio
import math

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Account, EventBatch, Outcome, RequestEnd
from llm_carbon_meter.servers.shared.events import Known
from llm_carbon_meter.servers.shared.steps import StepDecoder
from llm_carbon_meter.servers.sidecar import capture as sidecar_capture
from llm_carbon_meter.servers.sidecar.capture import OutsideCapture, Usage

PREFILL, DECODE = Account.PREFILL, Account.DECODE


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The capture's time."""
    clock = Clock()
    monkeypatch.setattr(sidecar_capture, "time", clock)
    return clock


def decoded(capture: OutsideCapture) -> EventBatch:
    """What the meter makes of a capture's events."""
    decoder = StepDecoder(Faults())
    for event in capture.take():
        decoder.feed(event)
    return decoder.drain(1000)


def parts(batch: EventBatch, name: str) -> list[tuple[Account, int]]:
    """Account and tokens of a request in each of its steps."""
    return [
        (Account(step.accounts[at]), step.num_scheduled_tokens[at])
        for step in batch.steps
        for at, request_id in enumerate(step.request_ids)
        if request_id == name
    ]


def test_a_stream_is_in_prefill_until_its_first_token(clock: Clock) -> None:
    """Half of what is left in each step, the rest before the token: in all the prompt, once."""
    capture = OutsideCapture(Faults())
    capture.begin("a", 100, whole=False)
    for _ in range(3):
        clock.pass_s(0.05)
        capture.tick()
    clock.pass_s(0.02)
    capture.came("a", 1)
    for _ in range(2):
        clock.pass_s(0.05)
        capture.came("a", 3)
        capture.tick()
    clock.pass_s(0.01)
    capture.end("a", Outcome.FINISHED, Usage(100, 40, 7))
    batch = decoded(capture)
    prefill = [(PREFILL, 50), (PREFILL, 25), (PREFILL, 12), (PREFILL, 13)]
    assert parts(batch, "a") == [*prefill, (DECODE, 4), (DECODE, 3), (DECODE, 0)]
    assert batch.steps[3].done_s == pytest.approx(100.17)
    (end,) = batch.ends
    assert (end.prompt_tokens, end.cached_tokens, end.output_tokens) == (100, 40, 7)
    assert end.whole


def test_steps_have_no_gaps_and_the_requests_of_their_time(clock: Clock) -> None:
    """A step ends where a request begins or ends, so that nobody is in another one's time."""
    capture = OutsideCapture(Faults())
    capture.begin("a", 10, whole=False)
    clock.pass_s(0.03)
    capture.begin("b", 10, whole=False)
    clock.pass_s(0.01)
    capture.end("a", Outcome.ABORTED, Usage(10, 0, 0))
    clock.pass_s(0.05)
    capture.tick()
    batch = decoded(capture)
    assert [step.request_ids for step in batch.steps] == [["a"], ["b", "a"], ["b"]]
    times = [(step.dispatched_s, step.done_s) for step in batch.steps]
    assert times == [
        pytest.approx(span) for span in ((100, 100.03), (100.03, 100.04), (100.04, 100.09))
    ]


def test_a_whole_answer_fills_for_an_assumed_time_and_then_decodes(clock: Clock) -> None:
    """Its first token is taken to come after prompt / speed seconds, between two ticks too."""
    capture = OutsideCapture(Faults())
    capture.begin("a", 500, whole=True)
    for _ in range(4):
        clock.pass_s(0.04)
        capture.tick()
    batch = decoded(capture)
    assert parts(batch, "a")[:3] == [(PREFILL, 250), (PREFILL, 125), (PREFILL, 125)]
    assert [account for account, _ in parts(batch, "a")[3:]] == [DECODE, DECODE]
    assert batch.steps[2].done_s == pytest.approx(100 + 500 / 5000)


def test_a_whole_answer_keeps_pace_with_the_streams_beside_it(clock: Clock) -> None:
    """What cannot be seen is taken to be as quick as what can."""
    capture = OutsideCapture(Faults())
    capture.begin("whole", 5, whole=True)
    capture.begin("stream", 5, whole=False)
    clock.pass_s(0.01)
    capture.came("stream", 1)
    clock.pass_s(0.05)
    capture.came("stream", 6)
    capture.tick()
    assert parts(decoded(capture), "whole")[-1] == (DECODE, 7)


def test_a_refused_request_is_not_in_the_step_that_runs(clock: Clock) -> None:
    """It was not computed; others keep their step."""
    capture = OutsideCapture(Faults())
    capture.begin("a", 10, whole=False)
    capture.begin("bad", 10, whole=True)
    clock.pass_s(0.02)
    capture.refuse("bad", Usage(10, 0, 0))
    clock.pass_s(0.02)
    capture.tick()
    batch = decoded(capture)
    assert parts(batch, "bad") == []
    assert batch.ends[0].outcome is Outcome.FAILED
    assert batch.steps[-1].done_s - batch.steps[-1].dispatched_s == pytest.approx(0.04)


def test_nothing_is_known_of_the_step_that_runs(clock: Clock) -> None:
    """A counter's tick in it must wait, or its joules would be idle."""
    capture = OutsideCapture(Faults())
    clock.now_s = 1.0
    capture.begin("a", 10, whole=False)
    assert list(capture.take()) == [Known(1.0)]
    clock.pass_s(0.01)
    capture.end("a", Outcome.FINISHED, Usage(10, 0, 1))
    (*_, idle) = capture.take()
    assert isinstance(idle, Known)
    assert 1.0 < idle.until_s < math.inf


def test_thousands_that_begin_and_end_together_share_steps(clock: Clock) -> None:
    """A cut costs time for every open request: no burst of them makes as many cuts as requests."""
    capture, names = OutsideCapture(Faults()), [str(number) for number in range(5000)]
    for name in names:
        capture.begin(name, 10, whole=False)
    clock.pass_s(0.05)
    capture.tick()
    for name in names:
        capture.came(name, 1)
        clock.pass_s(1e-6)
    for name in names:
        capture.end(name, Outcome.FINISHED, Usage(10, 0, 1))
    assert capture.held() == 0
    clock.pass_s(0.05)
    capture.tick()
    decoder = StepDecoder(Faults())
    for event in capture.take():
        decoder.feed(event)
    batch = decoder.drain(1_000_000)
    assert len(batch.steps) <= 4
    assert sum(len(step.request_ids) for step in batch.steps) <= 4 * len(names)
    assert sorted(end.request_id for end in batch.ends) == sorted(names)
    assert all(end.whole for end in batch.ends)
    assert [tokens for _, tokens in parts(batch, "4999")] == [5, 5]


async def test_a_cut_that_had_to_wait_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end behind others within a step is told soon, not at the next interval."""
    monkeypatch.setattr(sidecar_capture, "INTERVAL_S", 60.0)
    capture = OutsideCapture(Faults())
    keeping = asyncio.create_task(capture.keep_time())
    await asyncio.sleep(0)
    for name in range(1000):
        capture.begin(str(name), 10, whole=False)
    capture.end("1", Outcome.FINISHED, Usage(10, 0, 1))
    async with asyncio.timeout(30):
        while not any(isinstance(event, RequestEnd) for event in capture.take()):
            await asyncio.sleep(0.001)
    keeping.cancel()


async def test_a_proxy_that_stops_tells_the_ends_that_wait() -> None:
    """Nothing of an answer that is over is lost."""
    capture = OutsideCapture(Faults())
    keeping = asyncio.create_task(capture.keep_time())
    await asyncio.sleep(0)
    for name in range(1000):
        capture.begin(str(name), 10, whole=False)
    capture.end("1", Outcome.FINISHED, Usage(10, 0, 1))
    assert not any(isinstance(event, RequestEnd) for event in capture.take())
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    assert any(isinstance(event, RequestEnd) for event in capture.take())
