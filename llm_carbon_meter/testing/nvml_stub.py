"""Builds and scripts our own ``libnvidia-ml.so.1``: GPUs with known joules where there are none.

For the demo and the tests. A process sees the stub when it starts with ``LD_LIBRARY_PATH`` =
what ``build`` returns, ``NVML_STUB_SCRIPT`` = a written StubScript and, for a log of every counter
read, ``NVML_STUB_LOG``.
"""

import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.units import MILLI

SCRIPT_VARIABLE: Final = "NVML_STUB_SCRIPT"
LOG_VARIABLE: Final = "NVML_STUB_LOG"
LIBRARY: Final = "libnvidia-ml.so.1"
_SOURCE: Final = Path(__file__).with_name("nvml_stub.c")
_FLAGS: Final = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")


def build(directory: Path) -> Path:
    """Compile the stub into a directory and return it, to be put first in ``LD_LIBRARY_PATH``.

    Raises:
        MeterError: there is no C compiler, or it refused the source.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Renamed into place, so that a process starting meanwhile never loads half a library.
    unfinished = directory / f"{LIBRARY}.{os.getpid()}"
    command = [*_compiler(), *_FLAGS, f"-Wl,-soname,{LIBRARY}", "-o", str(unfinished)]
    result = subprocess.run(
        [*command, str(_SOURCE), "-lm"], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise MeterError(
            f"compiling {_SOURCE.name} with {command[0]} failed: {result.stderr.strip()[-500:]}; "
            "install a working C compiler"
        )
    unfinished.replace(directory / LIBRARY)
    return directory


def _compiler() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise MeterError(
        "the NVML stub needs a C compiler: tried cc, gcc and clang, found none in PATH; install "
        "gcc, or run without the stub by LLM_CARBON_METER_POWER=modelled"
    )


@dataclass(frozen=True, slots=True)
class StubScript:
    """What the stub plays; every figure is known exactly, so that a meter can be checked.

    >>> StubScript(gpus=1, power={0: [(0, 100), (2, 300)]}, origin_s=50).integral_joules(0, 50, 52)
    400.0
    """

    gpus: int
    power: Mapping[int, Sequence[tuple[float, float]]]
    """Per GPU points (seconds after the origin, watts), joined by lines, constant beyond the ends.
    Two points at the same time make a jump. A GPU that is not named draws 0 W."""
    period_ms: float = 0.0
    """The counter moves only at multiples of this; 0: continuously."""
    lag_ms: float = 0.0
    """How much later than the power was drawn the counter shows it."""
    cycle_s: float | None = None
    """Power repeats with this period."""
    origin_s: float = field(default_factory=time.monotonic)
    """``time.monotonic()`` at which the script's time and the counters are 0."""
    extra: Sequence[str] = ()
    """Further lines: ``name TEXT``, ``own_name GPU TEXT`` (of one GPU), ``instance TEXT`` (the name
    of MIG instances), ``init_error CODE``, ``architecture CODE``, ``limit GPU WATTS`` (power limit,
    and the highest that can be set; else the GPU does not say), ``clock GPU MHZ`` (application
    clock of the SMs; else 1980, the default), ``unsupported GPU
    energy|energy_field|instant|average|usage``, and what happens, in seconds after the origin:
    ``reset GPU T`` (counter to 0), ``lag GPU FROM MS`` (the lag of its counter from then on; while
    it grows the counter stands still), ``lost GPU FROM TO``, ``slow_ms GPU FROM TO MS``, ``zero GPU
    FROM TO`` (the counter says 0), ``mig GPU FROM TO``, ``module GPU FROM TO`` (the sensors are
    those of a Grace Hopper module), ``process GPU FROM TO PID``, ``throttle GPU FROM TO REASONS``
    (slow clocks, and NVML's bits for why)."""

    def text(self) -> str:
        """The script as the stub reads it."""
        lines = [
            f"gpus {self.gpus}",
            f"origin {self.origin_s:.9f}",
            f"period_ms {self.period_ms}",
            f"lag_ms {self.lag_ms}",
        ]
        if self.cycle_s is not None:
            lines.append(f"cycle {self.cycle_s}")
        for gpu, points in self.power.items():
            lines.append(f"power {gpu} " + " ".join(f"{t} {watts}" for t, watts in points))
        return "\n".join([*lines, *self.extra, ""])

    def write(self, path: Path) -> Path:
        """Write the script in one move: a process that plays the old one changes over at once."""
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_bytes(os.fsencode(self.text()))  # a name may be no UTF-8
        return unfinished.replace(path)

    def integral_joules(self, gpu: int, t0: float, t1: float) -> float:
        """Joules drawn between two times of ``time.monotonic()``: neither tick nor lag nor reset.

        Computed otherwise than in the stub, to check it.
        """
        points = self.power.get(gpu, ())
        spans = _unrolled(t0 - self.origin_s, t1 - self.origin_s, self.cycle_s)
        return sum(_overlap_joules(points, low, high) for low, high in spans)

    def counter_joules(self, gpu: int, t: float) -> float:
        """What the counter shows at a time of ``time.monotonic()``, before rounding down to mJ."""
        shown = t - self.origin_s - self.lag_ms * MILLI
        if self.period_ms > 0:
            shown = math.floor(shown / (self.period_ms * MILLI)) * (self.period_ms * MILLI)
        return self.integral_joules(gpu, self.origin_s, self.origin_s + max(0.0, shown))


def _unrolled(start: float, end: float, cycle_s: float | None) -> Iterator[tuple[float, float]]:
    """Cut a span at the multiples of the cycle, each piece in the time of the first cycle."""
    if cycle_s is None:
        yield start, end
        return
    for cycle in range(math.floor(start / cycle_s), math.floor(end / cycle_s) + 1):
        shift = cycle * cycle_s
        yield max(start - shift, 0.0), min(end - shift, cycle_s)


def _overlap_joules(points: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Sum over the lines between points: overlap x watts at the overlap's middle, exact."""
    if not points:
        return 0.0
    first, last = points[0], points[-1]
    line = [(min(start, first[0]), first[1]), *points, (max(end, last[0]), last[1])]
    joules = 0.0
    for (t0, watts0), (t1, watts1) in pairwise(line):
        low, high = max(start, t0), min(end, t1)
        if high > low:
            middle = ((low + high) / 2 - t0) / (t1 - t0)
            joules += (high - low) * (watts0 + (watts1 - watts0) * middle)
    return joules


class CounterRead(NamedTuple):
    """One line of the stub's log."""

    monotonic_s: float
    gpu: int
    millijoules: int


def read_log(path: Path) -> list[CounterRead]:
    """Every counter read so far, oldest first; none if the stub was not read yet."""
    if not path.exists():
        return []
    rows = (line.split() for line in path.read_text().splitlines())
    return [CounterRead(float(t), int(gpu), int(millijoules)) for t, gpu, millijoules in rows]
