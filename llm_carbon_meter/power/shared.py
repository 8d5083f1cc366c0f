"""A part of a source that several engines have together, such as a host's CPU."""

from collections.abc import Sequence
from dataclasses import replace

from llm_carbon_meter.config import Config
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading


class SharedMeter:
    """PowerMeter of a part of another one; closes it.

    Args:
        whole: counts for all.
        share: of an engine, 0 to 1.
    """

    def __init__(self, whole: PowerMeter, share: float) -> None:
        self.source, self.quality, self.gpus = whole.source, whole.quality, whole.gpus
        self._whole, self._share = whole, share
        self.remark = "" if share == 1.0 else f", {share:.3g} of it this engine's"
        """What part it is, in words to follow others; empty for the whole."""

    def read(self) -> Sequence[EnergyReading]:
        """The part's joules.

        Raises:
            PowerError: the whole cannot be read.
        """
        readings = self._whole.read()
        return [replace(reading, joules=reading.joules * self._share) for reading in readings]

    def close(self) -> None:
        """Release the whole."""
        self._whole.close()


def host_share(config: Config, num_gpus: int, of_host: int, engines: int) -> float:
    """What part of the host is an engine's: as set, else its GPUs of the host's, else its part of
    the engines.

    Args:
        config: settings.
        num_gpus: of the engine.
        of_host: GPUs of the host; 0 where the engine has none.
        engines: of its server on this host.
    """
    if isinstance(config.host_share, float):
        return config.host_share
    return min(num_gpus / of_host, 1.0) if of_host else 1.0 / engines
