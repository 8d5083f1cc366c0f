"""Step coefficients are learnt from steps and ticks, stay sane, and give power and shares."""

from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_carbon_meter.ledger.attribution import step_loads
from llm_carbon_meter.ledger.coefficient_learner import (
    DOUBTS,
    MEMORY_S,
    WINDOW_S,
    CoefficientLearner,
    Fit,
    LearnerState,
)
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.meter import teaches
from llm_carbon_meter.physics.gpu_specs import at_limit
from llm_carbon_meter.physics.step_coefficients import LOADS, StepCoefficients, sheet_coefficients
from llm_carbon_meter.physics.step_work import CostModel, Floats, StepRows, Work, step_work
from llm_carbon_meter.power.modelled import ModelledMeter
from llm_carbon_meter.records import Account, EnergyReading, Quality, Source, StepEvent, StepKind
from tests.support.steps.cost_models import H100, LLAMA

TRUE = StepCoefficients(
    np.array([2.0, 2.0, *(1.2, 1.25, 1.4, 1.6, 1.9, 1.8, 1.7, 1.6), 1.3, 2.5, 1.6]),
    140.0,
    np.array([290.0, 430.0, 470.0, 330.0, 270.0]),
    140.0,
    95.0,
    700.0,
)
"""A GPU with slow kernels, that draws less while it works and more while it does not."""
KINDS = [(0, 1), (0, 64), (512, 16), (2048, 1)]
"""Prefill chunk and decodes of a step."""


def work_of(chunks: Sequence[int], decodes: Sequence[int]) -> tuple[StepRows, Work]:
    """Steps of a prefill chunk each (0: none) beside decodes at a context of 1000."""
    counts = [min(chunk, 1) + running for chunk, running in zip(chunks, decodes, strict=True)]
    new = [
        tokens
        for chunk, running in zip(chunks, decodes, strict=True)
        for tokens in [chunk] * min(chunk, 1) + [1] * running
    ]
    columns = np.array(new, np.float64), np.full(len(new), 1000.0), np.ones(len(new))
    rows = StepRows(np.array(counts), *columns)
    work = step_work(rows, LLAMA)
    assert work is not None
    return rows, work


def teach(
    pupil: CoefficientLearner,
    seconds: float,
    chunks: Sequence[int],
    decodes: Sequence[int],
    gpu: StepCoefficients = TRUE,
) -> None:
    """Serve the same steps again and again on the true GPU, with a moment of idleness after."""
    rows, work = work_of(chunks, decodes)
    durations = gpu.seconds @ work.basis
    idle_s = 0.1 * float(durations.sum())
    true_loads = step_loads(rows, work, gpu)
    watts = gpu.static_watts + true_loads @ gpu.load_watts
    joules = float(durations @ watts) + idle_s * gpu.idle_watts
    for _ in range(round(seconds / float(durations.sum() * 1.1))):
        loads = step_loads(rows, work, pupil.coefficients)
        pupil.see_steps(work, durations)
        pupil.see_tick("gpu", durations, loads, idle_s, 0.0, joules)


def vary(pupil: CoefficientLearner, seconds: float, gpu: StepCoefficients = TRUE) -> None:
    """Serve loads of every kind, and none at times."""
    random = np.random.default_rng(0)
    for _ in range(round(seconds / 2)):
        odds = random.dirichlet(np.ones(4))
        chunks = random.choice([0, 64, 512, 2048], 20, p=odds)
        teach(pupil, 1.5, chunks.tolist(), random.integers(1, 65, 20).tolist(), gpu)
        nothing = np.zeros(0), np.zeros((0, len(LOADS)))
        pupil.see_tick("gpu", *nothing, 0.5, 0.0, 0.5 * gpu.idle_watts)


def expected_joules(coefficients: StepCoefficients, chunk: int, running: int) -> float:
    """Of one step."""
    rows, work = work_of([chunk], [running])
    loads = step_loads(rows, work, coefficients)
    watts = coefficients.static_watts + loads @ coefficients.load_watts
    return float(watts[0] * (coefficients.seconds @ work.basis)[0])


def test_nothing_seen_is_what_the_data_sheet_makes_expect() -> None:
    """A new learner's steps cost as usual on such a GPU."""
    learnt, sheet = CoefficientLearner(H100).coefficients, sheet_coefficients(H100)
    assert learnt.gap_watts == learnt.static_watts  # clocks stay up
    learnt = replace(learnt, gap_watts=sheet.gap_watts)
    for value, expected in zip(astuple(learnt), astuple(sheet), strict=True):
        assert np.array_equal(value, expected)


