"""What is expected of a deployment before it was seen at work."""

import numpy as np
import pytest

from llm_carbon_meter.physics.gpu_specs import at_limit, gpu_spec
from llm_carbon_meter.predictor.fitted_physics import (
    DEPLOYMENT_SPREAD,
    GPU_SPREAD,
    KERNEL_SPREAD,
    FittedPhysics,
    by_factor,
    limit_spread,
)
from llm_carbon_meter.predictor.step_law import FACTORS, TERMS, constants_of, spent

PHYSICS = FittedPhysics(
    time=np.zeros(len(TERMS)),
    energy=np.zeros(len(TERMS)),
    static=-1.6,
    active=-1.4,
    engines={
        "vllm 0.5.4": by_factor({"launches": 1.5, "cache": 0.5}),
        "vllm 0.11.1": by_factor({"launches": -0.3}),
    },
    gpus={"H100": by_factor({"static": 0.1})},
    kernels={"H200": by_factor({"products": 0.08})},
)


def place(name: str) -> int:
    """Of a factor."""
    return FACTORS.index(name)


def test_at_its_board_power_the_law_is_to_the_bit_what_it_was() -> None:
    """Nothing is fitted anew for a limit."""
    same = PHYSICS.at_limit(gpu_spec("H100"))
    np.testing.assert_array_equal(same.energy, PHYSICS.energy)
    assert (same.static, same.active) == (PHYSICS.static, PHYSICS.active)
    assert not limit_spread(gpu_spec("H100")).any()


def test_a_lower_limit_moves_the_cap_and_nothing_below_it() -> None:
    """Light steps take the same seconds and joules; heavy ones draw the limit, for longer."""
    terms = np.zeros((2, len(TERMS)))
    terms[:, TERMS.index("weights")] = 1e-2
    terms[1, TERMS.index("attention")] = 1e-2
    sheet, limited = gpu_spec("H100"), at_limit(gpu_spec("H100"), 400.0)
    spends = []
    for gpu in (sheet, limited):
        law = constants_of(PHYSICS.at_limit(gpu), np.zeros(len(FACTORS)), np)
        seconds, units = spent(law, terms)
        spends.append((seconds, units * gpu.limit_watts))
    (seconds, joules), (longer, fewer) = spends
    watts = joules / seconds
    assert watts[1] > 650 > 400
    assert (fewer / longer)[1] == pytest.approx(400, rel=0.01)
    assert longer[1] > 1.1 * seconds[1]
    assert fewer[1] < joules[1]


def test_a_lower_limit_is_less_certain_the_lower_it_is() -> None:
    """Nobody measured one."""
    spreads = [limit_spread(at_limit(gpu_spec("H100"), watts)) for watts in (700.0, 600.0, 400.0)]
    assert not spreads[0].any()
    assert (spreads[2] >= spreads[1]).all()
    assert spreads[2].sum() > 2 * spreads[1].sum() > 0


def test_engine_and_gpu_multiply() -> None:
    """Where both were measured, their factors are the mean, and the spread is a deployment's."""
    prior = PHYSICS.prior("vllm", "0.11.1", "H100")
    np.testing.assert_allclose(prior.mean, by_factor({"launches": -0.3, "static": 0.1}))
    np.testing.assert_allclose(prior.covariance, np.diag(DEPLOYMENT_SPREAD**2))


def test_a_new_version_is_its_kin_with_a_wider_spread() -> None:
    """The same mean as the nearest, host code less certain and certain together."""
    near = PHYSICS.prior("vllm", "0.11.1", "H100")
    new = PHYSICS.prior("vllm", "0.32.0", "H100")
    np.testing.assert_allclose(new.mean, near.mean)
    launches, steps = place("launches"), place("steps")
    assert new.covariance[launches, launches] > 5 * near.covariance[launches, launches]
    assert new.covariance[launches, steps] > 0
    np.testing.assert_allclose(new.covariance, new.covariance.T)


def test_an_old_version_keeps_its_host_code() -> None:
    """Before a rewrite an engine is expected to be slow, and as its kin was beyond that."""
    older = PHYSICS.prior("vllm", "0.5.0", "H100").mean
    assert older[place("launches")] == pytest.approx(1.5)
    between = PHYSICS.prior("vllm", "0.7.0", "H100").mean
    assert -0.3 < between[place("launches")] < 1.5


@pytest.mark.parametrize(
    ("gpu", "products", "spread"), [("T4", 0.0, GPU_SPREAD), ("H200", 0.08, KERNEL_SPREAD)]
)
def test_a_new_gpu_has_its_kernels_or_its_data_sheet(
    gpu: str, products: float, spread: np.ndarray
) -> None:
    """Measured kernels tell where it is, and how surely."""
    prior = PHYSICS.prior("vllm", "0.11.1", gpu)
    assert prior.mean[place("products")] == pytest.approx(products)
    np.testing.assert_allclose(np.diag(prior.covariance), DEPLOYMENT_SPREAD**2 + spread**2)
