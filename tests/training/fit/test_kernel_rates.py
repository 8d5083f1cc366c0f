"""Measured kernels tell how far a GPU is from its data sheet."""

from pathlib import Path

import numpy as np
import pytest

from llm_carbon_meter.predictor.step_law import longer
from llm_carbon_meter.training.fit.kernel_rates import (
    NO_RATES,
    KernelRates,
    kernel_rates,
    positive_fit,
)


@pytest.mark.parametrize("meanwhile", [None, 1])
def test_rates_are_found_again(meanwhile: int | None) -> None:
    """Streaming, computing and a floor, within some percent; one row in twenty is ten times off."""
    rng = np.random.default_rng(0)
    parts = [10.0 ** rng.uniform(-6, -3, 2000), 10.0 ** rng.uniform(-6, -3, 2000), np.ones(2000)]
    moved, computed = 1.1 * parts[0], 1.6 * parts[1]
    both = moved + computed if meanwhile is None else longer(moved, computed)
    measured = (both + 5e-6) * np.exp(rng.normal(0, 0.03, 2000))
    measured[::20] *= 10
    found = positive_fit(parts, measured, meanwhile)
    np.testing.assert_allclose(found, [1.1, 1.6, 5e-6], rtol=0.03)


def test_a_gpu_deviates_from_the_mean_of_all() -> None:
    """In logarithms; a variant of a chip is like the chip, and who was not measured is unknown."""
    rates = KernelRates({"A100": {"weights": 1.0}, "H100": {"weights": 4.0}})
    assert rates.mean("weights") == pytest.approx(2.0)
    assert rates.deviation("H100", "weights") == pytest.approx(np.log(2.0))
    assert rates.deviation("A100-PCIe", "weights") == pytest.approx(-np.log(2.0))
    assert rates.deviation("T4", "weights") is None
    assert rates.mean("products") is None
    assert NO_RATES.deviation("H100", "weights") is None


def test_public_kernels_are_near_their_data_sheets(public_data: Path) -> None:
    """Streaming within a third of the bandwidth, products within a half of the peak."""
    rates = kernel_rates(public_data)
    assert set(rates.gpus) == {"A100", "B200", "GB200", "H100", "H200", "L40S"}
    for gpu, terms in rates.gpus.items():
        assert 1.1 < terms["weights"] < 1.33, gpu
        assert 1.1 < terms["products"] < 1.55, gpu
        assert 1.4 < terms["attention"] < 2.3, gpu
        assert 0.9 < terms["cache"] < 1.5, gpu
