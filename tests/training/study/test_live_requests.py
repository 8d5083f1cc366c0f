"""Worlds made of kernel tables: measured shapes, conserved joules, and live requests that teach."""

from collections.abc import Mapping
from functools import cache
from itertools import product

import numpy as np
import pytest

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.predictor.gnn import shipped_weights
from llm_carbon_meter.training.data.kernel_tables import KernelTable
from llm_carbon_meter.training.study.evaluate.figures import live_figures
from llm_carbon_meter.training.study.kernel_curves import (
    LIGHTEST_WATTS,
    Kernels,
    Latency,
    Work,
    has_kernels,
)
from llm_carbon_meter.training.study.kernel_world import Draws, KernelWorld
from llm_carbon_meter.training.study.live_requests import (
    LEAST_BUSY_S,
    LOADS,
    SHOWN,
    STATED,
    WAYS,
    Live,
    lessons,
    live,
    ticks,
    true_joules,
)
from llm_carbon_meter.training.study.world_play import (
    PAUSE_S,
    Asked,
    Played,
    batches,
    equal_requests,
    play,
    readings,
    varied_requests,
)

MODEL = "Llama-3.1-8B"
GPU = "H200"
SLOWER = 1.3
"""Than the data sheet's peaks together."""


def table(op: str, sizes: Mapping[str, tuple[float, ...]], model: ModelSpec) -> KernelTable:
    """Kernels that need each peak of the data sheet for a time, and then `SLOWER`."""
    gpu, grid = gpu_spec(GPU), np.array(list(product(*sizes.values())))
    columns = dict(zip(sizes, grid.T, strict=True))
    many = len(grid)
    columns |= {
        "dtype": np.full(many, "bfloat16"),
        "kv_cache_dtype": np.full(many, "bfloat16"),
        "kernel_source": np.full(many, "made"),
        "window_size": np.full(many, "0"),
        "num_heads": np.full(many, float(model.num_heads)),
        "num_key_value_heads": np.full(many, float(model.num_kv_heads)),
        "head_dim": np.full(many, float(model.head_dim)),
    }
    if op == "gemm":
        m, n, k = (columns[name] for name in ("m", "n", "k"))
        operations, moved = 2 * m * n * k, 2 * (n * k + m * (n + k))
    else:
        tokens = columns["batch_size"] * columns["input_tokens_per_sequence"]
        length = columns["input_tokens_per_sequence"] + columns["context_step_tokens"]
        operations = 4 * tokens * length * model.num_heads * model.head_dim
        moved = 4 * columns["batch_size"] * length * model.num_kv_heads * model.head_dim
    seconds = operations / gpu.compute_ops_per_s + moved / gpu.bandwidth_bytes_per_s
    load = np.minimum(moved / gpu.bandwidth_bytes_per_s / seconds, 1.0)
    watts = gpu.board_watts * (0.9 - 0.2 * load)
    latency_s = SLOWER * seconds + 3e-6
    readings = np.full(many, 9)
    return KernelTable(
        "", GPU, "0", op, columns, np.zeros(many, int), latency_s, watts, readings, 0
    )


@cache
def kernels() -> Kernels:
    """Of a made-up engine."""
    model = built_in_model(MODEL)
    lengths = tuple(4.0**power for power in range(8))
    batch = {"batch_size": (1.0, 4.0, 16.0, 64.0)}
    tables = {
        "gemm": {"m": lengths, "n": (1024.0, 8192.0, 65536.0), "k": (1024.0, 16384.0)},
        "context_attention": {
            **batch,
            "input_tokens_per_sequence": lengths,
            "context_step_tokens": (0.0,),
        },
        "generation_attention": {
            **batch,
            "input_tokens_per_sequence": (1.0,),
            "context_step_tokens": lengths,
        },
    }
    made = {op: table(op, sizes, model) for op, sizes in tables.items()}
    return Kernels.of(made, gpu_spec(GPU))


@cache
def world() -> KernelWorld:
    """Of the made-up kernels."""
    draws = Draws.of(np.random.default_rng(0))
    return KernelWorld(kernels(), kernels(), built_in_model(MODEL), draws)


@cache
def played() -> Played:
    """Twelve requests."""
    random = np.random.default_rng(1)
    return play(world(), batches(varied_requests(12, random), 2048), random)


def test_a_measured_shape_takes_what_was_measured() -> None:
    """Between two shapes it is their geometric mean, at the middle of their logarithms."""
    sizes = np.array([[1.0, 1.0], [1.0, 100.0], [4.0, 1.0], [4.0, 100.0]]).T
    latency = Latency.of(sizes, np.array([1.0, 2.0, 3.0, 8.0]))
    assert latency.seconds(*sizes) == pytest.approx([1.0, 2.0, 3.0, 8.0])
    assert latency.seconds(1.0, 10.0) == pytest.approx(2**0.5)
    assert latency.seconds(2.0, 100.0) == pytest.approx(4.0)
    assert latency.seconds(0.5, 1.0) == pytest.approx(1.0)


