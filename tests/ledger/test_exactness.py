"""The closed form of a step's division, against the Shapley value by its definition and its axioms.

For costs that add up the two are the same; for costs that do not, the gap is measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.ledger.attribution import shapley_weights
from llm_carbon_meter.ledger.token_shares import LinearJoules
from llm_carbon_meter.physics.kernels import StepCosts
from llm_carbon_meter.physics.step_coefficients import LOADS, StepCoefficients, sheet_coefficients
from llm_carbon_meter.physics.step_work import (
    ATTENTION,
    CACHE,
    HEAD,
    LAUNCH_S,
    PARTS,
    SEQUENCE_S,
    CostModel,
    Floats,
    StepRows,
    step_work,
)
from tests.fairness.ranges import draw
from tests.fairness.truth import RooflineGpu
from tests.support.shapley import shapley_of
from tests.support.steps.cost_models import GEMMA, H100, LLAMA, MIXTRAL

Row = tuple[int, int, int]
"""New tokens, cached tokens, sampled positions."""
Cost = Callable[[Sequence[Row]], float]

a_row = st.builds(
    lambda new, cached, sampled: (new, cached, min(new, sampled)),
    st.integers(1, 4096),
    st.integers(0, 8192),
    st.integers(0, 6),
)
a_plain_row = st.builds(
    lambda new, cached, sampled: (new, cached, sampled),
    st.integers(1, 4096),
    st.integers(0, 8192),
    st.integers(0, 1),
)
a_step = st.lists(a_row, min_size=1, max_size=8)
a_model = st.sampled_from([LLAMA, GEMMA])
a_factor = st.floats(0.1, 5.0)
some_watts = st.floats(1.0, 500.0)


@st.composite
def some_coefficients(draw_one: st.DrawFn) -> StepCoefficients:
    """Of a GPU that may be very unlike its data sheet."""
    seconds = np.array([draw_one(a_factor) for _ in range(PARTS)])
    loads = np.array([draw_one(some_watts) for _ in LOADS])
    return StepCoefficients(seconds, draw_one(some_watts), loads, 70.0, 70.0, 700.0)


def columns(step: Sequence[Row]) -> tuple[Floats, Floats, Floats]:
    """Columns of a step."""
    new, cached, sampled = np.array(step, np.float64).T
    return new, cached, sampled


def weights_of(
    step: Sequence[Row], seconds: float, model: CostModel, coefficients: StepCoefficients
) -> Floats:
    """The closed form, for a single step."""
    rows = StepRows(np.array([len(step)], np.intp), *columns(step))
    return shapley_weights(rows, step_work(rows, model), np.array([seconds]), coefficients)


def modelled_cost(model: CostModel, coefficients: StepCoefficients) -> Cost:
    """What a set of requests costs by the coefficients, from the physics one by one."""
    costs, gpu = model.costs, model.gpu
    assert costs is not None
    seconds, static, loads = (
        coefficients.seconds,
        coefficients.static_watts,
        coefficients.load_watts,
    )
    linear = LinearJoules.of(model, coefficients)

    def cost(step: Sequence[Row]) -> float:
        new, cached, sampled = columns(step)
        joules = static * (LAUNCH_S * seconds[0] + SEQUENCE_S * seconds[1] * len(step))
        joules += float(linear.at(new.sum()))
        moved = costs.head_bytes * (sampled.sum() > 0) + costs.bytes_per_sample * sampled.sum()
        computed = costs.ops_per_sample * sampled.sum() / gpu.compute_ops_per_s
        head_s = max(moved / gpu.bandwidth_bytes_per_s, computed)
        joules += (static + loads[0]) * seconds[HEAD] * head_s
        attended = costs.attention_operations(new, cached).sum() / gpu.compute_ops_per_s
        joules += (static + loads[3]) * seconds[ATTENTION] * attended
        read_s = costs.kv_bytes(new, cached).sum() / gpu.bandwidth_bytes_per_s
        return float(joules + (static + loads[4]) * seconds[CACHE] * read_s)

    return cost


def expected_seconds(
    step: Sequence[Row], model: CostModel, coefficients: StepCoefficients
) -> float:
    """Of a single step."""
    work = step_work(StepRows(np.array([len(step)], np.intp), *columns(step)), model)
    assert work is not None
    return float(coefficients.seconds @ work.basis[:, 0])


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from([LLAMA, GEMMA, MIXTRAL]),
    coefficients=some_coefficients(),
    step=st.lists(a_plain_row, min_size=1, max_size=5),
)
def test_closed_form_is_the_shapley_value_of_up_to_five_requests(
    model: CostModel, coefficients: StepCoefficients, step: list[Row]
) -> None:
    """Over all subsets, to nine digits; what a step's rest costs is scaled to the whole."""
    cost = modelled_cost(model, coefficients)
    seconds = expected_seconds(step, model, coefficients)
    closed = weights_of(step, seconds, model, coefficients)
    assert closed.sum() == pytest.approx(cost(step), rel=1e-6)
    assert closed.tolist() == pytest.approx(shapley_of(cost, step), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from([LLAMA, MIXTRAL]),
    chunks=st.lists(st.integers(2, 2048), min_size=1, max_size=8),
    decodes=st.integers(0, 4),
)
def test_more_requests_are_shared_nearly_as_all_subsets_say(
    model: CostModel, chunks: list[int], decodes: int
) -> None:
    """Beyond the four largest the others are there in part: within four hundredths of the step."""
    step = [(new, 0, 0) for new in chunks] + [(1, 500, 0)] * decodes
    coefficients = sheet_coefficients(model.gpu)
    cost = modelled_cost(model, coefficients)
    closed = weights_of(step, expected_seconds(step, model, coefficients), model, coefficients)
    exact = np.array(shapley_of(cost, step[:9]))
    if len(step) <= 9:
        assert closed / closed.sum() == pytest.approx(exact / exact.sum(), abs=0.04)


