"""A serving engine in small: continuous batching, chunked prefill, prefix cache, preemption.

It asks the true GPU how long each step takes and remembers what each really drew and who caused it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.records import Account, Outcome, RequestEnd, StepEvent
from llm_carbon_meter.servers.shared.steps import phase

from .gpus import TrueGpu, true_gpu
from .loads import Load
from .ranges import World
from .traffic import Arrival, arrivals

Floats = npt.NDArray[np.float64]

DRIFT_PERIOD_S: Final = 240.0


@dataclass(slots=True)
class Running:
    """A request inside the engine."""

    asked: Arrival
    computed: int = 0
    """Tokens in the KV cache."""
    output: int = 0
    reached: int = 0
    """First position of the prefill that was never computed."""

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return self.held - self.computed

    @property
    def held(self) -> int:
        """Tokens of KV cache."""
        return self.asked.prompt_tokens + self.output


@dataclass(frozen=True, slots=True)
class TrueStep:
    """One step as it was."""

    event: StepEvent
    start_s: float
    end_s: float
    joules: float
    """Of one GPU."""
    causes: Floats
    """Joules of one GPU per request, shape (requests,)."""
    halves: Floats
    """Difference of the two halves of the sample, shape (requests,)."""


@dataclass
class Served:
    """A run of the engine."""

    steps: list[TrueStep] = field(default_factory=list)
    ends: list[RequestEnd] = field(default_factory=list)
    arrived_s: dict[str, float] = field(default_factory=dict)


class Engine:
    """One run; times in seconds from its start."""

    def __init__(self, world: World, gpu: TrueGpu, load: Load) -> None:
        self._world, self._gpu, self._load = world, gpu, load
        self._random = np.random.default_rng([11, world.seed, load.concurrency])
        self._running: list[Running] = []
        self._waiting: deque[Running] = deque()
        self._late: list[Running] = []
        """Stopped, but already in the next step: its result will be dropped."""
        self._kv_tokens = 0
        self._served = Served()

    def serve(self, requests: Sequence[Arrival], until_s: float) -> Served:
        """Run until a time; requests not finished then are aborted."""
        coming = deque(requests)
        self._served.arrived_s = {request.name: request.arrived_s for request in requests}
        mean = float(np.mean([r.prompt_tokens + r.output_tokens / 2 for r in requests]))
        largest = max(r.prompt_tokens + r.output_tokens for r in requests)
        room = self._world.values["kv_room"] * self._load.concurrency * mean
        self._kv_tokens = int(max(room, largest + 1))
        now_s = 0.0
        while now_s < until_s:
            while coming and coming[0].arrived_s <= now_s:
                self._waiting.append(Running(coming.popleft()))
            scheduled = self._schedule()
            if scheduled:
                now_s = self._step(now_s, scheduled)
            elif coming:
                now_s = max(now_s, coming[0].arrived_s)
            else:
                break
        self._abort_the_rest(now_s)
        return self._served

    def _schedule(self) -> list[tuple[Running, int]]:
        """Requests and their tokens: the running ones first, then the waiting, as vLLM does."""
        budget = self._world.token_budget
        self._preempt()
        scheduled = []
        for request in self._running:
            tokens = min(request.missing + self._drafts(request), budget)
            if tokens:
                scheduled.append((request, tokens))
                budget -= tokens
        while self._waiting and budget and len(self._running) < self._load.concurrency:
            request = self._waiting[0]
            if self._held() + request.held + 1 > self._kv_tokens:
                break
            request.computed = request.asked.cached_tokens
            tokens = min(request.missing, budget)
            self._running.append(self._waiting.popleft())
            scheduled.append((request, tokens))
            budget -= tokens
        return scheduled + [(request, 1) for request in self._late]

    def _drafts(self, request: Running) -> int:
        """Tokens that are tried beside the next one: no more than the answer still needs."""
        wanted = request.asked.output_tokens - request.output - 1
        return min(self._load.drafts, wanted) if request.output and request.missing == 1 else 0

    def _held(self) -> int:
        return sum(request.held for request in self._running)

    def _preempt(self) -> None:
        """The youngest gives its KV cache back while the next tokens do not fit."""
        while len(self._running) > 1 and self._held() + len(self._running) > self._kv_tokens:
            request = self._running.pop()
            request.reached = max(request.reached, request.computed)
            request.computed = 0
            self._waiting.appendleft(request)

    def _step(self, now_s: float, scheduled: list[tuple[Running, int]]) -> float:
        values = self._world.values
        new = np.array([tokens for _, tokens in scheduled], np.float64)
        cached = np.array([request.computed for request, _ in scheduled], np.float64)
        rows = [self._row(request, tokens) for request, tokens in scheduled]
        sampled = np.array([count for _, count in rows], np.float64)
        work = self._gpu.work(new, cached, sampled)
        seconds, joules = (float(value) for value in self._gpu.cost(work.total()))
        seconds *= self._noise("duration_noise")
        drawn = joules * self._noise("power_noise") * self._drift(now_s)
        first, second = self._gpu.causes(work, self._random)
        start_s, end_s = now_s, now_s + seconds
        delay_s = values["report_delay_s"] * self._random.random()
        event = StepEvent(
            len(self._served.steps),
            start_s,
            end_s + delay_s,
            [request.asked.name for request, _ in scheduled],
            [account for account, _ in rows],
            new.astype(int).tolist(),
            cached.astype(int).tolist(),
            sampled.astype(int).tolist(),
        )
        scale = drawn / joules
        causes, halves = (first + second) / 2 * scale, (first - second) / 2 * scale
        self._served.steps.append(TrueStep(event, start_s, end_s, drawn, causes, halves))
        self._advance(scheduled, event.done_s)
        return end_s + (0.0 if self._world.happens["async_scheduling"] else values["host_gap_s"])

    def _noise(self, name: str) -> float:
        return float(np.exp(self._world.values[name] * self._random.standard_normal()))

    def _drift(self, at_s: float) -> float:
        """Temperature, clocks, leakage."""
        turn = 2 * np.pi * (at_s / DRIFT_PERIOD_S + self._world.seed / 7)
        return float(1 + self._world.values["drift"] * np.sin(turn))

    def _row(self, request: Running, tokens: int) -> tuple[Account, int]:
        if request in self._late:
            return Account.WASTE, 1
        asked = request.asked
        account, sampled = phase(asked.prompt_tokens, request.output, request.computed, tokens)
        if account is Account.PREFILL and request.computed < request.reached:
            account = Account.RECOMPUTE
        return account, sampled

    @staticmethod
    def _tried(request: Running, tokens: int) -> int:
        """Drafts among a request's tokens."""
        return max(tokens - request.missing, 0)

    def _advance(self, scheduled: list[tuple[Running, int]], done_s: float) -> None:
        for late in self._late:
            self._end(late, done_s)
        dropped, self._late = self._late, []
        for request, tokens in scheduled:
            if request in dropped:
                continue
            accepted = self._accepted(self._tried(request, tokens))
            request.computed += min(tokens, request.missing) + accepted
            if request.computed >= request.held + accepted:
                request.output += 1 + accepted
            if request.output >= request.asked.output_tokens:
                self._finish(request, done_s)

    def _accepted(self, drafts: int) -> int:
        """Drafts up to the first that the model would not have sampled."""
        right = self._random.random(drafts) < self._load.accepted_share
        return int(np.cumprod(right).sum())

    def _finish(self, request: Running, done_s: float) -> None:
        self._running.remove(request)
        if request.asked.stops and self._world.happens["async_scheduling"]:
            self._late.append(request)
        else:
            self._end(request, done_s)

    def _abort_the_rest(self, now_s: float) -> None:
        done_s = max(now_s, self._served.steps[-1].event.done_s)
        for request in [*self._running, *self._waiting, *self._late]:
            self._end(request, done_s, Outcome.ABORTED)

    def _end(self, request: Running, done_s: float, outcome: Outcome = Outcome.FINISHED) -> None:
        asked = request.asked
        self._served.ends.append(
            RequestEnd(
                asked.name,
                outcome,
                asked.prompt_tokens,
                asked.cached_tokens,
                request.output,
                done_s,
            )
        )


def serve(world: World, load: Load, until_s: float) -> Served:
    """Serve a world's traffic at a load near what the concurrency can take."""
    gpu = true_gpu(world)
    sample = arrivals(world, load, 1.0, 400.0)
    share = world.values["load"] if load.share is None else load.share
    per_s = share * load.concurrency / _service_s(gpu, sample, load)
    requests = arrivals(world, load, per_s, until_s)
    return Engine(world, gpu, load).serve(requests, until_s)


def _service_s(gpu: TrueGpu, requests: Sequence[Arrival], load: Load) -> float:
    """Seconds that a mean request takes among its like: its prefill for all, and its decodes."""
    prompt = np.mean([request.prompt_tokens - request.cached_tokens for request in requests])
    whole = np.mean([request.prompt_tokens for request in requests])
    output = np.mean([request.output_tokens for request in requests])
    one, none = np.ones(1), np.zeros(1)
    prefill = gpu.cost(gpu.work(one * prompt, none, one).total())[0]
    every = np.ones(load.concurrency)
    decode = gpu.cost(gpu.work(every, every * (whole + output / 2), every).total())[0]
    return float(prefill * load.concurrency + decode * output)