def test_a_missing_corner_grows_from_the_next_smaller_size() -> None:
    """Shapes that did not fit into memory have no rows."""
    latency = Latency.of(
        np.array([[1.0, 1.0], [1.0, 8.0], [4.0, 1.0]]).T, np.array([1.0, 5.0, 2.0])
    )
    assert latency.seconds(4.0, 8.0) == pytest.approx(20.0)


def test_power_is_that_of_alike_kernels() -> None:
    """And little more than idle power where nothing is achieved, for lack of kernels there."""
    power = kernels().power["gemm"]
    gpu, second = power.gpu, np.ones(1)
    streaming = Work(0.1 * second * gpu.compute_ops_per_s, 0.7 * second * gpu.bandwidth_bytes_per_s)
    assert power.watts(streaming, second) == pytest.approx(0.72 * gpu.board_watts, rel=0.05)
    idle = power.watts(Work(0 * second, 0 * second), second)
    assert LIGHTEST_WATTS[GPU] <= idle < 0.3 * gpu.board_watts


def test_requests_are_batched_in_chunks() -> None:
    """Every prompt is computed once, every token but the last is too, and the budget holds."""
    asked = [Asked(5000, 3, 4), Asked(10, 2, 4)]
    made = batches(asked, 2048)
    assert made.rows.new_tokens.sum() == 5000 + 2 + 10 + 1
    assert made.rows.per_step(made.rows.new_tokens).max() == 2048
    assert made.rows.sampled.sum() == 5
    assert made.after_idle.tolist() == [True, False, False, False, False]
    assert len(made.ends) == 2


def test_a_request_waits_until_few_enough_are_running() -> None:
    """Single requests come one after the other, each after a pause."""
    made = batches([Asked(100, 4, 0)] * 3, 2048)
    assert made.rows.counts.tolist() == [1] * 12
    assert made.after_idle.sum() == 3


def test_the_counter_loses_no_joules() -> None:
    """Its ticks add up to what it showed, which is what was drawn but for the lag."""
    seen = readings(played(), np.random.default_rng(2))
    counted = sum(tick.joules for tick in ticks(played(), np.random.default_rng(2)))
    assert counted == pytest.approx(seen[-1].joules - seen[0].joules)
    most = world().gpu.board_watts * 1.2 * 0.3
    assert played().joules[-1] - most < counted <= played().joules[-1]


def test_lessons_hold_every_step_once() -> None:
    """But for what comes after the last of them."""
    taught = list(lessons(world(), played(), np.random.default_rng(2)))
    parts = sum(lesson.steps.parts.sum() for lesson in taught)
    assert len(played().end_s) * 0.8 < parts <= len(played().end_s) + 1e-6
    assert min(lesson.seconds for lesson in taught) >= LEAST_BUSY_S
    busy_s = (played().end_s - played().start_s).sum()
    assert sum(lesson.seconds for lesson in taught) <= busy_s + 1e-6


def test_company_makes_a_request_cheaper() -> None:
    """Weights are streamed for all of a batch."""
    alone, among = (true_joules(world(), batch, 256, 64) for batch in (1, 16))
    assert among < alone / 3


def test_a_step_takes_at_least_its_weights() -> None:
    """They come from memory, even where a repeated kernel would find them in the cache."""
    rows = batches(equal_requests(1, 1, 2), 2048).rows
    model, gpu = built_in_model(MODEL), world().gpu
    costs = step_costs(model)
    least_s = (costs.weight_bytes + costs.head_bytes) / gpu.bandwidth_bytes_per_s
    assert (world().costs(rows).seconds > least_s).all()
    pauses = played().start_s[0]
    assert PAUSE_S[0] <= pauses <= PAUSE_S[1]


@cache
def judged() -> Live:
    """One world of made-up kernels."""
    return live(kernels(), kernels(), shipped_weights(), MODEL, 0)


def test_live_requests_correct_the_estimates() -> None:
    """After twenty the error is below that of what was expected at the start."""
    apes = judged().apes
    assert apes.shape == (len(WAYS), len(SHOWN))
    posterior, one_factor, nothing = apes
    assert posterior[0] == one_factor[0] == nothing[0]
    assert nothing == pytest.approx(nothing[0])
    assert posterior[SHOWN.index(STATED)] < 0.7 * nothing[0]
    assert posterior[-1] < one_factor[-1]


def test_figures_are_means_over_worlds() -> None:
    """With intervals over GPUs and models; a single one has none."""
    figures = live_figures([judged(), judged()])
    assert (figures["worlds"], figures["loads"]) == (2, len(LOADS))
    stated = figures["shown"][str(STATED)]["posterior"]
    assert stated["value"] == pytest.approx(judged().apes[0, SHOWN.index(STATED)], abs=0.01)
    assert stated["low"] is None
    assert figures["stated"] == {f"{GPU}, {MODEL}": stated["value"]}


def test_a_folder_without_kernels_has_no_worlds() -> None:
    """The package's own manifest has the tables of all GPUs."""
    assert has_kernels(GPU)
    assert not has_kernels(GPU, {})
