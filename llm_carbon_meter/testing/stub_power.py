"""`--power stub`: the real nvidia-ml-py reads our compiled library, whose joules are known."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from llm_carbon_meter.testing.nvml_stub import (
    LOG_VARIABLE,
    SCRIPT_VARIABLE,
    CounterRead,
    StubScript,
    build,
    read_log,
)
from llm_carbon_meter.testing.scrape import Scrape
from llm_carbon_meter.units import MILLI

CYCLE_S: Final = 4.0
# Idle, a ramp, a plateau, a step down: (seconds, watts).
PROFILE: Final = (
    (0.0, 120.0),
    (1.0, 120.0),
    (1.8, 600.0),
    (2.8, 600.0),
    (2.8, 350.0),
    (4.0, 120.0),
)
PERIOD_MS: Final = 20.0
GPU_NAME: Final = "NVIDIA H100 80GB HBM3"
# The counter shows whole millijoules; a meter that adds its increments loses no more.
TOLERANCE_JOULES: Final = 0.01

SETTLED_WITHIN_S: Final = 2.5


@dataclass(frozen=True, slots=True)
class StubPower:
    """The compiled stub, the power that it plays and the log of what was read."""

    library: Path
    script: StubScript
    script_file: Path
    log: Path

    @classmethod
    def prepare(cls, directory: Path, period_ms: float = PERIOD_MS) -> Self:
        """Compile the stub and write its script.

        Raises:
            MeterError: there is no working C compiler.
        """
        directory = directory.resolve()
        library = build(directory)
        script = StubScript(
            gpus=1,
            power={0: PROFILE},
            period_ms=period_ms,
            cycle_s=CYCLE_S,
            extra=(f"name {GPU_NAME}",),
        )
        log = directory / "reads.log"
        log.unlink(missing_ok=True)
        return cls(library, script, script.write(directory / "script.txt"), log)

    def environment(self) -> dict[str, str]:
        """Variables of a process that shall see the stub."""
        # Inherited, not read: settings are config.py's alone.
        others = os.environ.get("LD_LIBRARY_PATH")
        return {
            "LD_LIBRARY_PATH": f"{self.library}:{others}" if others else str(self.library),
            SCRIPT_VARIABLE: str(self.script_file),
            LOG_VARIABLE: str(self.log),
        }

    def compare(self, last: Scrape) -> tuple[list[str], list[str]]:
        """What the meter booked beside what the stub played: lines to print, and problems."""
        reads = read_log(self.log)
        lines = ["measured here means: read from our stub library through nvidia-ml-py; no GPU"]
        wrong = [] if last.gpus else ["the meter read no GPU of the stub"]
        for gpu in last.gpus:
            booked = last.total(gpu=gpu)
            played = self._played(_number(gpu), reads, booked, last.monotonic_s)
            lines.append(
                f"{gpu}: meter {booked:.3f} J, the stub's own integral between the same readings "
                f"{played:.3f} J, difference {booked - played:+.3f} J"
            )
            if not abs(booked - played) <= TOLERANCE_JOULES:
                wrong.append(f"{gpu}: the meter's joules are not the stub's")
        return lines, wrong

    def _played(
        self, gpu: int, reads: Sequence[CounterRead], booked: float, scraped_s: float
    ) -> float:
        """The script's joules from the first reading to the last that the meter has settled."""
        # The very first call only asks whether there is a counter.
        own = [read for read in reads if read.gpu == gpu][1:]
        recent = [read for read in own if 0.0 <= scraped_s - read.monotonic_s <= SETTLED_WITHIN_S]
        if not recent:
            return math.nan
        # Which of the last readings is settled is not told: it is known by what it showed.
        last = min(recent, key=lambda read: abs(_joules_between(own[0], read) - booked))
        return self.script.counter_joules(gpu, last.monotonic_s) - self.script.counter_joules(
            gpu, own[0].monotonic_s
        )


def _number(uuid: str) -> int:
    """The stub's UUIDs end in the number of the GPU."""
    return int(uuid.rpartition("-")[2])


def _joules_between(first: CounterRead, read: CounterRead) -> float:
    return (read.millijoules - first.millijoules) * MILLI
