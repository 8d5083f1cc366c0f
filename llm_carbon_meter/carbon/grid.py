"""The grid's intensity in use now: a service's last answer, else a country's yearly mean.

Never on a request's path: a thread of its own asks.
"""

import time
from typing import Final

from llm_carbon_meter.carbon.intensity import SERVICES, STATIC, TABLE, WORLD, CarbonService, annual
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import CarbonIntensity, MeterError
from llm_carbon_meter.service import Service

REFRESH_S: Final = 60.0
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 3600.0
"""After a failure the pause doubles from one to the other."""
OLDEST_S: Final = 6 * 3600.0
"""A live figure older than this says less than a year's mean."""


def constant(config: Config, faults: Faults) -> CarbonIntensity:
    """What holds without asking anybody: the settings' figure, or a country's yearly mean.

    Raises:
        MeterError: the zone is not known, and the settings are strict.
    """
    if config.carbon_provider == STATIC:
        return CarbonIntensity(config.carbon_intensity, config.zone, STATIC)
    zone = "GB" if config.carbon_provider == "ukcarbonintensity" else config.zone
    try:
        return annual(zone)
    except MeterError as error:
        if config.strict:
            raise
        faults.note("carbon_intensity", error, "The world's mean is used instead.")
        return annual(WORLD)


def open_grid(config: Config, faults: Faults) -> "Grid":
    """The intensity as the settings say.

    Raises:
        MeterError: the settings are strict, and name no known zone, or no token where one is
            needed.
    """
    fallback, service = constant(config, faults), None
    if config.carbon_provider not in (STATIC, TABLE):
        service = SERVICES[config.carbon_provider](
            config.zone, config.electricitymaps_token, config.carbon_url
        )
    return Grid(service, fallback, faults)


class Grid:
    """The intensity in use.

    Args:
        service: asked in the background; None for a constant.
        fallback: what holds until it has answered, and when its last answer is too old.
        faults: where its failures are counted.
    """

    def __init__(
        self, service: CarbonService | None, fallback: CarbonIntensity, faults: Faults
    ) -> None:
        self._service = service
        self._fallback = fallback
        self._faults = faults
        self._last: CarbonIntensity | None = None
        self._pause_s = FIRST_PAUSE_S
        """After the next failure."""
        self._asking = Service("llm-carbon-meter-grid", self._turn, self._failed)

    @property
    def now(self) -> CarbonIntensity:
        """The last answer while it is young enough, else the fallback."""
        last = self._last
        if last is None or last.age_s(time.monotonic()) > OLDEST_S:
            return self._fallback
        return last

    def start(self) -> None:
        """Begin to ask, where there is somebody to ask."""
        if self._service is not None:
            self._asking.start()

    def stop(self) -> None:
        """Ask no more; an answer on its way is not waited for."""
        self._asking.stop(timeout_s=0.0)

    def asked(self) -> CarbonIntensity:
        """The intensity after asking once: for a command line, never for a server."""
        if self._service is not None:
            self.ask()
        return self.now

    def ask(self) -> bool:
        """Ask the service once; False where it has no answer that can be used."""
        assert self._service is not None
        try:
            answer = self._service.fetch()
            age_s = answer.age_s(time.monotonic())
            if age_s > OLDEST_S:
                raise MeterError(
                    f"{answer.provider} answered for {answer.zone} with a figure of "
                    f"{age_s / 3600:.0f} hours ago; it is asked again later"
                )
        except MeterError as error:
            self._faults.note("carbon_intensity", error, f"{self.now.source} is used meanwhile.")
            return False
        self._last = answer
        return True

    def _turn(self) -> float:
        if not self.ask():
            return self._longer_pause_s()
        self._pause_s = FIRST_PAUSE_S
        return REFRESH_S

    def _failed(self, error: Exception) -> float:
        self._faults.note("carbon_intensity", error, "It is asked again later.")
        return self._longer_pause_s()

    def _longer_pause_s(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s
