"""A whole server's power over real HTTP: both schemas, its GPUs taken off, and what is refused."""

from collections.abc import Sequence
from typing import Any

import pytest

from llm_carbon_meter.power.redfish import open_redfish
from llm_carbon_meter.records import EnergyReading, PowerError, Quality, Source
from tests.support.redfish_server import (
    CHASSIS,
    PASSWORD,
    answering,
    chassis,
    with_environment_metrics,
)


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Gpus:
    """Two GPUs of the host, with counters that a test sets."""

    source, quality = Source.MEASURED, Quality.COUNTER
    gpus: Sequence[str] = ("GPU-a", "GPU-b")

    def __init__(self) -> None:
        self.joules: list[float] = [7e6, 5e6]
        self.closed = False

    def read(self) -> Sequence[EnergyReading]:
        return [EnergyReading(0.0, *one) for one in zip(self.gpus, self.joules, strict=False)]

    def close(self) -> None:
        self.closed = True


def test_power_becomes_joules() -> None:
    """Trapezoids between two answers; the login goes along, and is in no text."""
    clock = Clock()
    with answering(chassis("1")) as controller:
        meter = open_redfish(controller.url, None, clock)
        seen = []
        for watts in (590, 590, 610):
            controller.draw(watts)
            seen.append(meter.read()[0])
            clock.now_s += 1.0
        meter.close()
    assert [reading.joules for reading in seen] == [0.0, 590.0, 1190.0]
    assert seen[1].gpu == "server"
    assert seen[1].quality is Quality.POWER
    assert seen[0].quality is Quality.RESET  # nobody knows what was before


def test_the_newer_schema_is_read() -> None:
    """EnvironmentMetrics, where PowerControl has no figure."""
    clock = Clock()
    with answering(with_environment_metrics(700.5)) as controller:
        meter = open_redfish(controller.url, None, clock)
        meter.read()
        clock.now_s += 2.0
        assert meter.read()[0].joules == 1401.0
        assert controller.asked[-1] == f"{CHASSIS}/Chassis_0/EnvironmentMetrics"


def test_the_gpus_are_taken_off() -> None:
    """All of the host's; the rest never falls, and makes up for it afterwards."""
    clock, gpus = Clock(), Gpus()
    with answering(chassis("1")) as controller:
        controller.draw(1000)
        meter = open_redfish(controller.url, gpus, clock)
        rest = []
        for drawn in (0.0, 300.0, 900.0, 100.0):
            gpus.joules = [joules + drawn for joules in gpus.joules]
            rest.append(meter.read()[0].joules)
            clock.now_s += 1.0
        gpus.joules.pop()
        with pytest.raises(PowerError, match="a GPU of this host does not answer"):
            meter.read()
    assert rest == [0.0, 400.0, 400.0, 400.0]
    meter.close()
    assert gpus.closed


def test_a_long_silence_is_not_bridged() -> None:
    """Its joules are not known."""
    clock = Clock()
    with answering(chassis("1")) as controller:
        meter = open_redfish(controller.url, None, clock)
        meter.read()
        clock.now_s += 11.0
        (reading,) = meter.read()
    assert (reading.joules, reading.quality) == (0.0, Quality.RESET)


def test_of_several_chassis_one_must_be_named() -> None:
    """An enclosure and its sleds would count twice; the text has what to say, and no login."""
    with answering(chassis("1", "Sled")) as controller:
        with pytest.raises(PowerError, match="has 2 chassis that draw power") as refused:
            open_redfish(controller.url, None)
        named = [word.rstrip(",") for word in str(refused.value).split() if "redfish:" in word]
        assert [name.rpartition("/")[2] for name in named] == ["1", "Sled"]
        assert PASSWORD not in str(refused.value)
        meter = open_redfish(f"{controller.url}{CHASSIS}/Sled", None)
        controller.draw(123.0, "Sled")
        assert meter.read()[0].watts == 123.0


def without_power() -> dict[str, Any]:
    """A chassis that has no figure."""
    resources = chassis("1")
    resources[f"{CHASSIS}/1/Power"]["PowerControl"][0]["PowerConsumedWatts"] = None
    return resources


@pytest.mark.parametrize(
    ("resources", "path", "reason"),
    [
        (without_power(), "", r"power of its chassis \(/redfish/v1/Chassis/1\), and none tells"),
        ({CHASSIS: {"Members": []}}, "", r"its chassis \(none\), and none tells it"),
        ({}, "", r"asked for /redfish/v1/Chassis, and answered 404; is it a BMC"),
        (chassis("1"), "/redfish/v1/Chassis/9", "Chassis/9, and answered 404"),
        ({CHASSIS: "<html>"}, "", r"not answer as Redfish does \(JSON is malformed"),
        ({CHASSIS: "[1]"}, "", r"not answer as Redfish does \(Expected `object`"),
        ({CHASSIS: {"Members": [{"id": 1}]}}, "", "missing required field `@odata.id`"),
    ],
)
def test_what_does_not_tell_a_power_is_explained(
    resources: dict[str, Any], path: str, reason: str
) -> None:
    """What was asked, what came, what to do."""
    with answering(resources) as controller, pytest.raises(PowerError, match=reason):
        open_redfish(controller.url + path, None)


def test_a_wrong_password_and_no_controller_are_told() -> None:
    """Neither the text nor its cause has the password."""
    with answering(chassis("1")) as controller:
        address = f"http://metering:wrong@127.0.0.1:{controller.port}"
        with pytest.raises(PowerError, match="answered 401; check user and password") as refused:
            open_redfish(address, None)
        assert "wrong" not in str(refused.value)
    with pytest.raises(PowerError, match=r"ConnectError.*SSL_CERT_FILE"):
        open_redfish(address, None)


def test_power_that_is_told_no_longer_is_an_error() -> None:
    """Not a 0."""
    with answering(chassis("1")) as controller:
        meter = open_redfish(controller.url, None)
        controller.draw(None)
        with pytest.raises(PowerError, match="no longer tells any power"):
            meter.read()
