"""What energy and GPUs cost: one price, a tariff's hours, and settings that cannot be used."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from llm_carbon_meter.carbon.money import open_prices, prices_of
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError, Cost

KWH = 3.6e6
TARIFF = """
currency = "EUR"
timezone = "Europe/Berlin"

[per_kwh]
"07:00-22:00" = 0.34
"22:00-07:00" = 0.21
"""


def tariff(folder: Path, text: str) -> Config:
    """Settings with a tariff of this text."""
    path = folder / "tariff.toml"
    path.write_text(text)
    return Config(tariff_file=str(path))


def at(text: str, zone: str = "Europe/Berlin") -> float:
    """Unix time of a clock."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def test_without_a_price_nothing_costs() -> None:
    """Unknown, not 0."""
    assert prices_of(Config()) is None


def test_one_price_of_energy() -> None:
    """The site pays for its overhead too; the time of GPUs has no price."""
    prices = prices_of(Config(energy_price=0.3, pue=1.5))
    assert prices is not None
    assert prices.cost(2 * KWH, 3600.0, 0.0) == Cost(pytest.approx(0.9), None, "USD")


def test_one_price_of_gpus() -> None:
    """For their hours, whatever they draw."""
    prices = prices_of(Config(gpu_hour_price=2.5, currency="CHF"))
    assert prices is not None
    assert prices.cost(KWH, 1800.0, 0.0) == Cost(None, 1.25, "CHF")


@pytest.mark.parametrize(
    ("clock", "price"),
    [
        ("2026-11-02T06:59:59", 0.21),
        ("2026-11-02T07:00:00", 0.34),
        ("2026-11-02T21:59:00", 0.34),
        ("2026-11-02T22:00:00", 0.21),
        ("2026-11-02T00:30:00", 0.21),
        # summer time: 05:30 UTC is 07:30 there
        ("2026-07-02T07:30:00", 0.34),
    ],
)
def test_a_tariff_has_its_hours_there(tmp_path: Path, clock: str, price: float) -> None:
    """By the clock of its time zone, over midnight too."""
    prices = prices_of(tariff(tmp_path, TARIFF))
    assert prices is not None
    assert prices.cost(KWH, 0.0, at(clock)) == Cost(pytest.approx(price), None, "EUR")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TARIFF.replace("22:00-07:00", "22:00-06:30"), "06:30 has no price"),
        (TARIFF.replace("22:00-07:00", "21:30-07:00"), "21:30 has two prices"),
        (TARIFF.replace("22:00-07:00", "22-7"), "hours '22-7' are none"),
        (TARIFF.replace("22:00-07:00", "22:00-25:00"), "are none"),
        (TARIFF.replace("22:00-07:00", "22:61-07:00"), "are none"),
        (TARIFF.replace("Europe/Berlin", "Europe/Nowhere"), "timezone is 'Europe/Nowhere'"),
        (TARIFF.replace("Europe/Berlin", "../../etc/passwd"), "timezone is"),
        (TARIFF.replace("EUR", "euros"), "currency is 'euros'"),
        (TARIFF.replace("0.34", "inf"), "costs inf"),
        (TARIFF.replace("0.34", "nan"), "costs nan"),
        (TARIFF.replace("0.34", "'dear'"), "Expected `float`"),
        (TARIFF.replace("currency", "curency"), "curency"),
        ("what", "cannot be used"),
        (TARIFF.replace("0.34", "-0.02"), "costs -0.02; expected 0 to 100000"),
    ],
)
def test_a_tariff_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    """The error names the file and what is wrong; the server has no prices then."""
    config = tariff(tmp_path, text)
    with pytest.raises(ConfigError, match=r"tariff\.toml") as caught:
        prices_of(config)
    assert said in str(caught.value)
    assert open_prices(config, Faults()) is None


def test_a_tariff_that_is_not_there(tmp_path: Path) -> None:
    """The system's reason is told."""
    with pytest.raises(ConfigError, match="No such file"):
        prices_of(Config(tariff_file=str(tmp_path / "none.toml")))


def test_two_currencies_and_two_prices_are_refused(tmp_path: Path) -> None:
    """Nobody adds dollars to euros."""
    config = tariff(tmp_path, TARIFF)
    with pytest.raises(ConfigError, match="in EUR, the price of a GPU's hour in USD"):
        prices_of(Config(tariff_file=config.tariff_file, gpu_hour_price=2.0))
    both = Config(tariff_file=config.tariff_file, gpu_hour_price=2.0, currency="EUR")
    prices = prices_of(both)
    assert prices is not None
    assert prices.per_gpu_hour == 2.0
    with pytest.raises(ConfigError, match="two prices of energy"):
        prices_of(Config(tariff_file=config.tariff_file, energy_price=0.3))
