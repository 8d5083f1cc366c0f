"""How far the first live requests of a deployment correct its estimates, in worlds not of our law.

The meter's own posterior learns from steps and ticks of `kernel_world` worlds, under an engine
version that was not measured, on GPUs of which requests were or were not. Beside it stand one
factor for everything, and what was expected at the start.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.ledger.counters import GpuCounter, Tick
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import step_sums
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.fitted_physics import Prior
from llm_carbon_meter.predictor.gnn import BoundGnn, Weights
from llm_carbon_meter.predictor.posterior import FactorPosterior, Steps, expected
from llm_carbon_meter.predictor.step_law import term_matrix
from llm_carbon_meter.training.data.files import Manifest
from llm_carbon_meter.training.study.kernel_curves import STAND_IN, Kernels, read_kernels
from llm_carbon_meter.training.study.kernel_world import Draws, KernelWorld
from llm_carbon_meter.training.study.world_play import (
    Played,
    batches,
    equal_requests,
    play,
    readings,
    varied_requests,
    warm,
)

Floats = NDArray[np.float64]

SHOWN: Final = (0, 1, 2, 5, 10, 20, 50, 100)
"""Requests that a deployment has served."""
STATED: Final = 20
"""Of these, the number of the goal."""
WAYS: Final = ("posterior", "one_factor", "nothing")
"""That learn, or do not."""
ENGINE: Final = "vllm", "0.99"
"""Under which nothing was measured."""
MODELS: Final[Mapping[str, tuple[str, ...]]] = {
    "H200": ("Llama-3.1-8B", "Qwen3-14B", "Qwen3-32B", "Qwen3-30B-A3B"),
    "B200": ("Llama-3.1-8B", "Qwen3-14B", "Qwen3-32B", "Qwen3-30B-A3B"),
    "GB200": ("Llama-3.1-8B", "Qwen3-14B", "Qwen3-32B"),
    "L40S": ("Llama-3.1-8B", "Qwen3-8B", "Qwen3-14B"),
    "H100": ("Llama-3.1-8B", "Qwen3-14B", "Qwen3-30B-A3B"),
    "A100": ("Llama-3.1-8B", "Qwen3-14B"),
}
"""GPU -> models that it holds and whose kernels were measured there."""
SEEDS: Final = range(100, 108)
"""Of the worlds of each GPU and model."""
LOADS: Final = tuple(
    (concurrency, *lengths)
    for concurrency in (1, 2, 8, 24)
    for lengths in ((256, 64), (256, 400), (1200, 150), (3000, 40), (2000, 700))
)
"""Concurrency, prompt and output of the requests that are judged."""
TICK_S: Final = 1.0
LEAST_BUSY_S: Final = 0.5
"""Work that teaches at once. Ticks with less are joined with the next: single requests on a fast
GPU would else say nothing."""


class Lesson(NamedTuple):
    """What a live meter knows of some ticks with work in them."""

    start_s: float
    steps: Steps
    boards: float
    """Counted energy without idle, in units of board power x 1 s."""
    seconds: float
    """Busy."""


@dataclass(frozen=True, slots=True)
class Live:
    """Errors of the estimates in one world."""

    gpu: str
    model: str
    seed: int
    errors: Floats
    """ln(estimated / true), shape (ways, shown, loads)."""

    @property
    def apes(self) -> Floats:
        """Mean absolute errors over the loads [%], shape (ways, shown)."""
        return np.asarray(100 * np.abs(np.exp(self.errors) - 1).mean(-1))


def live_errors(
    folder: Path,
    weights: Weights,
    gpu: str,
    seeds: Sequence[int] = SEEDS,
    accepted: Manifest | None = None,
) -> list[Live]:
    """Judge worlds of one GPU.

    Args:
        folder: of the data sets.
        weights: trained on measured requests.
        gpu: of `MODELS`.
        seeds: of the worlds of each model.
        accepted: the files' checksums; of the package if not given.

    Raises:
        OSError: a kernel table is missing.
        ValueError: a kernel table is not the one of the manifest.
    """
    kernels = read_kernels(folder, gpu, accepted)
    powered = kernels if kernels.power else read_kernels(folder, STAND_IN, accepted)
    return [live(kernels, powered, weights, name, seed) for name in MODELS[gpu] for seed in seeds]


def live(kernels: Kernels, powered: Kernels, weights: Weights, name: str, seed: int) -> Live:
    """Judge one world.

    Args:
        kernels: of its GPU.
        powered: those whose power is taken where the GPU's was not measured.
        weights: trained on measured requests.
        name: of the model.
        seed: of the world and its requests.
    """
    model, gpu = built_in_model(name), kernels.gpu
    random = np.random.default_rng([*f"{gpu.name} {name}".encode(), seed])
    world = KernelWorld(kernels, powered, model, Draws.of(random))
    place = Deployment(model, gpu, 1, *ENGINE, max_num_batched_tokens=world.token_budget)
    bound = BoundGnn(without_kernels(weights), place)
    made = batches(varied_requests(SHOWN[-1], random), world.token_budget)
    played = play(world, made, random)
    seen = list(lessons(world, played, random))
    columns = [learnt(weights, bound, _until(played, seen, shown)) for shown in SHOWN]
    truth = np.array([true_joules(world, *load) for load in LOADS])
    return Live(gpu.name, name, seed, np.log(np.stack(columns, axis=1) / truth))


def without_kernels(weights: Weights) -> Weights:
    """As if no kernel of any GPU had been measured: the worlds are made of these."""
    return replace(weights, physics=replace(weights.physics, kernels={}))


def _until(played: Played, seen: Sequence[Lesson], shown: int) -> list[Lesson]:
    """Lessons that began before so many requests had ended."""
    until_s = played.request_ends_s[shown - 1] if shown else -np.inf
    return [lesson for lesson in seen if lesson.start_s <= until_s]


def learnt(weights: Weights, bound: BoundGnn, seen: Sequence[Lesson]) -> Floats:
    """Estimates of the `LOADS` in joules, in each of the `WAYS`, shape (ways, loads)."""
    posterior = FactorPosterior(weights.physics, bound.prior)
    for lesson in seen:
        posterior.observe(lesson.steps, lesson.boards, lesson.seconds)
    bound.adopt(posterior.record(len(seen)))
    phases = bound.phases(*np.array(LOADS, np.float64).T)
    told = phases.prefill_joules + phases.decode_joules
    before = told / phases.calibration
    return np.stack((told, _common_factor(weights, bound.prior, seen) * before, before))


def _common_factor(weights: Weights, prior: Prior, seen: Sequence[Lesson]) -> float:
    """Counted / expected joules of all that was seen."""
    if not seen:
        return 1.0
    laws = [np.exp(expected(weights.physics, prior.mean, lesson.steps).boards) for lesson in seen]
    return float(sum(lesson.boards for lesson in seen) / sum(laws))


def true_joules(world: KernelWorld, concurrency: int, prompt: int, output: int) -> float:
    """Of a request among its like, without noise, when the GPU is warm."""
    requests = equal_requests(concurrency, prompt, output)
    costs = world.costs(batches(requests, world.token_budget).rows)
    return warm(world, costs.joules.sum(), costs.seconds.sum()) / concurrency


@dataclass(slots=True)
class _Window:
    """Ticks that are joined."""

    start_s: float
    steps: list[Steps] = field(default_factory=list)
    joules: float = 0.0
    busy_s: float = 0.0
    idle_s: float = 0.0

    def add(self, tick: Tick, steps: Steps, busy_s: float) -> None:
        self.steps.append(steps)
        self.joules += tick.joules
        self.busy_s += busy_s
        self.idle_s += tick.end_s - tick.start_s - busy_s

    def lesson(self, idle_watts: float, board_watts: float) -> Lesson:
        columns = zip(*((steps.terms, steps.parts) for steps in self.steps), strict=True)
        boards = (self.joules - idle_watts * self.idle_s) / board_watts
        steps = Steps(*map(np.concatenate, columns))
        return Lesson(self.start_s, steps, boards, self.busy_s)


def lessons(world: KernelWorld, played: Played, random: np.random.Generator) -> Iterator[Lesson]:
    """What the counter's ticks and the engine's steps say, at least `LEAST_BUSY_S` at a time.

    Idle power is the data sheet's until a tick without work was seen, then the mean of such.
    """
    matrix = term_matrix(world.model, world.gpu, 1, ENGINE[0])
    terms = step_sums(played.rows, step_costs(world.model)) @ matrix.T
    idle, window = _Window(0.0), None
    for tick in ticks(played, random):
        steps, busy_s = _steps_in(tick, played, terms)
        if not busy_s and window is None:
            idle.add(tick, steps, busy_s)
            continue
        window = window or _Window(tick.start_s)
        window.add(tick, steps, busy_s)
        if window.busy_s >= LEAST_BUSY_S:
            idle_watts = idle.joules / idle.idle_s if idle.idle_s else world.gpu.idle_watts
            yield window.lesson(idle_watts, world.gpu.board_watts)
            window = None


def _steps_in(tick: Tick, played: Played, terms: Floats) -> tuple[Steps, float]:
    """The steps of a tick, as far as they lie in it, and their seconds."""
    first = np.searchsorted(played.end_s, tick.start_s, side="right")
    part = slice(first, np.searchsorted(played.start_s, tick.end_s))
    start_s, end_s = played.start_s[part], played.end_s[part]
    inside_s = np.minimum(end_s, tick.end_s) - np.maximum(start_s, tick.start_s)
    return Steps(terms[part], inside_s / (end_s - start_s)), float(inside_s.sum())


def ticks(played: Played, random: np.random.Generator) -> Sequence[Tick]:
    """Of the counter; nothing is known of its lag."""
    counter = GpuCounter(TICK_S, None)
    for reading in readings(played, random):
        counter.observe(reading)
    counter.close()
    return list(counter.ticks)
