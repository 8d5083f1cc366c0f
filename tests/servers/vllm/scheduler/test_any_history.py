"""Any mix of arrivals, lengths, aborts, preemptions and late meters, drawn by hypothesis."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Outcome
from tests.support.servers.driven_rows import (
    NGRAM,
    PREFILL,
    RECOMPUTE,
    WASTE,
    Start,
    assert_as_vllm_planned,
    assert_clean,
    drives_vllm,
)

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    from tests.support.servers.driving import Drive


pytestmark = drives_vllm


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