def true_shapley(gpu: RooflineGpu, step: Sequence[Row]) -> Floats:
    """Of the simulator's cost, over all subsets."""

    def cost(members: Sequence[Row]) -> float:
        return float(gpu.cost(gpu.work(*columns(members)).total())[1])

    return np.array(shapley_of(cost, step))


MIXED: Sequence[Row] = [(512, 512, 0), (1, 100, 1), (1, 1000, 1), (1, 4000, 1)]
DECODES: Sequence[Row] = [(1, 100 * number, 1) for number in range(1, 9)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("step", [MIXED, DECODES], ids=["mixed", "decodes"])
def test_sampled_truth_is_the_exact_one(seed: int, step: Sequence[Row]) -> None:
    """Permutations find what all subsets give, far below the errors that are judged by it."""
    gpu = RooflineGpu.of(draw(seed))
    exact = true_shapley(gpu, step)
    work = gpu.work(*columns(step))
    halves = [gpu.causes(work, np.random.default_rng(n)) for n in range(4)]
    sampled = np.mean(halves, axis=(0, 1))
    assert sampled == pytest.approx(exact, rel=0.01)
    assert sampled.sum() == pytest.approx(float(gpu.cost(work.total())[1]), rel=1e-9)


GAPS = {"mixed": 0.19, "decodes": 0.006}
"""How far a share at the data sheet's coefficients is from the truth of a GPU that saturates and
whose times do not add up, as a part of the step: measured over eight worlds. Little where requests
are alike; most (0.18) where the GPU is far from its peaks."""


@pytest.mark.parametrize(("name", "step"), [("mixed", MIXED), ("decodes", DECODES)])
@pytest.mark.parametrize("seed", range(8))
def test_gap_to_a_cost_that_does_not_add_up(seed: int, name: str, step: Sequence[Row]) -> None:
    """The closed form's distance from the simulator's Shapley value is known and bounded."""
    gpu = RooflineGpu.of(draw(seed))
    exact = true_shapley(gpu, step)
    seconds = float(gpu.cost(gpu.work(*columns(step)).total())[0])
    model = CostModel(gpu.sheet, gpu.costs)
    closed = weights_of(step, seconds, model, sheet_coefficients(gpu.sheet))
    gap = float(np.abs(closed / closed.sum() - exact / exact.sum()).max())
    assert gap < GAPS[name]


sheet_models = st.sampled_from([LLAMA, GEMMA, MIXTRAL])
a_duration = st.floats(1e-4, 2.0)


@given(model=sheet_models, step=a_step, seconds=a_duration)
def test_equal_requests_pay_the_same(model: CostModel, step: list[Row], seconds: float) -> None:
    """Symmetry: who brings the same work causes the same."""
    weights = weights_of([*step, step[0]], seconds, model, sheet_coefficients(model.gpu))
    assert weights[0] == weights[-1]


@given(model=a_model, coefficients=some_coefficients(), step=a_step)
def test_who_adds_nothing_pays_for_nothing_but_being_there(
    model: CostModel, coefficients: StepCoefficients, step: list[Row]
) -> None:
    """Dummy: a request without any work pays its part of what all share, and no more."""
    step = [*step, (0, 0, 0)]
    weights = weights_of(step, 1e-6, model, coefficients)
    assert weights[-1] <= weights.min() * (1 + 1e-12)
    launches = LAUNCH_S * coefficients.seconds[0] / len(step) + SEQUENCE_S * coefficients.seconds[1]
    first = LinearJoules.of(model, coefficients).joules[0] / len(step)
    assert weights[-1] == pytest.approx(coefficients.static_watts * launches + first, rel=1e-9)


@given(
    model=sheet_models,
    step=a_step,
    more=st.integers(1, 2048),
    seconds=a_duration,
    column=st.sampled_from([0, 1]),
)
def test_more_work_never_costs_less(
    model: CostModel, step: list[Row], more: int, seconds: float, column: int
) -> None:
    """Monotonicity: more new tokens or a longer context raise a request's share, or keep it."""
    first = list(step[0])
    first[column] += more
    coefficients = sheet_coefficients(model.gpu)
    before = weights_of(step, seconds, model, coefficients)
    after = weights_of([(first[0], first[1], first[2]), *step[1:]], seconds, model, coefficients)
    assert after[0] / after.sum() >= before[0] / before.sum() * (1 - 1e-9)


@given(coefficients=some_coefficients(), new=st.integers(1, 512), cached=st.integers(1, 8192))
def test_cached_tokens_cost_their_reads_and_nothing_else(
    coefficients: StepCoefficients, new: int, cached: int
) -> None:
    """A prefix that is in the cache adds KV reads, and being attended to by the new tokens."""
    costs = _costs(LLAMA)
    seconds = coefficients.seconds.copy()
    seconds[ATTENTION] = 0.0  # what is left of a cached token is its reads
    free = replace(coefficients, seconds=seconds)
    extra = weights_of([(new, cached, 1)], 1e-6, LLAMA, free)[0]
    extra -= weights_of([(new, 0, 1)], 1e-6, LLAMA, free)[0]
    read_s = costs.bytes_per_kv * cached / H100.bandwidth_bytes_per_s
    watts = coefficients.static_watts + coefficients.load_watts[LOADS.index("cache")]
    assert extra == pytest.approx(watts * coefficients.seconds[CACHE] * read_s, rel=1e-6)


def _costs(model: CostModel) -> StepCosts:
    assert model.costs is not None
    return model.costs
