"""Litres of water: the published equation, and nothing where nobody knows a factor."""

import pytest

from llm_carbon_meter.carbon.emissions import coverage
from llm_carbon_meter.carbon.water import litres_per_joule
from llm_carbon_meter.config import Config

KILOWATT_HOUR = 3_600_000.0


@pytest.mark.parametrize(
    ("site", "grid", "litres"),
    [(1.8, None, 1.8), (None, 3.1, 3.72), (0.55, 3.142, 0.55 + 1.2 * 3.142), (0.0, None, 0.0)],
)
def test_litres_of_a_kilowatt_hour(site: float | None, grid: float | None, litres: float) -> None:
    """WUE of the computers' energy; PUE times the grid's intensity on top."""
    config = Config(pue=1.2, water_litres_per_kwh=site, water_grid_litres_per_kwh=grid)
    factor = litres_per_joule(config)
    assert factor is not None
    assert KILOWATT_HOUR * factor == pytest.approx(litres)


def test_without_a_factor_nothing_speaks_of_water() -> None:
    """Unknown is not 0."""
    assert litres_per_joule(Config()) is None
    assert "water" not in coverage(Config())


def test_what_the_litres_are_of_is_told() -> None:
    """Each factor with its boundary, in the words of every record."""
    config = Config(embodied="none", pue=1.2, water_litres_per_kwh=1.8)
    alone = "energy of the GPUs alone, grams times PUE 1.2; water: on the site, 1.8 l/kWh (WUE)"
    assert coverage(config) == alone
    config = Config(
        embodied="none", pue=1.2, water_litres_per_kwh=1.8, water_grid_litres_per_kwh=3.1
    )
    assert coverage(config) == f"{alone}, and of the grid, 3.1 l/kWh times PUE 1.2"
