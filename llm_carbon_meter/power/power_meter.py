"""The seam between the ledger and whatever counts joules. A new source is one file beside this."""

from collections.abc import Sequence
from typing import Protocol

from llm_carbon_meter.records import EnergyReading, Quality, Source


class PowerMeter(Protocol):
    """Cumulative joules of a fixed set of GPUs."""

    source: Source
    quality: Quality
    gpus: Sequence[str]
    """Stable names, in the order of the engine's ranks."""

    def read(self) -> Sequence[EnergyReading]:
        """Read every GPU once, together.

        A GPU that does not answer is left out of the result; the others are still read.

        Raises:
            PowerError: none answered.
        """
        ...

    def close(self) -> None:
        """Release the source; reading afterwards is an error."""
        ...