def test_a_limit_takes_nothing_from_what_a_learner_begins_with() -> None:
    """A GPU at a lower limit draws as much for being awake, moving bytes and computing."""
    free, limited = (CoefficientLearner(gpu).coefficients for gpu in (H100, at_limit(H100, 500.0)))
    assert limited.limit_watts == 500.0
    assert limited.load_watts.tolist() == free.load_watts.tolist()
    assert (limited.static_watts, limited.idle_watts) == (free.static_watts, free.idle_watts)


@pytest.mark.parametrize(("chunk", "running"), KINDS)
def test_a_varied_load_teaches_what_steps_cost(chunk: int, running: int) -> None:
    """After some minutes of mixed load every kind of step costs what it truly costs, to a tenth."""
    pupil = CoefficientLearner(H100)
    vary(pupil, 400.0)
    learnt = expected_joules(pupil.coefficients, chunk, running)
    assert learnt == pytest.approx(expected_joules(TRUE, chunk, running), rel=0.1)
    assert pupil.coefficients.idle_watts == pytest.approx(TRUE.idle_watts, rel=0.1)


def test_a_load_that_never_changes_moves_no_proportions() -> None:
    """Where all windows are alike, what they do not tell apart stays as it was."""
    pupil = CoefficientLearner(H100)
    first = pupil.coefficients
    teach(pupil, 300.0, [0] * 20, [8] * 20)
    coefficients = pupil.coefficients
    moved = coefficients.load_watts - first.load_watts
    assert abs(coefficients.static_watts - first.static_watts) < 70
    assert (np.abs(moved) < 140).all()
    # What is but a small part of the time is not blamed for what is missing of the whole.
    assert (np.abs(coefficients.seconds - first.seconds) <= DOUBTS).all()
    assert expected_joules(coefficients, 0, 8) == pytest.approx(
        expected_joules(TRUE, 0, 8), rel=0.03
    )


def test_what_a_varied_load_taught_outlives_hours_of_one_that_never_changes() -> None:
    """A server whose every step has the same tokens still knows what the other kinds cost."""
    pupil = CoefficientLearner(H100)
    vary(pupil, 400.0)
    taught = [expected_joules(pupil.coefficients, *kind) for kind in KINDS]
    teach(pupil, 7200.0, [480] * 20, [32] * 20)
    for kind, joules in zip(KINDS, taught, strict=True):
        assert expected_joules(pupil.coefficients, *kind) == pytest.approx(joules, rel=0.05)


def test_a_gpu_that_changes_is_learnt_anew() -> None:
    """Under a lower power limit: after two hours of mixed load the new costs hold, to an eighth."""
    capped = replace(TRUE, seconds=1.3 * TRUE.seconds, load_watts=0.7 * TRUE.load_watts)
    pupil = CoefficientLearner(H100)
    vary(pupil, 1200.0)
    vary(pupil, 7200.0, capped)
    for kind in KINDS:
        expected = expected_joules(capped, *kind)
        assert expected_joules(pupil.coefficients, *kind) == pytest.approx(expected, rel=0.125)


def test_readings_that_agree_with_the_coefficients_change_nothing() -> None:
    """A GPU exactly as promised leaves the watts where they were."""
    pupil = CoefficientLearner(H100)
    first = pupil.coefficients
    loads = np.array([[0.5, 0.2, 0.0, 0.1, 0.1], [0.0, 0.3, 0.6, 0.0, 0.0]])
    busy_s = np.array([0.4, 0.5])
    watts = first.static_watts + loads @ first.load_watts
    for _ in range(50):
        pupil.see_tick("gpu", busy_s, loads, 0.2, 0.0, float(busy_s @ watts) + 0.2 * 70)
    assert pupil.coefficients.static_watts == pytest.approx(first.static_watts)
    assert pupil.coefficients.load_watts == pytest.approx(first.load_watts)


@pytest.mark.parametrize("limit_watts", [700.0, 400.0])
def test_no_load_alone_draws_more_than_the_board(limit_watts: float) -> None:
    """Counters that say so are not believed, whatever limit is set."""
    pupil = CoefficientLearner(at_limit(H100, limit_watts))
    for load in np.eye(len(LOADS)):
        for _ in range(100):
            pupil.see_tick("gpu", np.array([1.0]), load[None], 0.0, 0.0, 1500.0)
    known = pupil.coefficients
    assert known.static_watts + known.load_watts.max() < 1.01 * 700


