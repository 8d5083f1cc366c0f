"""What a kilowatt-hour of a grid emits: by a constant, a table of countries, or a live service.

A new service is a class with `fetch` here and a name in `SERVICES`.
"""

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, Final, Protocol

from llm_carbon_meter.addresses import is_loopback, shown_url, split_login
from llm_carbon_meter.records import CarbonIntensity, MeterError

STATIC, TABLE = "static", "table"
WORLD: Final = "world"
LARGEST_GRAMS: Final = 5000.0
"""gCO2eq/kWh; no grid comes near it."""
TIMEOUT_S: Final = 10.0
TABLE_SOURCE: Final = "Ember via Our World in Data, CC BY 4.0"


class CarbonService(Protocol):
    """A service that knows a grid's intensity now; asked in the background only."""

    def fetch(self) -> CarbonIntensity:
        """Ask it once.

        Raises:
            MeterError: it did not answer, or with nothing that can be used.
        """
        ...


@cache
def _table() -> Mapping[str, CarbonIntensity]:
    text = resources.files("llm_carbon_meter.data").joinpath("carbon_intensity.csv").read_text()
    return {
        row["zone"].casefold(): CarbonIntensity(
            float(row["grams_per_kwh"]),
            row["zone"],
            TABLE,
            factors="lifecycle",
            source=f"{row['country']} {row['year']}, {TABLE_SOURCE}",
        )
        for row in csv.DictReader(text.splitlines())
    }


def zones() -> list[str]:
    """Zones of the table: ISO 3166 codes of countries, and ``world``."""
    return [intensity.zone for intensity in _table().values()]


def annual(zone: str) -> CarbonIntensity:
    """A country's yearly mean; of a zone within a country (``US-CAL-CISO``) the country's.

    Raises:
        MeterError: not in the table.
    """
    for name in (zone, zone.partition("-")[0]):
        if name.casefold() in _table():
            return _table()[name.casefold()]
    raise MeterError(
        f"zone {zone!r} is not in the table of countries; give an ISO 3166 code such as DE, or "
        f"{WORLD}"
    )


@dataclass(frozen=True, slots=True)
class ElectricityMaps:
    """Electricity Maps, ``GET /v3/carbon-intensity/latest``: lifecycle, hourly, with a token."""

    zone: str
    token: str
    url: str = ""

    def fetch(self) -> CarbonIntensity:
        """See `CarbonService`."""
        url, path = self.url or "https://api.electricitymaps.com", "/v3/carbon-intensity/latest"
        answer = _get(url, path, {"zone": self.zone}, {"auth-token": self.token})
        return _read(
            "Electricity Maps",
            lambda: _intensity(
                answer["carbonIntensity"],
                answer["datetime"],
                zone=str(answer["zone"]),
                provider="electricitymaps",
                factors=str(answer.get("emissionFactorType", "lifecycle")),
                is_estimated=bool(answer.get("isEstimated", False)),
                source=f"Electricity Maps, {answer['datetime']}",
            ),
        )


@dataclass(frozen=True, slots=True)
class UkCarbonIntensity:
    """National Grid ESO's Carbon Intensity API, ``GET /intensity``: Great Britain, half-hourly."""

    url: str = ""

    def fetch(self) -> CarbonIntensity:
        """See `CarbonService`."""
        answer = _get(self.url or "https://api.carbonintensity.org.uk", "/intensity", {}, {})

        def read() -> CarbonIntensity:
            [period] = answer["data"]
            actual, forecast = period["intensity"].get("actual"), period["intensity"]["forecast"]
            return _intensity(
                forecast if actual is None else actual,
                period["from"],
                zone="GB",
                provider="ukcarbonintensity",
                factors="direct",
                is_estimated=actual is None,
                source=f"Carbon Intensity API, {period['from']} to {period['to']}",
            )

        return _read("the Carbon Intensity API", read)


SERVICES: Final[Mapping[str, Callable[[str, str, str], CarbonService]]] = {
    "electricitymaps": ElectricityMaps,
    "ukcarbonintensity": lambda zone, token, url: UkCarbonIntensity(url),
}
"""Name -> made of zone, token and another address than its own."""


def _get(url: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Any:
    """Ask for JSON. An error names the host and never a token."""
    import httpx

    address, login = split_login(url)  # httpx logs the address that it is given
    shown = shown_url(url)
    try:
        answer = httpx.get(
            address.rstrip("/") + path,
            params=query,
            headers=headers,
            auth=login,
            timeout=TIMEOUT_S,
            trust_env=not is_loopback(address),
        )
        answer.raise_for_status()
        return answer.json()
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        advice = {401: "check the token", 403: "check the token", 429: "asked too often"}
        raise MeterError(
            f"{shown} answered {code}; {advice.get(code, 'it is asked again later')}"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MeterError(
            f"{shown} was asked: {type(error).__name__}; it is asked again later"
        ) from None
    except ValueError:
        raise MeterError(f"{shown} did not answer with JSON; check the address") from None


def _read(service: str, read: Callable[[], CarbonIntensity]) -> CarbonIntensity:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MeterError(f"{service} answered without what is expected: {error!r}") from error


def _intensity(grams: Any, moment: str, **rest: Any) -> CarbonIntensity:
    """Of a time stamp; the wall clock is read once, what follows is monotonic."""
    if isinstance(grams, bool) or not 0 <= float(grams) <= LARGEST_GRAMS:
        raise ValueError(f"{grams!r} gCO2eq/kWh, expected 0 to {LARGEST_GRAMS:g}")
    at = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    if at.tzinfo is None:
        raise ValueError(f"the time {moment!r} has no zone")
    age_s = max((datetime.now(UTC) - at).total_seconds(), 0.0)
    return CarbonIntensity(float(grams), valid_since_s=time.monotonic() - age_s, **rest)
