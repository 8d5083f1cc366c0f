"""Power of a whole server, as its management controller (BMC) tells it over Redfish.

DMTF's DSP0266 and its schemas Power (PowerControl[].PowerConsumedWatts) and EnvironmentMetrics
(PowerWatts.Reading). EnvironmentMetrics' EnergykWh is too coarse: a thousandth of it is 3600 J.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from llm_carbon_meter.addresses import is_loopback, shown_url, split_login
from llm_carbon_meter.power.integral import PowerIntegral
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading, PowerError, Quality, Source

if TYPE_CHECKING:
    import httpx

SERVER: Final = "server"
CHASSIS: Final = "/redfish/v1/Chassis"
TIMEOUT_S: Final = 5.0
MAX_GAP_S: Final = 10.0
"""A controller that is slower than this leaves joules unknown."""


T = TypeVar("T")


class _Link(msgspec.Struct, rename={"path": "@odata.id"}):
    path: str


class _Collection(msgspec.Struct, rename="pascal"):
    members: list[_Link]


class _Chassis(msgspec.Struct, rename="pascal"):
    environment_metrics: _Link | None = None
    power: _Link | None = None


class _Reading(msgspec.Struct, rename="pascal"):
    reading: float | None = None


class _Control(msgspec.Struct, rename="pascal"):
    power_consumed_watts: float | None = None


class _Power(msgspec.Struct, rename="pascal"):
    """What either schema has."""

    power_watts: _Reading | None = None
    power_control: list[_Control] = []

    @property
    def watts(self) -> float | None:
        """What a chassis draws; None where it is not told."""
        if self.power_watts is not None and self.power_watts.reading is not None:
            return self.power_watts.reading
        # Of several controls the first is the whole chassis.
        return self.power_control[0].power_consumed_watts if self.power_control else None


class RedfishMeter:
    """PowerMeter of one server, less the GPUs that another one counts.

    Args:
        client: of the controller.
        resource: that has the power.
        gpus: all of this host's; None where nobody counts them.
        clock: monotonic.
    """

    source = Source.MEASURED
    quality = Quality.POWER

    def __init__(
        self,
        client: "httpx.Client",
        resource: str,
        gpus: PowerMeter | None,
        clock: Callable[[], float],
    ) -> None:
        self.gpus: Sequence[str] = (SERVER,)
        self._client, self._resource, self._host_gpus = client, resource, gpus
        self._clock = clock
        self._integral = PowerIntegral(MAX_GAP_S)
        self._gpus_from: float | None = None
        self._rest_joules = 0.0

    def read(self) -> Sequence[EnergyReading]:
        """Ask the controller, and the GPUs.

        The controller's power is older than the GPUs' counters, so their difference may fall for a
        moment. The rest never does: it stands until the difference is above it again.

        Raises:
            PowerError: the controller or a GPU does not answer.
        """
        watts = _get(self._client, self._resource, _Power).watts
        if watts is None:
            raise PowerError(f"{self._resource} of the controller no longer tells any power")
        now_s = self._clock()
        joules = self._integral.add(now_s, watts) - self._gpu_joules()
        self._rest_joules = max(self._rest_joules, joules)
        quality = self.quality if self._integral.bridged else Quality.RESET
        return [EnergyReading(now_s, SERVER, self._rest_joules, watts, quality)]

    def _gpu_joules(self) -> float:
        """Of all GPUs since the first reading."""
        if self._host_gpus is None:
            return 0.0
        readings = self._host_gpus.read()
        if len(readings) < len(self._host_gpus.gpus):
            raise PowerError("a GPU of this host does not answer: what the rest draws is not known")
        joules = sum(reading.joules for reading in readings)
        if self._gpus_from is None:
            self._gpus_from = joules
        return joules - self._gpus_from

    def close(self) -> None:
        """Release the connection and the GPUs."""
        self._client.close()
        if self._host_gpus is not None:
            self._host_gpus.close()


def open_redfish(
    url: str, gpus: PowerMeter | None, clock: Callable[[], float] = time.monotonic
) -> RedfishMeter:
    """Find what tells the server's power.

    Args:
        url: of the controller, with user and password; with the path of a chassis where it has
            several that draw power.
        gpus: all of this host's, whose joules are taken off; None where nobody counts them.
        clock: monotonic.

    Raises:
        PowerError: the controller does not answer, or no chassis or several tell a power.
    """
    import httpx

    address, login = split_login(url)
    base, path = httpx.URL(address), httpx.URL(address).path.rstrip("/")
    with ExitStack() as undo:
        client = undo.enter_context(
            httpx.Client(
                base_url=base.copy_with(path="/"),
                auth=login,
                timeout=TIMEOUT_S,
                follow_redirects=True,
                trust_env=not is_loopback(address),
            )
        )
        members = [] if path else _get(client, CHASSIS, _Collection).members
        chassis = [path] if path else [member.path.rstrip("/") for member in members]
        found = {one: resource for one in chassis for resource in _resources(client, one)}
        if len(found) != 1:
            raise PowerError(_choose(shown_url(url), chassis, list(found)))
        undo.pop_all()
    return RedfishMeter(client, next(iter(found.values())), gpus, clock)


def _choose(shown: str, chassis: Sequence[str], found: Sequence[str]) -> str:
    if not found:
        looked = ", ".join(chassis) or "none"
        return (
            f"{shown} was asked for the power of its chassis ({looked}), and none tells it; use "
            "rapl, or a constant in watts"
        )
    return (
        f"{shown} has {len(found)} chassis that draw power; say which one is the server: "
        + ", ".join(f"redfish:{shown}{one}" for one in found)
    )


def _resources(client: "httpx.Client", chassis: str) -> Iterator[str]:
    """The first resource of a chassis that tells its power."""
    body = _get(client, chassis, _Chassis)
    for link in (body.environment_metrics, body.power):
        if link is not None and _get(client, link.path, _Power).watts is not None:
            yield link.path
            return


def _get(client: "httpx.Client", path: str, kind: type[T]) -> T:
    """A resource.

    Raises:
        PowerError: there is none.
    """
    import httpx

    tried = f"{shown_url(str(client.base_url))} was asked for {path}"
    try:
        answer = client.get(path).raise_for_status()
        return msgspec.json.decode(answer.content, type=kind)
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        advice = "check user and password" if code in (401, 403) else "is it a BMC with Redfish?"
        raise PowerError(f"{tried}, and answered {code}; {advice}") from None
    except httpx.HTTPError as error:
        raise PowerError(
            f"{tried}: {type(error).__name__} ({error}); check the address, and name the "
            "controller's certificate in SSL_CERT_FILE where it is its own"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PowerError(
            f"{tried}, and did not answer as Redfish does ({error}); is it a BMC?"
        ) from None
