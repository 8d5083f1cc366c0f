"""Worlds of measured kernels, and the loads that they serve."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from llm_carbon_meter.records import Account
from tests.support.shapley import shapley_of

from .engine import Served, serve
from .gpus import TrueGpu, true_gpu
from .kernel_truth import KernelGpu
from .loads import ALL, SPECIAL, Load
from .ranges import KEPT_OUT, KERNEL_DEPLOYMENTS, KERNEL_RANGES, World, draw_kernels
from .traffic import arrivals

pytestmark = pytest.mark.usefixtures("public_data")

SECONDS = 6.0
DENSE, EXPERTS = 0, 1
"""Seeds of a dense model on H200 and of a mixture of experts on H100."""


def world_of(seed: int) -> World:
    """Of a seed."""
    return draw_kernels(seed, KERNEL_DEPLOYMENTS)


@cache
def gpu_of(seed: int) -> TrueGpu:
    """Of a seed's world."""
    return true_gpu(world_of(seed))


@cache
def served(name: str, seed: int = DENSE) -> Served:
    """A short run under a load."""
    (load,) = (load for load in ALL if load.name == name)
    return serve(world_of(seed), load, SECONDS)


def accounts(run: Served) -> set[Account]:
    """On which a run's steps are."""
    return {Account(account) for step in run.steps for account in step.event.accounts}


def test_a_seed_names_a_world_of_kernels_within_the_ranges() -> None:
    """The same seed is the same world; every value lies in its range; one GPU is kept out."""
    assert world_of(3) == world_of(3) != world_of(11)
    for seed in range(20):
        values = world_of(seed).values
        assert all(low <= values[name] <= high for name, (low, high) in KERNEL_RANGES.items())
    assert {gpu for gpu, *_ in KEPT_OUT}.isdisjoint(gpu for gpu, *_ in KERNEL_DEPLOYMENTS)


@pytest.mark.parametrize("seed", [DENSE, EXPERTS])
def test_causes_are_the_shapley_value_of_every_subset(seed: int) -> None:
    """A chunk of a prompt beside decodes: marginal costs over all subsets."""
    gpu = gpu_of(seed)
    rows = [(700, 0, 0), (1, 900, 1), (1, 40, 1), (1, 6000, 1)]

    def joules(members: Sequence[tuple[int, int, int]]) -> float:
        return float(gpu.cost(gpu.work(*np.array(members, float).T).total())[1])

    work = gpu.work(*np.array(rows, float).T)
    first, second = gpu.causes(work, np.random.default_rng(0))
    exact = shapley_of(joules, rows)
    assert (first + second) / 2 == pytest.approx(exact, rel=0.02)
    assert first.sum() == pytest.approx(float(gpu.cost(work.total())[1]), rel=1e-9)


@pytest.mark.parametrize("seed", [DENSE, EXPERTS])
def test_a_gpu_of_kernels_stays_below_its_limit_and_above_idle(seed: int) -> None:
    """Whatever a step does; and nothing costs nothing."""
    gpu = gpu_of(seed)
    for rows in ([(1, 500, 1)], [(1, 500, 1)] * 64, [(8000, 0, 1)], [(2000, 0, 0), (1, 9, 1)]):
        seconds, joules = gpu.cost(gpu.work(*np.array(rows, float).T).total())
        assert gpu.idle_watts < joules / seconds <= gpu.sheet.limit_watts
    empty = gpu.work(*np.zeros((3, 1))).total()
    assert gpu.cost(type(empty)(*(0 * column for column in empty))) == (0.0, 0.0)


def test_two_gpus_share_the_work_and_exchange_results() -> None:
    """Half of the weights each: less than half the time is saved."""
    world = draw_kernels(0, (("H100", "Llama-3.1-8B", 2),))
    one, two = (true_gpu(draw_kernels(0, (("H100", "Llama-3.1-8B", group),))) for group in (1, 2))
    assert isinstance(two, KernelGpu)
    assert world.tensor_parallel == 2
    rows = np.array([(2000, 0, 1)], float).T
    alone, shared = (float(gpu.cost(gpu.work(*rows).total())[0]) for gpu in (one, two))
    assert alone / 2 < shared < alone


def test_drafts_are_sampled_and_some_are_wrong() -> None:
    """A decode step has up to three more tokens, and answers come in fewer steps than tokens."""
    run = served("speculative")
    sampled = [max(step.event.num_sampled) for step in run.steps]
    assert max(sampled) == 4
    tokens = sum(end.output_tokens for end in run.ends if end.outcome == "finished")
    drafted = sum(
        sum(n for n, a in zip(s.event.num_sampled, s.event.accounts, strict=True) if n > 1 or a)
        for s in run.steps
    )
    assert tokens < drafted


def test_halves_of_a_disaggregated_server_have_one_phase() -> None:
    """One computes prompts alone, and the other begins with all but one token of each."""
    assert Account.DECODE not in accounts(served("prefill half"))
    decode = served("decode half")
    longest = max(max(step.event.num_scheduled_tokens) for step in decode.steps)
    assert longest == 1
    assert Account.DECODE in accounts(decode)


def test_loads_are_what_their_names_say() -> None:
    """Bursts leave the GPU idle, long contexts are long, prefixes are cached, prompts are alone."""
    ends = served("cached prefixes").ends
    shares = [end.cached_tokens / end.prompt_tokens for end in ends if end.prompt_tokens > 1000]
    assert np.median(shares) == pytest.approx(0.8, abs=0.03)
    assert max(end.prompt_tokens for end in served("long contexts").ends) > 10_000
    assert {len(step.event.request_ids) for step in served("prompts alone").steps} == {1}
    assert max(len(step.event.request_ids) for step in served("bursts").steps) > 8
    steps = served("bursts").steps
    busy_s = sum(step.end_s - step.start_s for step in steps)
    assert busy_s < 0.9 * (steps[-1].end_s - steps[0].start_s)


def test_arrivals_swing() -> None:
    """By turns a tenth of the requests come in as much time as all others; none is lost."""
    (load,) = (load for load in SPECIAL if load.swing_s)
    even = Load("even", load.concurrency)
    assert load.swing_s is not None
    world, until_s = world_of(DENSE), 4 * load.swing_s
    swung, plain = (arrivals(world, one, 5.0, until_s) for one in (load, even))
    quiet = [request for request in swung if request.arrived_s % (2 * load.swing_s) < load.swing_s]
    assert len(quiet) / len(swung) == pytest.approx(1 / 11, abs=0.06)
    assert len(swung) == pytest.approx(len(plain), rel=0.2)
