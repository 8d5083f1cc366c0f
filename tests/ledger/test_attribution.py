"""Shares of a step under every policy, and the watts of a step."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.ledger.attribution import (
    POLICIES,
    allreduce_shares,
    shapley_weights,
    shares,
    step_loads,
    step_watts,
)
from llm_carbon_meter.ledger.token_shares import LinearJoules
from llm_carbon_meter.physics.gpu_specs import at_limit
from llm_carbon_meter.physics.kernels import StepCosts
from llm_carbon_meter.physics.step_coefficients import (
    AWAKE_LOAD,
    LOADS,
    USUAL_LOADS,
    USUAL_SECONDS,
    StepCoefficients,
    sheet_coefficients,
)
from llm_carbon_meter.physics.step_work import PARTS, CostModel, Floats, StepRows, step_work
from tests.support.shapley import shapley_of
from tests.support.steps.cost_models import GEMMA, H100, LLAMA, MIXTRAL, UNKNOWN
from tests.support.steps.rows import MIXED, Row

UNITS = replace(
    H100,
    compute_ops_per_s=1.0,
    bandwidth_bytes_per_s=1.0,
    limit_watts=1.0,
    idle_watts=0.0,
)
"""One operation and one byte a second."""
BYTES_ONLY = StepCoefficients(
    np.array([0.0, 0.0, *(1.0,) * (PARTS - 2)]), 0.0, np.ones(len(LOADS)), 0.0, 0.0, 1e12
)
"""One joule per byte at the peak of a second each, and no launches: what is left are bytes."""
MODELS = {"dense": LLAMA, "windowed": GEMMA, "experts": MIXTRAL, "unknown": UNKNOWN}


def rows_of(*steps: Sequence[Row]) -> StepRows:
    """Steps as columns."""
    flat = [row for step in steps for row in step]
    return StepRows(
        np.array([len(step) for step in steps], np.intp),
        np.array([row.new for row in flat], np.float64),
        np.array([row.cached for row in flat], np.float64),
        np.array([row.sampled for row in flat], np.float64),
    )


def divided_by(policy: str, rows: StepRows, seconds: Sequence[float], model: CostModel) -> Floats:
    """Shares at the data sheet's coefficients."""
    work, coefficients = step_work(rows, model), sheet_coefficients(model.gpu)
    return shares(policy, rows, work, np.array(seconds), coefficients)


def one_step(policy: str, step: Sequence[Row], model: CostModel, seconds: float = 0.02) -> Floats:
    """The shares of a single step."""
    return divided_by(policy, rows_of(step), [seconds], model)


def weights_of(
    rows: StepRows, seconds: float, model: CostModel, coefficients: StepCoefficients
) -> Floats:
    """Joules by the default policy, before they are scaled to the counter's."""
    return shapley_weights(rows, step_work(rows, model), np.array([seconds]), coefficients)


def watts_of(*steps: Sequence[Row], model: CostModel = LLAMA) -> Floats:
    """Expected power at the data sheet's coefficients."""
    rows, coefficients = rows_of(*steps), sheet_coefficients(model.gpu)
    return step_watts(step_loads(rows, step_work(rows, model), coefficients), coefficients)


a_row = st.builds(
    lambda new, cached, sampled: Row(new, cached, min(new, sampled)),
    st.integers(0, 4096),  # a step that is made up may have none
    st.integers(0, 8192),
    st.integers(0, 6),
)
a_step = st.lists(a_row, min_size=1, max_size=12)
a_model = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)
a_duration = st.floats(1e-4, 2.0)


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    model=a_model,
    timed=st.lists(st.tuples(a_step, a_duration), min_size=1, max_size=5),
)
def test_shares_of_every_step_add_up_to_one(
    policy: str, model: CostModel, timed: list[tuple[list[Row], float]]
) -> None:
    """Whatever the policy and the model, a step is divided completely and nobody is paid."""
    rows = rows_of(*(step for step, _ in timed))
    divided = divided_by(policy, rows, [seconds for _, seconds in timed], model)
    assert rows.per_step(divided) == pytest.approx(np.ones(len(timed)), rel=1e-12)
    assert (divided > 0).all()


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    model=a_model,
    timed=st.lists(st.tuples(a_step, a_duration), min_size=2, max_size=4),
)
def test_steps_do_not_see_each_other(
    policy: str, model: CostModel, timed: list[tuple[list[Row], float]]
) -> None:
    """Many steps at once give what each gives alone."""
    rows = rows_of(*(step for step, _ in timed))
    together = divided_by(policy, rows, [seconds for _, seconds in timed], model)
    alone = np.concatenate([one_step(policy, step, model, seconds) for step, seconds in timed])
    assert together == pytest.approx(alone, rel=1e-12)


