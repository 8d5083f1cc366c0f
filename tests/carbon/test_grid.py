"""The grid's intensity: from services that answer as the real ones do, and from ones that fail."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llm_carbon_meter.carbon import grid, intensity
from llm_carbon_meter.carbon.grid import Grid, constant, open_grid
from llm_carbon_meter.carbon.intensity import (
    SERVICES,
    ElectricityMaps,
    UkCarbonIntensity,
    annual,
    zones,
)
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import CarbonIntensity, MeterError

TOKEN = "a-secret-of-ours"
NOW = datetime.now(UTC).isoformat()
MAPS = {
    "zone": "DE",
    "carbonIntensity": 302,
    "datetime": NOW,
    "updatedAt": NOW,
    "emissionFactorType": "lifecycle",
    "isEstimated": True,
    "estimationMethod": "TIME_SLICER_AVERAGE",
    "temporalGranularity": "hourly",
}
UK = {
    "data": [
        {
            "from": NOW,
            "to": NOW,
            "intensity": {"forecast": 266, "actual": 263, "index": "moderate"},
        }
    ]
}


class Service:
    """A local HTTP server that answers as told and remembers what it was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.pause_s = 200, b"", 0.0
        self.asked: list[tuple[str, str | None]] = []
        self.authorization: str | None = None
        service = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append((self.path, self.headers.get("auth-token")))
                service.authorization = self.headers.get("Authorization")
                time.sleep(service.pause_s)
                self.send_response(service.status)
                self.end_headers()
                self.wfile.write(service.body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answers(self, body: Any, status: int = 200) -> None:
        """Answer with this from now on."""
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.fixture
def service() -> Iterator[Service]:
    """A running one."""
    running = Service()
    yield running
    running.server.shutdown()
    running.server.server_close()


def maps(service: Service) -> ElectricityMaps:
    """The client of Electricity Maps, at the local server."""
    return ElectricityMaps("DE", TOKEN, service.url)


def test_electricity_maps(service: Service) -> None:
    """Zone and token are sent as documented, and every field of the answer is read."""
    service.answers(MAPS)
    found = maps(service).fetch()
    assert service.asked == [("/v3/carbon-intensity/latest?zone=DE", TOKEN)]
    assert (found.grams_per_kwh, found.zone, found.provider) == (302.0, "DE", "electricitymaps")
    assert (found.signal, found.factors, found.is_estimated) == ("average", "lifecycle", True)
    assert 0 <= found.age_s(time.monotonic()) < 3600
    assert NOW in found.source


def test_the_uk_service(service: Service) -> None:
    """What was measured, or the forecast while it is not, which is then an estimate."""
    service.answers(UK)
    found = UkCarbonIntensity(service.url).fetch()
    assert service.asked == [("/intensity", None)]
    assert (found.grams_per_kwh, found.zone, found.is_estimated) == (263.0, "GB", False)
    period = {**UK["data"][0], "intensity": {"forecast": 266, "actual": None, "index": "low"}}
    service.answers({"data": [period]})
    found = UkCarbonIntensity(service.url).fetch()
    assert (found.grams_per_kwh, found.is_estimated) == (266.0, True)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (MAPS, 401, "answered 401; check the token"),
        (MAPS, 429, "answered 429; asked too often"),
        (MAPS, 500, "answered 500"),
        (b"<html>", 200, "did not answer with JSON"),
        ({"zone": "DE"}, 200, "carbonIntensity"),
        ([], 200, "expected"),
        ({**MAPS, "carbonIntensity": -4}, 200, "-4 gCO2eq/kWh, expected 0 to 5000"),
        ({**MAPS, "carbonIntensity": 1e9}, 200, "expected 0 to 5000"),
        ({**MAPS, "carbonIntensity": None}, 200, "without what is expected"),
        ({**MAPS, "datetime": "yesterday"}, 200, "yesterday"),
        ({**MAPS, "datetime": "2026-01-01T00:00:00"}, 200, "has no zone"),
    ],
)
def test_an_answer_that_cannot_be_used(
    service: Service, body: Any, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Is an error that says why and never the token; the country's mean is used instead."""
    service.answers(body, status)
    with pytest.raises(MeterError, match=said) as raised:
        maps(service).fetch()
    assert TOKEN not in str(raised.value)
    faults = Faults()
    used = Grid(maps(service), annual("DE"), faults)
    with caplog.at_level(logging.WARNING):
        assert not used.ask()
    assert used.now.provider == "table"
    assert faults.counts["carbon_intensity"] == 1
    assert "Germany" in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_login_in_the_address_is_used_and_never_shown(
    service: Service, status: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by the library that asks, which logs addresses; no proxy stands before this host."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    service.answers(MAPS, status)
    url = service.url.replace("//", "//user:SECRET@") + "/SECRET"
    faults = Faults()
    with caplog.at_level(logging.DEBUG):
        used = Grid(ElectricityMaps("DE", TOKEN, url), annual("DE"), faults)
        assert used.ask() is (status == 200)
    assert service.asked == [("/SECRET/v3/carbon-intensity/latest?zone=DE", TOKEN)]
    assert service.authorization == "Basic dXNlcjpTRUNSRVQ="
    ours = [record for record in caplog.records if record.name == "llm_carbon_meter"]
    assert len(ours) == (status != 200)
    assert not any("SECRET" in record.getMessage() for record in ours)
    assert "user:SECRET" not in caplog.text


def test_a_service_that_hangs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is left after the time-out, in the background; whoever needs a figure has one at once."""
    monkeypatch.setattr(intensity, "TIMEOUT_S", 0.2)
    service.answers(MAPS)
    service.pause_s = 2.0
    faults = Faults()
    used = Grid(maps(service), annual("DE"), faults)
    used.start()
    started_s = time.monotonic()
    assert used.now.provider == "table"
    assert time.monotonic() - started_s < 0.1
    while not faults.counts and time.monotonic() < started_s + 10:
        time.sleep(0.02)
    assert faults.counts["carbon_intensity"] == 1
    used.stop()


def test_nobody_listens() -> None:
    """A refused connection is an error like the others."""
    with pytest.raises(MeterError, match="ConnectError"):
        ElectricityMaps("DE", TOKEN, "http://127.0.0.1:9").fetch()


def test_a_figure_of_yesterday(service: Service) -> None:
    """Is not believed: it says less of now than the mean of a year."""
    service.answers({**MAPS, "datetime": (datetime.now(UTC) - timedelta(days=1)).isoformat()})
    faults = Faults()
    used = Grid(maps(service), annual("DE"), faults)
    assert not used.ask()
    assert used.now == annual("DE")


def test_the_last_answer_holds_for_a_while(service: Service) -> None:
    """While the service is away its last figure is used and ages; when too old, the mean is."""
    service.answers(MAPS)
    used = Grid(maps(service), annual("DE"), Faults())
    assert used.ask()
    service.answers(b"", 500)
    assert not used.ask()
    assert used.now.grams_per_kwh == 302.0
    aged = CarbonIntensity(302.0, "DE", "electricitymaps", time.monotonic() - grid.OLDEST_S - 1)
    used._last = aged
    assert used.now == annual("DE")


def test_pauses_double(service: Service) -> None:
    """A service that fails is asked less and less often, and as before once it answers."""
    used = Grid(maps(service), annual("DE"), Faults())
    service.answers(b"", 500)
    pauses = [used._turn() for _ in range(9)]
    service.answers(MAPS)
    pauses += [used._turn(), used._turn()]
    service.answers(b"", 500)
    pauses.append(used._turn())
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 60, 60, 30]


def test_the_table_of_countries() -> None:
    """Years and source are named; a part of a country has its country's mean."""
    assert len(zones()) > 200
    assert annual("de").grams_per_kwh == pytest.approx(344.1)
    assert annual("DE").source == "Germany 2024, Ember via Our World in Data, CC BY 4.0"
    assert annual("US-CAL-CISO") == annual("US")
    assert 400 < annual("world").grams_per_kwh < 550
    assert all(0 <= annual(zone).grams_per_kwh < 1500 for zone in zones())
    with pytest.raises(MeterError, match=r"'Atlantis'.*ISO 3166"):
        annual("Atlantis")


def test_constants_of_the_settings() -> None:
    """The figure of the settings, or the table's; an unknown zone is the world, and counted."""
    faults = Faults()
    static = constant(Config(carbon_intensity=56.0, zone="FR"), faults)
    assert (static.grams_per_kwh, static.zone, static.provider) == (56.0, "FR", "static")
    assert constant(Config(carbon_provider="table", zone="FR"), faults) == annual("FR")
    assert constant(Config(carbon_provider="ukcarbonintensity"), faults) == annual("GB")
    assert not faults.counts
    wrong = Config(carbon_provider="table", zone="Atlantis")
    assert constant(wrong, faults) == annual("world")
    assert faults.counts["carbon_intensity"] == 1
    with pytest.raises(MeterError, match="Atlantis"):
        constant(Config(carbon_provider="table", zone="Atlantis", strict=True), faults)


def test_a_service_of_the_settings(service: Service) -> None:
    """Every service can be chosen by its name, at another address too."""
    for name in SERVICES:
        service.answers(MAPS if name == "electricitymaps" else UK)
        config = Config(
            carbon_provider=name, zone="DE", electricitymaps_token=TOKEN, carbon_url=service.url
        )
        used = open_grid(config, Faults())
        assert used.now.provider == "table"
        assert used.ask()
        assert used.now.provider == name
        assert TOKEN not in repr(config)
    constant_grid = open_grid(Config(), Faults())
    constant_grid.start()
    assert constant_grid.now.grams_per_kwh == 475.0
