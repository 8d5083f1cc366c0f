"""Eq 1 of the LLMCO2 paper."""

import pytest

from llm_carbon_meter.carbon.emissions import operational_grams
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
