"""vLLM's own scheduler classes under our hooks, driven by hand: a script stands for the model."""

import contextlib
import os
import pickle
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import create_autospec

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.pooling_params import PoolingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import Account, RequestEnd, StepEvent
from llm_carbon_meter.servers.shared.hooks import install, owner_of
from llm_carbon_meter.servers.shared.meter_process import MeterProcess
from llm_carbon_meter.servers.shared.steps import StepDecoder
from llm_carbon_meter.servers.vllm import engine_hooks as vllm_engine
from llm_carbon_meter.servers.vllm.capture import StepCapture
from llm_carbon_meter.servers.vllm.hooks import ENGINE_CORE

BLOCK: Final = 16
STOP_TOKEN: Final = 7
DRAFT_TOKEN: Final = 9
ALL_ROWS: Final = 1_000_000


class Row(NamedTuple):
    """One request's part of one step, as the meter sees it."""

    account: Account
    scheduled: int
    computed: int
    sampled: int


class BareHooks(vllm_engine.EngineHooks):
    """The hooks without a process: a new scheduler gets a capture and nothing else."""

    def before_executor(self, *_: Any, **__: Any) -> None:
        pass

    def after_init(self, scheduler: Any, *_: Any, **__: Any) -> None:
        self._engines[id(scheduler)] = vllm_engine._Engine(
            StepCapture(self.faults), create_autospec(MeterProcess, instance=True)
        )

    def engine(self, scheduler: Scheduler) -> Any:
        """What hangs on a scheduler; None once it is no longer metered."""
        return self._engines.get(id(scheduler))

    def attach(self, scheduler: Scheduler, capture: Any) -> None:
        """Give a scheduler another capture."""
        engine = self._engines[id(scheduler)]
        self._engines[id(scheduler)] = engine._replace(capture=capture)


def bare_hooks() -> BareHooks:
    """Hooks with a count of faults of their own."""
    return BareHooks(Config(), Faults())


def wrap_engine(hooks: vllm_engine.EngineHooks, **stand_ins: Any) -> None:
    """Wrap vLLM's classes, or what stands in for some of them under their names."""

    def owners(target: str) -> Any:
        name = target.rpartition(":")[2]
        return stand_ins[name] if name in stand_ins else owner_of(target)

    install(ENGINE_CORE, hooks, owners)


@contextlib.contextmanager
def restored(*owners: type) -> Iterator[None]:
    """Put back whatever is set on some classes meanwhile."""
    before = [(owner, dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for owner, names in before:
            for name, value in list(vars(owner).items()):
                if name not in names:
                    delattr(owner, name)
                elif value is not names[name]:
                    setattr(owner, name, names[name])


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables, and undo that and what vLLM sets by itself."""
    before = os.environ.copy()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def engine_config(model: Path, **arguments: Any) -> VllmConfig:
    """vLLM's configuration; the plugins of this machine, our own included, are not loaded."""
    arguments = {"max_model_len": 256, "max_num_seqs": 16, "seed": 0} | arguments
    with environment(VLLM_PLUGINS="none", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1"):
        return EngineArgs(
            model=str(model),
            dtype="float32",
            block_size=BLOCK,
            enforce_eager=True,
            **arguments,
        ).create_engine_config()


def make_scheduler(
    config: VllmConfig, *, overlapped: bool = False, v2: bool = False, blocks: int = 100
) -> Scheduler:
    """A scheduler as EngineCore makes it, for one group of layers with full attention.

    Args:
        overlapped: async scheduling, which vLLM itself would not choose on a CPU.
        v2: the records are those for the V2 model runner.
    """
    config.scheduler_config.async_scheduling = overlapped
    config.cache_config.num_gpu_blocks = blocks
    kind = config.scheduler_config.get_scheduler_cls()
    assert issubclass(kind, AsyncScheduler) == overlapped
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    cache = KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)])
    manager = create_autospec(StructuredOutputManager, instance=True)
    manager.accept_tokens.return_value = True
    manager.validate_tokens.side_effect = lambda _, tokens: tokens
    scheduler = kind(config, cache, manager, block_size=BLOCK)
    scheduler.use_v2_model_runner = v2
    return scheduler


