"""Energy of the host beside its GPUs: by RAPL, by the server's controller, or a constant.

Never added to the GPUs' joules: a book, a metric and fields of its own.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from llm_carbon_meter.config import Config
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.power.nvml.survey import survey
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.power.rapl import POWERCAP, open_rapl
from llm_carbon_meter.power.redfish import SERVER, open_redfish
from llm_carbon_meter.power.shared import SharedMeter, host_share
from llm_carbon_meter.records import EnergyReading, PowerError, Quality, Source

LOCAL_PERIOD_S: Final = 0.25
REMOTE_PERIOD_S: Final = 1.0
"""Between two questions to a controller: these are slow, and average as long."""


class HostEnergy(NamedTuple):
    """An engine's share of an opened source."""

    meter: PowerMeter
    period_s: float
    covers: str
    """What its joules are of, in words."""
    first: Sequence[EnergyReading]
    """From which its joules count."""


class ConstantMeter:
    """PowerMeter of a server that is said to draw the same watts all the time.

    Args:
        watts: beside its GPUs.
        clock: monotonic.
    """

    source = Source.MODELLED
    quality = Quality.MODELLED

    def __init__(self, watts: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.gpus: Sequence[str] = (SERVER,)
        self._watts, self._clock, self._start_s = watts, clock, clock()

    def read(self) -> Sequence[EnergyReading]:
        """Watts times the time since the start."""
        now_s = self._clock()
        joules = self._watts * (now_s - self._start_s)
        return [EnergyReading(now_s, SERVER, joules, self._watts, self.quality)]

    def close(self) -> None:
        """Nothing to release."""


def rapl_folder(setting: str) -> Path:
    """The folder of ``rapl`` or ``rapl:FOLDER``."""
    return Path(setting.partition(":")[2] or POWERCAP)


def open_host_energy(
    config: Config, power: PowerMeter, num_gpus: int, engines: int
) -> HostEnergy | None:
    """Open the source of the settings; None where they want none.

    Args:
        config: settings.
        power: of the engine's GPUs; where it is RAPL's, that is the host's energy already.
        num_gpus: of the engine.
        engines: of this server on this host.

    Raises:
        PowerError: it cannot be opened.
    """
    if config.host_energy == "none":
        return None
    if power.quality is Quality.PACKAGE:
        raise PowerError(
            "host energy was asked for, and the CPU's joules are the requests' own already "
            "(power source rapl); set LLM_CARBON_METER_HOST_ENERGY=none"
        )
    of_host = count_gpus()
    whole, period_s, covers = open_source(config.host_energy, of_host)
    meter = SharedMeter(whole, host_share(config, num_gpus, of_host, engines))
    return HostEnergy(meter, period_s, covers + meter.remark, meter.read())


def open_source(setting: str, of_host: int) -> tuple[PowerMeter, float, str]:
    """The source, the seconds between two readings, and what it covers.

    Args:
        setting: other than ``none``.
        of_host: GPUs of this host.

    Raises:
        PowerError: it cannot be opened.
    """
    kind, _, rest = setting.partition(":")
    if kind == "rapl":
        meter = open_rapl(rapl_folder(setting))
        return meter, LOCAL_PERIOD_S, f"host: CPU {' and '.join(meter.gpus)} (RAPL)"
    if kind == "redfish":
        less = f", less its {of_host} GPUs" if of_host else ""
        return _redfish(rest, of_host), REMOTE_PERIOD_S, f"host: the server (Redfish){less}"
    return ConstantMeter(float(kind)), LOCAL_PERIOD_S, f"host: {kind} W all the time, as set"


def _redfish(url: str, of_host: int) -> PowerMeter:
    """The server less all its GPUs, not only the engine's."""
    if not of_host:
        return open_redfish(url, None)
    with ExitStack() as undo:
        gpus = open_nvml([str(gpu) for gpu in range(of_host)], mig_parent=True)
        undo.callback(gpus.close)
        meter = open_redfish(url, gpus)
        undo.pop_all()
    return meter


def count_gpus() -> int:
    """The GPUs that NVML shows on this host; 0 without a driver."""
    try:
        return len(survey([]).names)
    except PowerError:
        return 0
