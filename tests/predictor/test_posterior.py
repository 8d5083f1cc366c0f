"""A deployment's factors are learnt from its own steps: what is seen, and no more than that."""

import numpy as np
import pytest

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.phases import phase_sums
from llm_carbon_meter.predictor.fitted_physics import Prior, by_factor
from llm_carbon_meter.predictor.gnn import shipped_weights
from llm_carbon_meter.predictor.posterior import BOUND, FactorPosterior, Steps, expected
from llm_carbon_meter.predictor.step_law import FACTORS, term_matrix

PHYSICS = shipped_weights().physics
PRIOR = PHYSICS.prior("vllm", "0.32.0", "H200")
MATRIX = term_matrix(built_in_model("Llama-3.2-3B"), gpu_spec("H200"), 1, "vllm")
TRUTH = PRIOR.mean + by_factor(
    {
        "weights": 0.1,
        "products": -0.2,
        "launches": 0.5,
        "sequence_steps": -0.4,
        "static": 0.25,
        "dynamic": 0.2,
    }
)


def batch(size: float, prompt: float = 300.0, output: float = 100.0) -> Steps:
    """The two phases of a batch."""
    sums = phase_sums(
        built_in_model("Llama-3.2-3B"), *(np.array([x]) for x in (size, prompt, output))
    )
    return Steps(sums[0] @ MATRIX.T, np.ones(2))


VARIED = [
    batch(size, prompt, output)
    for size in (1.0, 4.0, 16.0, 64.0)
    for prompt, output in ((100.0, 300.0), (2000.0, 20.0), (500.0, 500.0))
]


def shown(steps: Steps, learner: FactorPosterior, noise: float = 0.0, truth=TRUTH) -> None:
    """A deployment of these true factors is seen at some steps."""
    law = expected(PHYSICS, truth, steps)
    learner.observe(steps, float(np.exp(law.boards + noise)), float(np.exp(law.seconds + noise)))


def error(learner: FactorPosterior, steps: Steps) -> float:
    """ln(estimate / truth) of the energy of some steps."""
    now = expected(PHYSICS, learner.factors.mean, steps)
    return now.boards - expected(PHYSICS, TRUTH, steps).boards


def test_varied_loads_are_learnt_within_two_rounds() -> None:
    """All loads are right afterwards, also one that was not seen; the interval is narrower."""
    learner = FactorPosterior(PHYSICS, PRIOR)
    other = batch(8.0, 800.0, 200.0)
    before = abs(error(learner, other))
    for _ in range(2):
        for steps in VARIED:
            shown(steps, learner)
    assert before > 0.08
    assert abs(error(learner, other)) < 0.02
    slopes = expected(PHYSICS, learner.factors.mean, other).boards_slopes
    spread = [slopes @ known.covariance @ slopes for known in (PRIOR, learner.factors)]
    assert spread[1] < 0.2 * spread[0]


def test_one_load_for_ever_moves_what_all_loads_have_in_common() -> None:
    """What is seen becomes right, and no other load gets worse by what could not be seen."""
    learner, alone = FactorPosterior(PHYSICS, PRIOR), batch(1.0)
    before = {size: abs(error(learner, batch(size))) for size in (1.0, 64.0)}
    for _ in range(300):
        shown(alone, learner)
    assert abs(error(learner, alone)) < 0.01
    assert abs(error(learner, batch(64.0))) < before[64.0] + 0.1


def test_nothing_is_forgotten_but_what_is_seen_anew() -> None:
    """Hours of one load leave what others taught where it was."""
    learner = FactorPosterior(PHYSICS, PRIOR)
    for steps in VARIED:
        shown(steps, learner)
    long = batch(64.0, 2000.0, 20.0)
    taught = error(learner, long)
    for _ in range(2000):
        shown(batch(1.0), learner)
    assert abs(error(learner, long) - taught) < 0.03


def test_a_changed_deployment_is_followed() -> None:
    """A lower power limit, say: the same load at other joules is right again within minutes."""
    learner, steps = FactorPosterior(PHYSICS, PRIOR), batch(8.0)
    for _ in range(1000):
        shown(steps, learner)
    changed = TRUTH + by_factor({"static": -0.3, "dynamic": -0.3})
    for _ in range(150):
        shown(steps, learner, truth=changed)
    now, then = (expected(PHYSICS, mean, steps).boards for mean in (learner.factors.mean, changed))
    assert now == pytest.approx(then, abs=0.03)


def test_an_outlier_pulls_no_harder_than_a_bound() -> None:
    """One tick that is off a hundredfold moves a learnt estimate by some percent."""
    learner, steps = FactorPosterior(PHYSICS, PRIOR), batch(8.0)
    for _ in range(50):
        shown(steps, learner)
    shown(steps, learner, noise=np.log(100.0))
    assert abs(error(learner, steps)) < 0.15


def test_no_factor_leaves_its_bounds() -> None:
    """Whatever is measured, such as another computer's work."""
    learner = FactorPosterior(PHYSICS, PRIOR)
    for steps in VARIED * 50:
        shown(steps, learner, noise=5.0)
    reach = BOUND * np.sqrt(np.diag(PRIOR.covariance))
    assert (np.abs(learner.factors.mean - PRIOR.mean) <= reach * 1.0001).all()
    assert np.isfinite(learner.factors.covariance).all()
    assert np.linalg.eigvalsh(learner.factors.covariance)[0] > 0


@pytest.mark.parametrize(("boards", "seconds"), [(None, None), (1.0, None), (None, 1.0)])
def test_what_was_not_measured_teaches_nothing(boards: float | None, seconds: float | None) -> None:
    """Time alone tells next to nothing of the powers, and only where they slow the GPU down."""
    learner = FactorPosterior(PHYSICS, PRIOR)
    learner.observe(batch(8.0), boards, seconds)
    moved = np.abs(learner.factors.mean - PRIOR.mean)
    assert moved.any() == (boards is not None or seconds is not None)
    if seconds is not None:
        assert moved[FACTORS.index("static")] < 0.1 * moved.max()


def test_it_goes_on_from_what_was_kept() -> None:
    """A restarted meter has the same factors."""
    learner = FactorPosterior(PHYSICS, PRIOR)
    for steps in VARIED:
        shown(steps, learner)
    again = FactorPosterior(PHYSICS, PRIOR, learner.factors)
    np.testing.assert_array_equal(again.factors.mean, learner.factors.mean)
    assert isinstance(again.factors, Prior)