def test_an_outlier_hardly_counts() -> None:
    """One window with twenty times the joules moves what was learnt by less than a tenth."""
    pupil = CoefficientLearner(H100)
    vary(pupil, 200.0)
    before = expected_joules(pupil.coefficients, 512, 16)
    pupil.see_tick("gpu", np.array([1.0]), np.array([[0.5, 0.3, 0.1, 0.0, 0.1]]), 0.0, 0.0, 8000.0)
    assert expected_joules(pupil.coefficients, 512, 16) == pytest.approx(before, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(
    ticks=st.lists(
        st.tuples(
            st.floats(0, 2), st.floats(0, 1), st.floats(0, 1), st.floats(0, 2), st.floats(0, 1e4)
        ),
        max_size=30,
    )
)
def test_coefficients_stay_positive(ticks: list[tuple[float, float, float, float, float]]) -> None:
    """Whatever the readings say, nothing that works is free, and every coefficient is a number."""
    pupil = CoefficientLearner(H100)
    for busy_s, moves, computes, idle_s, joules in ticks:
        loads = np.array([[moves, 0.0, computes, 0.1, 0.1]])
        pupil.see_tick("gpu", np.array([busy_s]), loads, idle_s, 0.0, joules)
        coefficients = pupil.coefficients
        watts = (coefficients.static_watts, *coefficients.load_watts, coefficients.idle_watts)
        assert all(0 < value < np.inf for value in watts)


def test_the_past_fades() -> None:
    """What was seen long ago gives way to what is seen now."""
    fit = Fit(np.array([1.0]), np.full(1, np.inf))
    unit = np.ones((1, 1))
    fit.see(1000 * unit, np.array([2000.0]), 1.0)
    assert fit.solve(np.zeros((1, 1))) == pytest.approx([2.0])
    for _ in range(10):
        fit.see(100 * unit, np.array([500.0]), float(np.exp(-1)))
    assert fit.solve(np.zeros((1, 1))) == pytest.approx([5.0], rel=0.001)
    assert MEMORY_S >= 10 * WINDOW_S


def test_only_what_is_seen_anew_fades() -> None:
    """A thousand lessons of one kind leave what is known of the others."""
    fit = Fit(np.ones(3), np.full(3, np.inf))
    fit.see(10 * np.eye(3), np.array([10.0, 20.0, 30.0]), 0.5)
    lesson = np.diag([1.0, 0.0, 0.0])
    for _ in range(1000):
        fit.see(lesson, np.array([5.0, 0.0, 0.0]), 0.5)
    assert np.diag(fit.moments).tolist() == pytest.approx([2, 10, 10])
    assert fit.solve(np.zeros((3, 3))) == pytest.approx([5, 2, 3])


@given(st.lists(arrays(np.float64, (2, 3), elements=st.floats(0, 10)), min_size=1, max_size=30))
def test_lessons_that_agree_move_nothing(lessons: list[Floats]) -> None:
    """Whatever is forgotten meanwhile, the answer stays, and so does the sums' being of squares."""
    answer = np.array([1.0, 2.0, 3.0])
    fit = Fit(answer, np.full(3, np.inf))
    for rows in lessons:
        fit.see(rows.T @ rows, rows.T @ rows @ answer, 0.5)
        assert fit.solve(1e-3 * np.eye(3)) == pytest.approx(answer, rel=1e-6)
        assert np.linalg.eigvalsh(fit.moments)[0] > -1e-9 * max(float(fit.moments.trace()), 1.0)


def damaged(**changes: Any) -> LearnerState:
    """A state, but for some of its numbers."""
    state = CoefficientLearner(H100).state
    return replace(state, watts=replace(state.watts, **changes))


@pytest.mark.parametrize(
    "state",
    [
        damaged(moments=((1.0,),)),
        damaged(moments=((1.0,), (1.0, 2.0))),
        damaged(products=(1.0, 2.0)),
        damaged(products=(np.inf,) * 7),
        damaged(moments=np.full((7, 7), np.nan).tolist()),
        damaged(moments=(-np.eye(7)).tolist()),
    ],
)
def test_a_damaged_state_is_refused(state: LearnerState) -> None:
    """Whatever is wrong with it, before any coefficient comes of it."""
    with pytest.raises(ValueError):  # noqa: PT011 - numpy words it
        CoefficientLearner(H100, state)


def test_what_was_learnt_can_be_kept() -> None:
    """By way of JSON: the next learner has the same coefficients, and learns on from them."""
    pupil = CoefficientLearner(H100)
    vary(pupil, 100.0)
    heir = CoefficientLearner(
        H100, msgspec.json.decode(msgspec.json.encode(pupil.state), type=LearnerState)
    )
    for value, other in zip(astuple(pupil.coefficients), astuple(heir.coefficients), strict=True):
        assert other == pytest.approx(value, rel=0.01)  # durations came after the last joules
    vary(heir, 300.0)
    assert expected_joules(heir.coefficients, 512, 16) == pytest.approx(
        expected_joules(TRUE, 512, 16), rel=0.1
    )


class Sensor:
    """A power source without readings."""

    def __init__(self, source: Source, quality: Quality) -> None:
        self.gpus: Sequence[str] = ("gpu",)
        self.source, self.quality = source, quality

    def read(self) -> Sequence[EnergyReading]:
        return []

    def close(self) -> None:
        pass


def test_modelled_joules_teach_nothing() -> None:
    """Only measured joules of GPUs that are wholly the engine's own teach."""
    assert not teaches(ModelledMeter(H100, 1, 0.0), LLAMA)
    assert not teaches(Sensor(Source.MODELLED, Quality.COUNTER), LLAMA)
    assert not teaches(Sensor(Source.MEASURED, Quality.CONTENDED), LLAMA)
    assert not teaches(Sensor(Source.MEASURED, Quality.MIG_PARENT), LLAMA)
    assert not teaches(Sensor(Source.MEASURED, Quality.COUNTER), CostModel(H100, None))
    assert teaches(Sensor(Source.MEASURED, Quality.COUNTER), LLAMA)


def decode(start_s: float, end_s: float) -> StepEvent:
    """Two decodes."""
    columns = ([Account.DECODE] * 2, [1] * 2, [500] * 2, [1] * 2)
    return StepEvent(0, start_s, end_s, ["a", "b"], *columns)


def book_of(pupil: CoefficientLearner) -> EnergyLedger:
    """A ledger with a learner."""
    return EnergyLedger(["gpu"], LLAMA, Source.MEASURED, Quality.COUNTER, learner=pupil)


def test_the_book_uses_what_it_learns() -> None:
    """A GPU that draws less than its data sheet is soon expected to."""
    ledger = book_of(CoefficientLearner(H100))
    ledger.observe_reading(EnergyReading(0.0, "gpu", 0.0))
    watts = []
    for second in range(60):
        times = second + np.arange(201) / 200
        steps = [decode(*span) for span in pairwise(times.tolist())]
        watts.append(ledger.observe_steps(steps)[0].watts)
        ledger.observe_reading(EnergyReading(second + 1, "gpu", 300.0 * (second + 1)))
        ledger.settle(second + 1)
    assert watts[0] == pytest.approx(400, rel=0.1)
    assert watts[-1] == pytest.approx(300, rel=0.03)


def test_averages_of_power_teach_by_longer_windows() -> None:
    """A source whose power is an average over a second has a lesson in ten, a counter in one."""
    for quality, lessons in ((Quality.COUNTER, 20), (Quality.POWER, 2)):
        pupil = CoefficientLearner(H100)
        ledger = EnergyLedger(["gpu"], LLAMA, Source.MEASURED, quality, learner=pupil)
        known = set()
        for second in range(21):
            ledger.observe_steps([decode(second - 1, second)])
            reading = EnergyReading(second, "gpu", 300.0 * second, quality=quality)
            ledger.observe_reading(reading)
            ledger.settle(second)
            known.add(pupil.coefficients.static_watts)
        assert len(known) - 1 == lessons


@pytest.mark.parametrize(("gap_s", "watts"), [(0.005, 200.0), (0.05, 50.0)])
def test_clocks_stay_up_between_steps_that_follow_closely(gap_s: float, watts: float) -> None:
    """A short gap is idle time at the power of a step that does nothing, a long one at idle's."""
    pupil = CoefficientLearner(H100)
    pupil.coefficients = replace(pupil.coefficients, gap_watts=200.0, idle_watts=50.0)
    ledger = book_of(pupil)
    ledger.observe_reading(EnergyReading(0.0, "gpu", 0.0))
    (busy, _) = ledger.observe_steps([decode(0.0, 0.5 - gap_s), decode(0.5, 1.0)])
    ledger.observe_reading(EnergyReading(1.0, "gpu", 300.0))
    ledger.settle(1.0)
    idle = ledger.totals()[0].account_joules[Account.IDLE]
    expected = watts * gap_s
    assert idle == pytest.approx(300 * expected / (expected + busy.watts * (1 - gap_s)))


@pytest.mark.parametrize("spoilt", ["overhead", "reset", "neighbour"])
def test_ticks_of_unknown_content_teach_nothing(spoilt: str) -> None:
    """A dummy batch in it, a reset or a neighbour: from such a tick no coefficient moves."""
    pupil = CoefficientLearner(H100)
    ledger = book_of(pupil)
    ledger.observe_reading(EnergyReading(0.0, "gpu", 1e6))
    for second in range(1, 20):
        half = StepEvent(0, second - 1, second - 0.5, kind=StepKind.OVERHEAD)
        first = half if spoilt == "overhead" else decode(second - 1, second - 0.5)
        ledger.observe_steps([first, decode(second - 0.5, second)])
        falls = -1000.0 if spoilt == "reset" else 1000.0
        quality = Quality.CONTENDED if spoilt == "neighbour" else Quality.COUNTER
        joules = 1e6 + falls * second
        ledger.observe_reading(EnergyReading(second, "gpu", joules, quality=quality))
        ledger.settle(second)
    untaught = CoefficientLearner(H100).coefficients
    assert pupil.coefficients.load_watts.tolist() == untaught.load_watts.tolist()