def plain_costs(**values: float) -> StepCosts:
    """A model in which everything is free that is not named."""
    names = [name for name in StepCosts.__slots__ if name not in values]
    free = dict.fromkeys(names, 0)
    return StepCosts(**{**free, "sliding_window": None, **values})  # type: ignore[arg-type]


def test_vector_of_the_reference() -> None:
    """F = 10 J and m = (1, 2, 3) J give (4.333333, 5.333333, 6.333333)."""
    model = CostModel(UNITS, plain_costs(bytes_per_kv=1.0, weight_bytes=10.0))
    step = rows_of([Row(1, 0, 0), Row(1, 1, 0), Row(1, 2, 0)])
    weights = weights_of(step, 10.0, model, BYTES_ONLY)
    assert weights.tolist() == pytest.approx([10 / 3 + 1, 10 / 3 + 2, 10 / 3 + 3])
    assert weights.sum() == pytest.approx(16)


def test_mixed_step_of_the_reference_by_tokens_and_by_operations() -> None:
    """a chunk of 512 beside three decodes pays 512/515, or 99.36 %."""
    assert one_step("tokens", MIXED, LLAMA)[0] == pytest.approx(512 / 515)
    assert one_step("flops", MIXED, LLAMA)[0] == pytest.approx(0.9936, abs=5e-5)
    assert one_step("equal", MIXED, LLAMA).tolist() == [0.25] * 4


def test_mixed_step_of_the_reference_by_shapley() -> None:
    """a quarter of the layers' weights each, the head by the three decodes."""
    assert LLAMA.costs is not None
    free = ("ops_per_token", "ops_per_context", "ops_per_sample")
    costs = replace(LLAMA.costs, **dict.fromkeys(free, 0.0))
    rows = rows_of(MIXED)
    weights = weights_of(rows, 0.02, CostModel(UNITS, costs), BYTES_ONLY)
    own = costs.activation_bytes(rows.new_tokens, rows.sampled)
    own = own + costs.kv_bytes(rows.new_tokens, rows.cached_tokens)
    assert (weights - own).tolist() == pytest.approx([3489794048] + [3840018432] * 3, rel=1e-3)


@given(policy=st.sampled_from(sorted(POLICIES)), model=a_model, step=a_step, data=st.data())
def test_requests_are_treated_alike(
    policy: str, model: CostModel, step: list[Row], data: st.DataObject
) -> None:
    """Twins pay the same, and the order of a step's requests does not matter."""
    step = [*step, step[0]]
    divided = one_step(policy, step, model)
    assert divided[0] == divided[-1]
    order = data.draw(st.permutations(range(len(step))))
    moved = one_step(policy, [step[i] for i in order], model)
    assert moved == pytest.approx(divided[np.array(order)], rel=1e-12)


@given(
    policy=st.sampled_from(["shapley", "flops", "tokens"]),
    model=st.sampled_from([LLAMA, GEMMA, MIXTRAL]),
    others=a_step,
    prompt=st.integers(2, 4096),
    data=st.data(),
)
def test_a_cached_prefix_costs_less_than_computing_it(
    policy: str, model: CostModel, others: list[Row], prompt: int, data: st.DataObject
) -> None:
    """Of two equal prompts in a step, the one with a hit in the prefix cache pays less."""
    cached = data.draw(st.integers(1, prompt - 1))
    step = [Row(prompt, 0, 1), Row(prompt - cached, cached, 1), *others]
    divided = one_step(policy, step, model)
    assert divided[1] < divided[0]


