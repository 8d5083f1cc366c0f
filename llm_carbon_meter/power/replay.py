"""A recorded trace of watts or joules played in real time, again and again, behind the protocol.

For demos, dashboards and tests. Nothing here was measured on the load that runs: source and
quality say ``modelled``.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from llm_carbon_meter.records import EnergyReading, PowerError, Quality, Source

MIN_STEP_S: Final = 1e-6
MIN_LENGTH_S: Final = 1e-3
# Far above any recording, and low enough that no product of two of them overflows.
_MAX_S, _MAX_WATTS, _MAX_JOULES = 1e9, 1e6, 1e15
_COLUMNS: Final = {"t_s,gpu,watts": "watts", "t_s,gpu,joules": "joules"}


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of one GPU's trace with power on a straight line."""

    start_s: float
    joules: float
    """From the trace's beginning to the start of the piece."""
    watts: float
    watts_per_s: float

    def at(self, t_s: float) -> tuple[float, float]:
        """Joules since the trace's beginning, and watts."""
        elapsed_s = t_s - self.start_s
        joules = self.joules + elapsed_s * (self.watts + self.watts_per_s * elapsed_s / 2)
        return joules, self.watts + self.watts_per_s * elapsed_s


@dataclass(frozen=True, slots=True)
class Trace:
    """What ``read_trace`` found: pieces per GPU, in the order of their first rows."""

    length_s: float
    segments: dict[str, Sequence[Segment]]

    def at(self, gpu: str, t_s: float) -> tuple[float, float]:
        """Joules since time 0 and watts of a GPU; the trace repeats for ever."""
        segments = self.segments[gpu]
        repeats, within_s = divmod(t_s, self.length_s)
        place = bisect_right(segments, within_s, key=lambda segment: segment.start_s) - 1
        joules, watts = segments[place].at(within_s)
        return repeats * segments[-1].at(self.length_s)[0] + joules, watts


