"""What energy and GPUs cost: the prices of the settings, or those of a tariff's hours.

A tariff is a TOML file; its hours cover the day once:

    currency = "EUR"
    timezone = "Europe/Berlin"

    [per_kwh]
    "07:00-22:00" = 0.34
    "22:00-07:00" = 0.21
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from llm_carbon_meter.config import MOST_PRICE, Config, is_currency
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError, Cost
from llm_carbon_meter.units import JOULES_PER_KILOWATT_HOUR, SECONDS_PER_HOUR

MINUTES: Final = 24 * 60
_HOURS: Final = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Prices:
    """Of a site, in one currency."""

    currency: str
    per_kwh: tuple[float, ...]
    """By minute of the day, or one for all of them; empty where no price is known."""
    per_gpu_hour: float | None
    pue: float
    """The site pays for its overhead, too."""
    zone: tzinfo = UTC
    """Of the minutes."""

    def cost(self, joules: float, gpu_seconds: float, unix_s: float) -> Cost:
        """Of energy that GPUs drew, and of their time.

        Args:
            joules: of the GPUs alone.
            gpu_seconds: of every GPU.
            unix_s: when.
        """
        gpu, energy = self.per_gpu_hour, None
        if self.per_kwh:
            energy = joules / JOULES_PER_KILOWATT_HOUR * self.pue * self._at(unix_s)
        hours = gpu_seconds / SECONDS_PER_HOUR
        return Cost(energy, None if gpu is None else gpu * hours, self.currency)

    def _at(self, unix_s: float) -> float:
        if len(self.per_kwh) == 1:
            return self.per_kwh[0]
        at = datetime.fromtimestamp(unix_s, self.zone)
        return self.per_kwh[at.hour * 60 + at.minute]


class _Tariff(msgspec.Struct, forbid_unknown_fields=True):
    currency: str
    per_kwh: dict[str, float]
    timezone: str = "UTC"


def open_prices(config: Config, faults: Faults) -> Prices | None:
    """The prices of the settings; None where they have none, or such as cannot be used.

    Args:
        config: settings.
        faults: counts what went wrong.
    """
    try:
        return prices_of(config)
    except ConfigError as error:
        faults.note("prices", error, "Nothing has a price.")
        return None


def prices_of(config: Config) -> Prices | None:
    """The prices of the settings; None where they have none.

    Raises:
        ConfigError: the tariff cannot be used.
    """
    if config.tariff_file:
        currency, per_kwh, zone = _tariff(Path(config.tariff_file))
        if config.energy_price is not None:
            raise ConfigError(
                f"there are two prices of energy, LLM_CARBON_METER_ENERGY_PRICE="
                f"{config.energy_price:g} and the tariff {config.tariff_file!r}; set one of them"
            )
        if config.gpu_hour_price is not None and config.currency != currency:
            raise ConfigError(
                f"the tariff {config.tariff_file!r} is in {currency}, the price of a GPU's hour "
                f"in {config.currency}; set LLM_CARBON_METER_CURRENCY={currency} and a price in it"
            )
        return Prices(currency, per_kwh, config.gpu_hour_price, config.pue, zone)
    if config.energy_price is None and config.gpu_hour_price is None:
        return None
    per_kwh = () if config.energy_price is None else (config.energy_price,)
    return Prices(config.currency, per_kwh, config.gpu_hour_price, config.pue)


def _tariff(path: Path) -> tuple[str, tuple[float, ...], tzinfo]:
    try:
        tariff = msgspec.convert(tomllib.loads(path.read_text("utf-8")), _Tariff)
        if not is_currency(tariff.currency):
            raise ValueError(f"currency is {tariff.currency!r}; expected one such as EUR")
        return tariff.currency, _minutes(tariff.per_kwh), _zone(tariff.timezone)
    except OSError as error:
        raise ConfigError(f"the tariff {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of the TOML, of a type, of an hour
        raise ConfigError(f"the tariff {str(path)!r} cannot be used: {error}") from error


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"timezone is {name!r}; expected one such as Europe/Berlin") from error


def _minutes(per_kwh: Mapping[str, float]) -> tuple[float, ...]:
    prices: list[float | None] = [None] * MINUTES
    for hours, price in per_kwh.items():
        if not 0.0 <= price <= MOST_PRICE:
            raise ValueError(f"{hours} costs {price}; expected 0 to {MOST_PRICE:g}")
        for minute in _span(hours):
            if prices[minute] is not None:
                raise ValueError(f"{_clock(minute)} has two prices; its hours overlap")
            prices[minute] = price
    if None in prices:
        raise ValueError(f"{_clock(prices.index(None))} has no price; the hours leave a gap")
    return tuple(price for price in prices if price is not None)


def _span(hours: str) -> list[int]:
    """Minutes of the day; a span may go over midnight."""
    match = _HOURS.fullmatch(hours)
    numbers: list[Any] = [int(part) for part in match.groups()] if match else []
    begin, end = (numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]) if match else (0, 0)
    if not match or max(numbers[1], numbers[3]) > 59 or begin >= MINUTES or end > MINUTES:
        raise ValueError(f"its hours {hours!r} are none; expected some such as 07:00-22:00")
    length = (end - begin) % MINUTES or MINUTES
    return [(begin + step) % MINUTES for step in range(length)]


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