@dataclass
class Flight:
    """A step between its schedule and its update."""

    output: SchedulerOutput
    sampling: set[str]
    """Requests whose newest position is in the step; the others are unfinished prefills."""
    accounts: dict[str, Account]
    """Told by which positions of the request were computed before."""
    dropped: set[str] = field(default_factory=set)
    """Requests that had ended when the step came back."""

    def drafts(self, name: str) -> int:
        """Draft tokens of a request, padding included."""
        return len(self.output.scheduled_spec_decode_tokens.get(name, ()))

    def is_padded(self, name: str) -> bool:
        """Nothing was drafted: the request has just come (back) to the workers."""
        cached = self.output.scheduled_cached_reqs
        arrived = name not in cached.req_ids or name in cached.resumed_req_ids
        return arrived and self.drafts(name) > 0

    def accepted(self, name: str, most: int) -> int:
        """How many drafts turn out right."""
        return 0 if self.is_padded(name) else min(most, self.drafts(name))


@dataclass
class Drive:
    """EngineCore's part: schedules, lets the scripted model answer, updates, and drains."""

    scheduler: Scheduler
    capture: StepCapture
    decoder: StepDecoder
    timeline: list[StepEvent | RequestEnd] = field(default_factory=list)
    """What the meter has been told, in the order in which the ledger enters it."""
    flights: deque[Flight] = field(default_factory=deque)
    flown: list[Flight] = field(default_factory=list)
    """Every step that vLLM made, in order."""
    reached: dict[str, int] = field(default_factory=dict)
    """First position of each request that was never computed, or was rejected."""
    lazy: bool = False
    """The meter's thread comes only when it is called."""
    stop_at: dict[str, int] = field(default_factory=dict)
    """Requests that end on a stop token, and which of their output tokens that is."""
    drafts: int = 0
    """Draft tokens per request and step that a sync engine proposes."""
    accepted: int = 0
    """How many of the drafts of a step turn out right."""
    requests: dict[str, Request] = field(default_factory=dict)
    load: Mapping[int, int] = field(default_factory=dict)
    """Requests by the API server that sent them, as the meter was told last."""

    # What a client does

    def add(
        self, name: str, prompt: int | Sequence[int], output: int, stop_at: int = 0, **more: Any
    ) -> Request:
        """A request of so many prompt tokens, its own unless given, and output tokens."""
        if isinstance(prompt, int):
            prompt = [1000 * (len(self.requests) + 1) + place for place in range(prompt)]
        parameters = SamplingParams(max_tokens=output, stop_token_ids=[STOP_TOKEN])
        if stop_at:
            self.stop_at[name] = stop_at
        return self._add(name, prompt, sampling_params=parameters, pooling_params=None, **more)

    def add_pooling(self, name: str, prompt: int) -> Request:
        """A request for an embedding."""
        parameters = PoolingParams(task="embed")
        return self._add(name, range(prompt), sampling_params=None, pooling_params=parameters)

    def _add(self, name: str, prompt: Sequence[int], **more: Any) -> Request:
        hashing = get_hash_fn_by_name("sha256")
        init_none_hash(hashing)
        request = Request(
            name, list(prompt), block_hasher=get_request_block_hasher(BLOCK, hashing), **more
        )
        self.scheduler.add_request(request)
        self.requests[name] = self.scheduler.requests[name]  # a session goes on as it was
        return self.requests[name]

    def abort(self, *names: str) -> None:
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
        self._drain_at_once()

    # What EngineCore does

    def schedule(self) -> Flight:
        """Called as EngineCore calls it."""
        output = self.scheduler.schedule(False)
        scheduled = output.num_scheduled_tokens
        sampling = {name for name in scheduled if not self.requests[name].is_prefill_chunk}
        accounts = {name: self._account(name, count) for name, count in scheduled.items()}
        flight = Flight(output, sampling, accounts)
        self.flights.append(flight)
        self.flown.append(flight)
        self._drain_at_once()
        return flight

    def _account(self, name: str, scheduled: int) -> Account:
        """What the step does for a request, told by its positions."""
        request, reached = self.requests[name], self.reached.get(name, 0)
        first = request.num_computed_tokens - scheduled
        self.reached[name] = max(reached, request.num_computed_tokens)
        if first < reached:
            return Account.RECOMPUTE
        return Account.PREFILL if first < request.num_prompt_tokens else Account.DECODE

    def update(self) -> dict[int, Any]:
        """The oldest step in flight comes back."""
        flight = self.flights.popleft()
        names = list(flight.output.num_scheduled_tokens)
        flight.dropped = {name for name in names if name not in self.scheduler.requests}
        outputs = self.scheduler.update_from_output(flight.output, self.run_model(flight))
        for name in flight.sampling:
            self.reached[name] -= flight.drafts(name) - flight.accepted(name, self.accepted)
        if self.drafts:
            drafts = [[DRAFT_TOKEN] * self.drafts for _ in names]
            self.scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))
        self._drain_at_once()
        return outputs

    def turn(self, depth: int = 1) -> None:
        """`EngineCore.step`, or `step_with_batch_queue` with a queue deeper than one."""
        if self.scheduler.has_requests() and len(self.flights) < depth:
            flight = self.schedule()
            more = flight.output.total_num_scheduled_tokens or self.scheduler.has_requests()
            if len(self.flights) < depth and more:
                return
        if self.flights:
            self.update()

    def run(self, depth: int = 1) -> None:
        """Turn until there is nothing left to do."""
        for _ in range(10_000):
            if not (self.scheduler.has_requests() or self.flights):
                return
            self.turn(depth)
        raise AssertionError("the scheduler makes no progress")

    def run_model(self, flight: Flight) -> ModelRunnerOutput:
        """What the worker would answer."""
        names = list(flight.output.num_scheduled_tokens)
        pooling = any(self.requests[name].pooling_params for name in names)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[] if pooling else [self._sample(name, flight) for name in names],
            pooler_output=[torch.zeros(1) if name in flight.sampling else None for name in names]
            if pooling
            else None,
        )

    def _sample(self, name: str, flight: Flight) -> list[int]:
        if name not in flight.sampling:
            return []
        first = self.requests[name].num_output_tokens + 1
        stop = self.stop_at.get(name)
        count = 1 + flight.accepted(name, self.accepted)
        return [STOP_TOKEN if n == stop else 100 + n for n in range(first, first + count)]

    # What the meter's thread does

    def drain(self) -> None:
        """Everything that waits, in the slices that the meter takes."""
        while self.drain_some(ALL_ROWS):
            pass

    def drain_some(self, max_rows: int) -> bool:
        """One slice; True where more is waiting."""
        for event in self.capture.take():
            self.decoder.feed(pickle.loads(pickle.dumps(event)))
        batch = self.decoder.drain(max_rows)
        self.timeline += batch.steps
        self.timeline += batch.ends
        self.load = batch.load
        return batch.more

    def _drain_at_once(self) -> None:
        if not self.lazy:
            self.drain()

    # What came out

    @property
    def steps(self) -> list[StepEvent]:
        """Steps in which something ran."""
        steps = [event for event in self.timeline if isinstance(event, StepEvent)]
        return [step for step in steps if step.request_ids]

    @property
    def ends(self) -> dict[str, RequestEnd]:
        """By request; each has one only."""
        ends = [event for event in self.timeline if isinstance(event, RequestEnd)]
        names = {end.request_id: end for end in ends}
        assert len(names) == len(ends)
        return names

    def rows(self, name: str) -> list[Row]:
        """A request's parts, step by step."""
        return [rows[name] for rows in map(rows_of, self.steps) if name in rows]

    def tokens(self, name: str, account: Account) -> int:
        return sum(row.scheduled for row in self.rows(name) if row.account is account)

    @property
    def leftovers(self) -> dict[str, Any]:
        """What capture and decoder still remember."""
        state = [*vars(self.capture).items(), *vars(self.decoder).items()]
        return {name: held for name, held in state if isinstance(held, dict | set | deque) and held}


def rows_of(step: StepEvent) -> dict[str, Row]:
    """A step's columns by request; no request is in a step twice."""
    columns = zip(
        step.request_ids,
        map(Account, step.accounts),
        step.num_scheduled_tokens,
        step.num_computed_tokens,
        step.num_sampled,
        strict=True,
    )
    rows = {name: Row(*rest) for name, *rest in columns}
    assert len(rows) == len(step.request_ids)
    return rows
