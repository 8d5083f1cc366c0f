"""Requests of a kernel world: how an engine batches them, when, and what a counter shows.

When a request comes hangs on how many are running, never on the clock, so that all batches are made
first and their times follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.data.azure_trace import conversation_quantiles, quantile
from llm_carbon_meter.physics.step_work import StepRows
from llm_carbon_meter.records import EnergyReading
from llm_carbon_meter.training.study.kernel_world import KernelWorld

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

LONGEST_PROMPT: Final = 8192
LONGEST_OUTPUT: Final = 1000
STEADY: Final = (8, 32)
"""Requests at once, one coming as another ends."""
LARGEST_BURST: Final = 16
PAUSE_S: Final = (0.5, 4.0)
"""Without any request, between two phases of the load, and between single requests."""
POLL_S: Final = 0.05
"""Between two readings of the counter."""
GPU: Final = "gpu"


class Asked(NamedTuple):
    """A request: its lengths, and when it comes."""

    prompt_tokens: int
    output_tokens: int
    others: int
    """It comes when no more than so many are in the engine."""


@dataclass(frozen=True)
class Batches:
    """The steps of an engine, without their times."""

    rows: StepRows
    after_idle: NDArray[np.bool_]
    """Steps before which the engine was empty, shape (steps,)."""
    ends: Ints
    """Step that ends each request, in the order in which they end."""


@dataclass(slots=True)
class _Running:
    asked: Asked
    computed: int = 0
    output: int = 0


def batches(requests: Sequence[Asked], budget: int) -> Batches:
    """Continuous batching with chunked prefill, the running requests first.

    Args:
        requests: in the order in which they come; all that may come do so before a step.
        budget: tokens of a step; what is longer comes in chunks.
    """
    running: list[_Running] = []
    coming, rows, counts, empty, ends = 0, list[tuple[int, int, int]](), [], [], list[int]()
    while running or coming < len(requests):
        empty.append(not running)
        while coming < len(requests) and len(running) <= requests[coming].others:
            running.append(_Running(requests[coming]))
            coming += 1
        step = _schedule(running, budget)
        rows += [_advance(request, tokens) for request, tokens in step]
        counts.append(len(step))
        rest = [entry for entry in running if entry.output < entry.asked.output_tokens]
        ends += [len(counts) - 1] * (len(running) - len(rest))
        running = rest
    new, cached, sampled = np.array(rows, np.float64).T
    made = StepRows(np.array(counts), new, cached, sampled)
    return Batches(made, np.array(empty), np.array(ends))


def _schedule(running: Sequence[_Running], budget: int) -> list[tuple[_Running, int]]:
    step = []
    for request in running:
        missing = request.asked.prompt_tokens + request.output - request.computed
        tokens = min(missing, budget)
        if tokens:
            step.append((request, tokens))
            budget -= tokens
    return step


def _advance(request: _Running, tokens: int) -> tuple[int, int, int]:
    """Tokens of the step, those cached before it, and those sampled after it."""
    cached = request.computed
    request.computed += tokens
    sampled = int(request.computed >= request.asked.prompt_tokens + request.output)
    request.output += sampled
    return tokens, cached, sampled


def equal_requests(concurrency: int, prompt: int, output: int) -> list[Asked]:
    """A batch of equal requests that come together."""
    return [Asked(prompt, output, concurrency)] * concurrency


def varied_requests(count: int, random: np.random.Generator) -> list[Asked]:
    """At least so many requests with the trace's lengths: single ones, bursts and steady loads."""
    requests: list[Asked] = []
    while len(requests) < count:
        kind = random.integers(3)
        if kind == 0:
            others = [0] * int(random.integers(2, 5))
        elif kind == 1:
            size = int(random.integers(2, LARGEST_BURST + 1))
            others = [0] + [size] * (size - 1)
        else:
            width = int(random.choice(STEADY))
            others = [0] + [width - 1] * (2 * width - 1)
        requests += [Asked(*_lengths(random), number) for number in others]
    return requests[:count]


def _lengths(random: np.random.Generator) -> tuple[int, int]:
    tables = conversation_quantiles()
    share, rank = random.random(2)
    fifths = tables.output_by_prompt_fifth
    prompt = round(quantile(tables.prompt_tokens, share))
    output = round(quantile(fifths[int(share * len(fifths))], rank))
    return min(max(prompt, 1), LONGEST_PROMPT), min(max(output, 1), LONGEST_OUTPUT)


@dataclass(frozen=True)
class Played:
    """Steps as they were, and what the GPU drew by any time."""

    rows: StepRows
    start_s: Floats
    end_s: Floats
    request_ends_s: Floats
    """In the order in which requests end."""
    times_s: Floats
    """Beginnings and ends of steps, and after the last."""
    joules: Floats
    """Drawn until then."""


def play(world: KernelWorld, made: Batches, random: np.random.Generator) -> Played:
    """Give steps their times, and let the GPU draw power and warm up."""
    draws, costs = world.draws, world.costs(made.rows)
    slower = np.exp(draws.noise * random.standard_normal(len(costs.seconds)))
    seconds = costs.seconds * slower
    pauses = random.uniform(*PAUSE_S, len(seconds)) * made.after_idle
    end_s = np.cumsum(seconds + pauses)
    start_s = end_s - seconds
    times = np.append(np.stack((start_s, end_s), 1).ravel(), end_s[-1] + PAUSE_S[1])
    idle_joules = world.idle_watts * np.append(pauses, PAUSE_S[1])
    pieces = np.empty(2 * len(seconds) + 1)
    pieces[::2], pieces[1::2] = idle_joules, costs.joules * slower
    durations = np.diff(times, prepend=0.0)
    drawn = pieces * _leaking(world, pieces, durations)
    times, joules = np.insert(times, 0, 0.0), np.insert(np.cumsum(drawn), 0, 0.0)
    return Played(made.rows, start_s, end_s, end_s[made.ends], times, joules)


def _leaking(world: KernelWorld, joules: Floats, durations: Floats) -> Floats:
    """Power against that of a cold GPU: it follows the load as slowly as the temperature."""
    draws, board = world.draws, world.gpu.board_watts
    heat, factors = world.idle_watts / board, np.empty(len(joules))
    steps = np.maximum(durations, 1e-9)
    staying = np.exp(-steps / draws.warming_s)
    for place, (load, stays) in enumerate(zip(joules / steps / board, staying, strict=True)):
        heat = load + (heat - load) * stays
        factors[place] = 1 + draws.leakage * heat
    return factors


def warm(world: KernelWorld, joules: float, seconds: float) -> float:
    """Joules of a load that has lasted long, of those of a cold GPU."""
    return joules * (1 + world.draws.leakage * joules / seconds / world.gpu.board_watts)


def readings(played: Played, random: np.random.Generator) -> list[EnergyReading]:
    """What a counter shows that is read every `POLL_S`.

    It has a period, it shows what was drawn some time ago, and polls come a little late.
    """
    period_s = float(random.choice((0.02, 0.1)))
    lag_s = float(random.uniform(0.01, 0.12))
    until_s = played.times_s[-1]
    polls = np.arange(0.0, until_s, POLL_S)
    polls = polls + 0.01 * random.random(len(polls))
    updated = np.floor(polls / period_s) * period_s - lag_s
    shown = np.interp(updated, played.times_s, played.joules).round(3)
    pairs = zip(polls.tolist(), shown.tolist(), strict=True)
    return [EnergyReading(at_s, GPU, joules) for at_s, joules in pairs]