def test_a_cached_prefix_is_still_read() -> None:
    """A longer context in the cache costs more than a short one, but by its bytes only."""
    divided = one_step("shapley", [Row(1, 10, 1), Row(1, 8000, 1)], LLAMA)
    assert divided[0] < divided[1] < 2 * divided[0]


@pytest.mark.parametrize("policy", ["shapley", "flops", "tokens"])
def test_unknown_model_is_divided_by_tokens(policy: str) -> None:
    """Where the architecture is not known the scheduled tokens decide."""
    assert one_step(policy, MIXED, UNKNOWN).tolist() == pytest.approx(
        [512 / 515, 1 / 515, 1 / 515, 1 / 515]
    )


def test_experts_are_shared_by_who_touches_them() -> None:
    """Three tokens and one: mostly the same experts, so the one pays for more than a quarter."""
    costs = plain_costs(expert_bytes=1.0, num_experts=8, experts_per_token=2)
    rows = rows_of([Row(3, 0, 0), Row(1, 50, 1)])
    weights = weights_of(rows, 1.0, CostModel(UNITS, costs), BYTES_ONLY)
    alone = 8 * (1 - 0.75**3), 8 * (1 - 0.75)
    both = 8 * (1 - 0.75**4)
    mine = [(alone[0] + both - alone[1]) / 2, (alone[1] + both - alone[0]) / 2]
    assert weights.tolist() == pytest.approx(mine)
    assert mine[1] > both / 4


def test_a_longer_step_moves_shares_towards_equal() -> None:
    """Static power is shared equally, so it weighs more the longer a step lasts."""
    step = [Row(512, 0, 1), Row(1, 100, 1)]
    quick, slow = one_step("shapley", step, LLAMA, 0.01), one_step("shapley", step, LLAMA, 1.0)
    assert 0.5 < slow[0] < quick[0]


@given(model=a_model, steps=st.lists(a_step, min_size=1, max_size=4))
def test_step_watts_lie_between_idle_and_board(model: CostModel, steps: list[list[Row]]) -> None:
    """A step draws more than an idle GPU and never more than the board's limit."""
    watts = watts_of(*steps, model=model)
    assert watts.shape == (len(steps),)
    assert (watts > model.gpu.idle_watts).all()
    assert (watts <= model.gpu.board_watts).all()


@given(
    model=st.sampled_from([LLAMA, GEMMA, MIXTRAL]),
    running=st.integers(1, 16),
    context=st.integers(64, 4096),
)
def test_decode_draws_less_than_prefill(model: CostModel, running: int, context: int) -> None:
    """Waiting for memory costs less power than computing."""
    decode = [Row(1, context, 1)] * running
    prefill = [Row(2048, 0, 1)]
    watts = watts_of(decode, prefill, model=model)
    assert watts[0] < watts[1]


def test_decode_of_one_request_draws_little_more_than_memory_does() -> None:
    """Alone, a decode step is bound by memory most of its time, and the GPU waits for the rest."""
    dynamic = H100.board_watts - H100.idle_watts
    (watts,) = watts_of([Row(1, 100, 1)])
    moving = H100.idle_watts + (AWAKE_LOAD + USUAL_LOADS[0]) * dynamic
    assert 0.8 * moving < watts < moving


def test_unknown_model_draws_a_middling_load() -> None:
    """Without an architecture every step draws the same: as if it moved bytes."""
    watts = watts_of([Row(1, 0, 1)], [Row(4096, 0, 1)], model=UNKNOWN)
    assert watts.tolist() == pytest.approx([70 + 0.65 * 630] * 2)


def test_exchanges_take_the_time_that_the_link_needs() -> None:
    """Bytes over the link's speed, as a share of the step; a step is never more than exchanges."""
    costs = MIXTRAL.costs
    assert costs is not None
    rows = rows_of([Row(100, 0, 1)], [Row(1, 500, 1)], [Row(4096, 0, 1)])
    sent = costs.network_per_token * np.array([100, 1, 4096]) + costs.network_per_sample
    on_link = allreduce_shares(rows, np.array([0.05, 0.01, 1e-6]), MIXTRAL)
    expected = sent / H100.link_bytes_per_s / np.array([0.05, 0.01, 1.0])
    assert on_link[:2] == pytest.approx(expected[:2])
    assert on_link[2] == 1.0
    assert MIXTRAL.exchanges