class ReplayMeter:
    """PowerMeter that plays a trace from its construction on; all GPUs repeat together."""

    source = Source.MODELLED
    quality = Quality.MODELLED

    def __init__(
        self, path: str | Path, gpus: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the trace and play its first ``gpus`` GPUs.

        Raises:
            PowerError: the file cannot be read, a line is broken, or it has too few GPUs.
        """
        self._trace = read_trace(Path(path))
        segments = list(self._trace.segments)
        if len(segments) < gpus:
            raise PowerError(
                f"{path}: the trace has {len(segments)} GPUs ({', '.join(segments)}), this engine "
                f"uses {gpus}; record one with enough GPUs, or set LLM_CARBON_METER_POWER=modelled"
            )
        self.gpus: Sequence[str] = tuple(f"replay-{name}" for name in segments[:gpus])
        self._joules = dict.fromkeys(segments[:gpus], 0.0)
        self._clock = clock
        self._start_s = clock()
        self._closed = False

    def read(self) -> Sequence[EnergyReading]:
        """Every GPU at this moment.

        Raises:
            PowerError: the meter was closed.
        """
        if self._closed:
            raise PowerError("a trace was read after close(); open a new meter")
        now_s = self._clock()
        return [self._reading(name, now_s) for name in self._joules]

    def close(self) -> None:
        """Stop playing."""
        self._closed = True

    def _reading(self, name: str, now_s: float) -> EnergyReading:
        joules, watts = self._trace.at(name, now_s - self._start_s)
        # Rounding may put the start of a repeat a hair below the end of the one before.
        self._joules[name] = max(self._joules[name], joules)
        return EnergyReading(now_s, f"replay-{name}", self._joules[name], watts)


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    t_s: float
    gpu: str
    value: float


def read_trace(path: Path) -> Trace:
    """Read a CSV ``t_s,gpu,watts`` or ``t_s,gpu,joules``; blank lines and ``#`` lines are skipped.

    Times count from 0 and rise for every GPU. The longest GPU gives the length; power is constant,
    and joules stand still, where a GPU has no rows at its ends.

    Raises:
        PowerError: file, line number, what was found, what to do.
    """
    lines = _lines(path)
    number, header = next(lines, (1, ""))
    column = _COLUMNS.get(header.replace(" ", ""))
    if column is None:
        expected = " or ".join(_COLUMNS)
        raise _broken(path, number, f"the header is {header[:80]!r}", f"write {expected}")
    rows: dict[str, list[_Row]] = {}
    for number, line in lines:
        row = _row(path, number, line, column)
        _check_order(path, rows.get(row.gpu, []), row, column)
        rows.setdefault(row.gpu, []).append(row)
    length_s = max((gpu_rows[-1].t_s for gpu_rows in rows.values()), default=0.0)
    if length_s < MIN_LENGTH_S:
        raise _broken(
            path, number, f"the trace is {length_s:g} s long", f"record at least {MIN_LENGTH_S:g} s"
        )
    pieces = _watts_segments if column == "watts" else _joules_segments
    return Trace(length_s, {gpu: pieces(gpu_rows, length_s) for gpu, gpu_rows in rows.items()})


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PowerError(
            f"{path}: {error.strerror}; correct the FILE in LLM_CARBON_METER_POWER=replay:FILE"
        ) from None
    except UnicodeDecodeError as error:
        raise PowerError(
            f"{path}: byte {error.start} is not UTF-8 text; give a CSV with {' or '.join(_COLUMNS)}"
        ) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _row(path: Path, number: int, line: str, column: str) -> _Row:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != 3 or not cells[1]:
        raise _broken(path, number, f"{line[:80]!r} is not t_s,gpu,{column}", "correct the line")
    limit = _MAX_WATTS if column == "watts" else _MAX_JOULES
    t_s = _number(path, number, "t_s", cells[0], _MAX_S)
    return _Row(number, t_s, cells[1], _number(path, number, column, cells[2], limit))


def _number(path: Path, line: int, column: str, text: str, limit: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= limit:
        raise _broken(
            path, line, f"{column} is {text[:80]!r}", f"write a number from 0 to {limit:g}"
        )
    return value


def _check_order(path: Path, before: Sequence[_Row], row: _Row, column: str) -> None:
    if not before:
        return
    last = before[-1]
    if row.t_s < last.t_s + MIN_STEP_S:
        fault = f"t_s {row.t_s!r} of GPU {row.gpu[:80]!r} follows {last.t_s!r}"
        raise _broken(path, row.number, fault, f"let it rise by {MIN_STEP_S:g} s or more")
    if column == "joules" and row.value < last.value:
        fault = f"joules of GPU {row.gpu[:80]!r} fall from {last.value!r} to {row.value!r}"
        raise _broken(path, row.number, fault, "cut the trace where the counter was reset")


def _watts_segments(rows: Sequence[_Row], length_s: float) -> list[Segment]:
    points = [(row.t_s, row.value) for row in rows]
    points = [(0.0, points[0][1]), *points, (length_s, points[-1][1])]
    segments, joules = [], 0.0
    for (t0, watts0), (t1, watts1) in pairwise(points):
        if t1 > t0:
            segments.append(Segment(t0, joules, watts0, (watts1 - watts0) / (t1 - t0)))
            joules += (watts0 + watts1) / 2 * (t1 - t0)
    return segments


def _joules_segments(rows: Sequence[_Row], length_s: float) -> list[Segment]:
    first, last = rows[0].value, rows[-1].value
    points = [(0.0, first), *((row.t_s, row.value) for row in rows), (length_s, last)]
    return [
        Segment(t0, joules0 - first, (joules1 - joules0) / (t1 - t0), 0.0)
        for (t0, joules0), (t1, joules1) in pairwise(points)
        if t1 > t0
    ]


def _broken(path: Path, line: int, found: str, advice: str) -> PowerError:
    return PowerError(f"{path}, line {line}: {found}; {advice}")
