"""Operational emissions by Eq 1 of the LLMCO2 paper, embodied ones by time."""

import pytest

from llm_carbon_meter.carbon.emissions import coverage, embodied_rate, operational_grams
from llm_carbon_meter.config import Config
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.records import CarbonIntensity


def test_example_of_the_reference() -> None:
    """350 J at PUE 1.2 and 400 g/kWh are 0.0466667 g."""
    grid = CarbonIntensity(400.0, "DE", "static")
    assert operational_grams(350.0, grid, 1.2) == pytest.approx(0.0466667, abs=5e-8)


def test_a_kilowatt_hour_emits_the_intensity() -> None:
    """3.6 MJ without overhead emit exactly what the grid says, of a clean grid nothing."""
    grid = CarbonIntensity(475.0, "world", "static")
    assert operational_grams(3.6e6, grid, 1.0) == 475.0
    assert operational_grams(3.6e6, CarbonIntensity(0.0, "x", "static"), 1.5) == 0.0


def test_a_constant_has_no_age() -> None:
    """Only a live answer has a time since which it holds."""
    assert CarbonIntensity(475.0, "world", "static").valid_since_s is None


@pytest.mark.parametrize(
    ("method", "gpu", "host", "milligrams"),
    [
        ("llmcarbon", "T4", False, 0.0414764),
        ("llmcarbon", "L4", False, 0.0335616),
        ("llmcarbon", "A100", False, 0.0838153),
        ("llmcarbon", "H100", False, 0.0929224),
        ("pcf", "H100", True, 9.26454),
        ("pcf", "H100", False, 164e6 / (3 * 365 * 86400)),
    ],
)
def test_embodied_rates(method: str, gpu: str, host: bool, milligrams: float) -> None:
    """Milligrams per GPU-second of both sources, with and without the server."""
    rate = embodied_rate(method, gpu_spec(gpu), host=host)
    assert rate is not None
    assert 1000 * rate == pytest.approx(milligrams, rel=1e-3)


@pytest.mark.parametrize(("method", "host"), [("pcf", True), ("llmcarbon", False)])
def test_a_part_of_a_gpu_has_its_part_of_the_making(method: str, host: bool) -> None:
    """Seven MIG instances together carry what their GPU and server cost."""
    whole, part = (
        embodied_rate(method, gpu_spec(name), host=host) for name in ("A100", "A100 MIG 1g.10gb")
    )
    assert whole is not None
    assert part == pytest.approx(whole / 7)


def test_embodied_can_be_left_out() -> None:
    """Then there is no figure, not a 0, and nothing speaks of it."""
    assert embodied_rate("none", gpu_spec("H100"), host=False) is None
    assert "embodied" not in coverage(Config(embodied="none"))
    assert coverage(Config(pue=1.2, embodied="llmcarbon", embodied_host=True)) == (
        "energy of the GPUs alone, grams times PUE 1.2; embodied: the GPU's dies, without memory, "
        "board and cooler, and its share of a server (llmcarbon)"
    )