@pytest.mark.parametrize("model", [LLAMA, UNKNOWN])
def test_one_gpu_exchanges_nothing(model: CostModel) -> None:
    """Nor does a model whose kernels are not known; a step without a duration is no exception."""
    rows = rows_of([Row(100, 0, 1)], [Row(1, 0, 1)])
    assert allreduce_shares(rows, np.array([0.05, 0.0]), model).tolist() == [0.0, 0.0]
    assert not model.exchanges


def test_coefficients_come_from_the_data_sheet() -> None:
    """Idle power is the data sheet's; what works draws shares of the dynamic power."""
    coefficients = sheet_coefficients(H100)
    assert (coefficients.idle_watts, coefficients.limit_watts) == (70, 700)
    assert coefficients.static_watts == pytest.approx(70 + AWAKE_LOAD * 630)
    assert coefficients.load_watts == pytest.approx(USUAL_LOADS * 630)
    assert coefficients.seconds is USUAL_SECONDS


def test_a_lower_limit_caps_steps_and_takes_nothing_from_lighter_ones() -> None:
    """A step that computes draws the limit, one that streams what it drew; idle is the same."""
    limited = sheet_coefficients(at_limit(H100, 500.0))
    loads = np.zeros((3, len(LOADS)))
    loads[0, LOADS.index("computing")], loads[1, 0], loads[2, 0] = 1.0, 1.0, 0.2
    free, capped = (step_watts(loads, one) for one in (sheet_coefficients(H100), limited))
    assert free.tolist() == pytest.approx([649.6, 479.5, 202.3])
    assert capped.tolist() == pytest.approx([500.0, 479.5, 202.3])
    assert limited.idle_watts == H100.idle_watts


def test_time_beyond_the_streaming_of_weights_is_the_chunks() -> None:
    """Static power of the time that a chunk's computing adds is not shared with decodes."""
    static = replace(sheet_coefficients(H100), load_watts=np.zeros(len(LOADS)))
    rows = rows_of([Row(4096, 0, 1), Row(1, 100, 1)])
    work = step_work(rows, LLAMA)
    assert work is not None
    parts_s = (static.seconds[:, None] * work.basis)[:, 0]
    weights = weights_of(rows, float(parts_s.sum()), LLAMA, static)
    assert weights.sum() == pytest.approx(static.static_watts * parts_s.sum())
    assert weights[1] < weights[0] / 10


def test_a_step_that_was_held_up_is_nobodys_fault() -> None:
    """A second in which an engine stood still is shared equally, a tenth more than expected not."""
    rows, sheet = rows_of([Row(2048, 0, 1), Row(1, 100, 1)]), sheet_coefficients(H100)
    work = step_work(rows, LLAMA)
    assert work is not None
    expected_s = float(sheet.seconds @ work.basis[:, 0])
    usual, slow, held = (
        weights_of(rows, seconds, LLAMA, sheet)
        for seconds in (expected_s, 1.1 * expected_s, 1.25 * expected_s + 1.0)
    )
    assert slow.tolist() == usual.tolist()
    assert (held - usual).tolist() == pytest.approx([sheet.static_watts / 2] * 2)


@given(tokens=st.lists(st.integers(1, 4096), min_size=2, max_size=4))
def test_experts_are_shared_as_all_subsets_say(tokens: list[int]) -> None:
    """Up to four requests: exactly."""
    costs = plain_costs(expert_bytes=1.0, num_experts=64, experts_per_token=4)
    model, rows = CostModel(UNITS, costs), rows_of([Row(new, 0, 0) for new in tokens])
    cost = LinearJoules.of(model, BYTES_ONLY)
    exact = shapley_of(lambda members: float(cost.at(np.array(sum(members)))), tokens)
    assert weights_of(rows, 1.0, model, BYTES_ONLY).tolist() == pytest.approx(exact, rel=1e-6)
