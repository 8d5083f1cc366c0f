"""Focused sampling goes where errors are, within its bounds, and never where the test set is."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count, pairwise

import numpy as np
import pytest

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.configurations import (
    NOTHING_LOCKED,
    PAPER_RADIUS,
    RECORDED_RADIUS,
    Configuration,
    Locked,
    Tolerance,
    lock,
    within,
)
from llm_carbon_meter.training.data.dataset import read_table
from llm_carbon_meter.training.data.physics_features import column
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.fit.examples import merge_repeats
from llm_carbon_meter.training.study.baselines.baseline import Predict
from llm_carbon_meter.training.study.recorded import (
    STRATEGIES,
    Pool,
    fit_predictor,
    learning_curve,
    locked_rows,
    mape,
    paired,
    sampled,
)
from llm_carbon_meter.training.study.sampling import (
    Measured,
    Plan,
    Propose,
    Round,
    around_errors,
    from_priors,
    rounds,
)
from tests.support.made.rows import grid, made_row

PLAN = Plan(first=10, per_round=6, per_point=3, budget=30)
HARD = range(400, 600)
"""Output lengths at which the made energy goes up and down."""
NEAR = {"output_tokens": Tolerance(absolute=20)}


class Untouchable:
    """Stands for the energy of a test row: whoever looks at it fails."""

    def __float__(self) -> float:
        raise AssertionError("the energy of the test set was looked at")


def mean_fit(rows: Sequence[Row]) -> Predict:
    """Learns one number."""
    mean = column(rows, "energy_joules").mean()
    return lambda asked: np.full(len(asked), mean)


def nearest_fit(rows: Sequence[Row]) -> Predict:
    """Answers what the row of the nearest output length cost."""
    known, joules = column(rows, "output_tokens"), column(rows, "energy_joules")
    return lambda asked: joules[abs(column(asked, "output_tokens")[:, None] - known).argmin(1)]


def wavy(outputs: Iterable[int]) -> list[Row]:
    """100 J whatever the length, but for the hard region."""
    return [
        made_row(
            output_tokens=float(n),
            energy_joules=100.0 * float(np.exp(np.sin(n / 10))) if n in HARD else 100.0,
        )
        for n in outputs
    ]


def played(
    rows: Sequence[Row], plan: Plan = PLAN, propose: Propose = around_errors, seed: int = 0
) -> list[Round]:
    """All rounds on a pool of rows, with the nearest row as the learner."""
    pool = Pool(rows, NEAR)
    return list(rounds(pool, pool.measure, nearest_fit, plan, propose, seed))


def of(**changes: object) -> Configuration:
    """A configuration of a made row."""
    return Configuration.of(made_row(**changes))


def test_a_seed_gives_the_same_samples() -> None:
    """And another seed others."""
    rows = wavy(range(1, 1200, 4))
    first, again, other = (played(rows, seed=seed) for seed in (3, 3, 4))
    assert [done.taken for done in first] == [done.taken for done in again]
    assert [done.error_percent for done in first] == [done.error_percent for done in again]
    assert first[-1].taken != other[-1].taken


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_loop_never_looks_at_the_test_set(name: str) -> None:
    """Its energies explode when they are read: the rounds end well, the learning curve does not."""
    rows = grid(outputs=(50.0, 60.0, 200.0, 800.0))
    _, test = locked_rows(rows, 0.2, seed=0)
    hidden = {Configuration.of(row) for row in test}
    guarded = [
        replace(row, energy_joules=Untouchable()) if Configuration.of(row) in hidden else row
        for row in rows
    ]
    done, guarded_test = sampled(guarded, STRATEGIES[name], PLAN, 0, learner=mean_fit)
    finished = list(done)
    assert finished[-1].stopped == "budget of 30 measurements spent"
    assert not finished[-1].taken & hidden
    with pytest.raises(AssertionError, match="was looked at"):
        list(learning_curve(finished, guarded_test))


def test_the_test_set_is_whole_groups() -> None:
    """Near-twins on one GPU are together on one side; about the share that was asked for."""
    rows = grid()
    locked, test = locked_rows(rows, 0.2, seed=1)
    groups = {Configuration.of(row).group for row in test}
    assert groups == locked.groups
    assert len(test) == sum(Configuration.of(row).group in groups for row in rows)
    assert 0.2 * len(rows) <= len(test) < 0.4 * len(rows)
    left = Pool(rows, locked=locked).draw(len(rows), (), np.random.default_rng(0))
    assert not groups & {one.group for one in left}


def test_nothing_near_a_locked_configuration_is_sampled() -> None:
    """Also of another group: within C of a test point nothing is in the pool."""
    locked = Locked([of(output_tokens=200.0)], frozenset(), NEAR)
    outputs = (150.0, 179.0, 180.0, 200.0, 220.0, 221.0)
    pool = Pool([made_row(output_tokens=output) for output in outputs], NEAR, locked)
    left = pool.draw(10, (), np.random.default_rng(0))
    assert {one.output_tokens for one in left} == {150.0, 179.0, 221.0}


def test_within_is_by_every_field() -> None:
    """C of each field, absolute or relative to the larger; without one the field is equal."""
    radius = {"output_tokens": Tolerance(5), "batch": Tolerance(relative=0.5)}
    here = of(output_tokens=100.0, concurrency=8.0)
    assert within(here, of(output_tokens=105.0, concurrency=16.0), radius)
    assert not within(here, of(output_tokens=106.0), radius)
    assert not within(here, of(output_tokens=100.0, concurrency=17.0), radius)
    assert not within(here, of(output_tokens=100.0, prompt_tokens=301.0), radius)
    for other in ({"gpu": "A100"}, {"engine": "tgi"}, {"engine_version": "0.5.4"}):
        assert not within(here, of(output_tokens=100.0, **other), radius)
    assert not within(here, of(model="Qwen3-8B", output_tokens=100.0), radius)


def test_neighbours_of_a_pool_are_within_c_and_not_taken() -> None:
    """Never the point itself, and no more than there are."""
    pool, rng = Pool(wavy(range(1, 200)), NEAR), np.random.default_rng(0)
    centre, taken = of(output_tokens=100.0, energy_joules=1.0), {of(output_tokens=101.0)}
    found = pool.around(centre, 1000, taken, rng)
    assert {one.output_tokens for one in found} == {*range(80, 121)} - {100, 101}
    assert len(pool.around(centre, 7, taken, rng)) == 7


def test_focused_samples_are_around_large_errors() -> None:
    """Every one of them is within C of a search point that was off by more than the bound."""
    done = played(wavy(range(1, 1200, 2)), Plan(60, 20, 4, 140))
    assert done[-1].num_near > 20
    for before, after in pairwise(done):
        bad = [
            point
            for point, ape in zip(before.search, before.search_ape, strict=True)
            if ape > PLAN.large_percent
        ]
        new = after.taken - before.taken
        near = [one for one in new if any(within(one, point, NEAR) for point in bad)]
        assert len(near) >= after.num_near - before.num_near
        assert len(new) == 20


def test_search_points_are_not_trained_on() -> None:
    """A fifth of what is measured is kept apart, and stays there."""
    done = played(wavy(range(1, 1200, 4)), replace(PLAN, first=20, budget=50, per_round=10))
    for one in done:
        assert not set(one.train) & set(one.search)
        assert {*one.train, *one.search} == one.taken
        assert len(one.search) == pytest.approx(0.2 * len(one.taken))
    assert list(done[1].search)[: len(done[0].search)] == list(done[0].search)


def test_focused_beats_random_where_errors_are_in_one_place() -> None:
    """At an equal budget, on a sixth of the lengths in which all error is: by a fifth or more."""
    rows = wavy(range(1, 1200, 2))
    test = wavy(range(2, 1200, 2))
    plan = Plan(first=60, per_round=20, per_point=5, budget=180)

    def last_errors(propose: Propose) -> np.ndarray:
        curves = [list(learning_curve(played(rows, plan, propose, s), test)) for s in range(8)]
        assert all(curve[-1].measurements == 180 for curve in curves)
        return mape(curves)[:, -1]

    focused, random = last_errors(around_errors), last_errors(from_priors)
    assert paired(focused, random).high < 0
    assert focused.mean() < 0.8 * random.mean()


def test_focused_and_random_begin_alike() -> None:
    """Their first trainings are on the same measurements."""
    rows = wavy(range(1, 1200, 4))
    focused, random = (played(rows, propose=propose)[0] for propose in (around_errors, from_priors))
    assert focused.train == random.train
    assert focused.search == random.search


def test_without_large_errors_it_samples_from_the_priors() -> None:
    """What is as good as it should be attracts nothing."""
    done = played(wavy(range(1, 300)))
    assert done[-1].num_near == 0
    assert len(done[-1].taken) == PLAN.budget


def test_it_stops_at_the_budget() -> None:
    """The last round is cut to what is left of it."""
    done = played(wavy(range(1, 1200, 4)), replace(PLAN, budget=25))
    assert [len(one.taken) for one in done] == [10, 16, 22, 25]
    assert [bool(one.stopped) for one in done] == [False, False, False, True]
    assert done[-1].stopped == "budget of 25 measurements spent"


def test_it_stops_at_the_error() -> None:
    """Of the search part: here the first training is exact."""
    (only,) = played(wavy(range(1, 300)), replace(PLAN, error_percent=5.0))
    assert only.stopped == "error 0 %, asked for 5 %"


def test_it_stops_at_the_deadline() -> None:
    """The round in which it passes is the last."""
    pool, seconds = Pool(wavy(range(1, 1200, 4)), NEAR), count(0, 10)
    plan = replace(PLAN, limit_s=15.0)
    done = list(rounds(pool, pool.measure, nearest_fit, plan, clock=lambda: float(next(seconds))))
    assert len(done) == 2
    assert done[-1].stopped == "deadline of 15 s reached"


def test_it_stops_where_nothing_is_left() -> None:
    """A pool smaller than the budget is measured as a whole."""
    done = played(wavy(range(1, 15)))
    assert len(done[-1].taken) == 14
    assert done[-1].stopped == "all 14 that the priors give are measured"


def test_what_cannot_be_measured_spends_the_budget() -> None:
    """A model that does not fit a GPU is not tried again, and ends no campaign."""
    pool = Pool(wavy(range(1, 300)), NEAR)

    def every_second(wanted: Sequence[Configuration]) -> Measured:
        return pool.measure(wanted[::2])

    done = list(rounds(pool, every_second, nearest_fit, PLAN))
    assert len(done[-1].taken) == 30
    assert len(done[-1].train) + len(done[-1].search) == 15


def test_even_draws_take_groups_in_turn() -> None:
    """The first draws are one of each group, whatever their sizes."""
    rows = [*wavy(range(1, 50)), made_row(gpu="A100"), made_row("Qwen3-8B"), made_row(gpu="A40")]
    drawn = Pool(rows, evenly=True).draw(5, (), np.random.default_rng(0))
    assert len({one.group for one in drawn[:4]}) == 4
    assert drawn[4].group == of().group


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 31}, "first batch of 31 measurements is more than the budget of 30"),
        ({"per_round": 0}, "give counts from 1"),
        ({"search_share": 1.0}, "a share between 0 and 1"),
        ({"first": 2}, "draw a larger first batch"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, int], message: str) -> None:
    """With what was found and what to do."""
    with pytest.raises(MeterError, match=message):
        played(wavy(range(1, 300)), replace(PLAN, **changes))


def test_an_empty_pool_is_refused() -> None:
    """Nothing to draw, or all of it locked away."""
    with pytest.raises(MeterError, match="of 0 configurations drawn 0 were measured"):
        played([])


def test_a_pool_of_repeats_is_refused() -> None:
    """It would not be clear which of two runs a configuration is."""
    with pytest.raises(MeterError, match="2 rows are of 1 configurations; merge repeated runs"):
        Pool([made_row(), made_row()])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_lock_leaves_something_on_both_sides(share: float) -> None:
    """Else there is no test, or no training."""
    drawn = [Configuration.of(row) for row in grid()]
    with pytest.raises(MeterError, match="some are left on either side"):
        lock(drawn, share, PAPER_RADIUS, np.random.default_rng(0))


def test_nothing_locked_admits_everything() -> None:
    """The default of a prior."""
    assert NOTHING_LOCKED.admits(of())


def test_the_public_rows_are_a_pool(public_data: object) -> None:
    """Every row is a configuration of its own; most have a neighbour, within the paper's C few."""
    rows = merge_repeats(read_table(public_data).for_training())
    every = [Configuration.of(row) for row in rows]
    assert len(Pool(rows)) == len(rows)

    def alone(radius: object) -> float:
        some = every[::10]
        return np.mean([sum(within(one, other, radius) for other in every) == 1 for one in some])

    assert alone(PAPER_RADIUS) > 0.75
    assert alone(RECORDED_RADIUS) < 0.15


def test_the_predictor_itself_can_be_the_learner() -> None:
    """Physics and network, from some rows to others' joules."""
    rows = grid(gpus=("H100",), outputs=(50.0, 200.0))
    predicted = fit_predictor(rows[::2])(rows[1::2])
    assert predicted.shape == (len(rows) // 2,)
    assert (predicted > 0).all()
