"""A GPU day: each part in its own time and process, what is complete is not measured again.

    python examples/gpu_day/day.py run --out OUT --minutes 8
    python examples/gpu_day/day.py report --out OUT      # table and plots again, from the rows

start.py prepares the environment first; `make gpu-day` calls it.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpu import real_environment, stub_environment
from part import COMPLETE, CUT, FAILED, Options
from rows import ENDED, HOST, MEASURED, NAME, SIMULATED, DayError, Row, RowsFile, read_rows
from session import end_session

from llm_carbon_meter.records import MeterError

RESERVE_S = 15.0
"""Of the day's time, for table and plots."""
LOGS = "logs"
"""Folder in OUT."""
LOG_BYTES, LOG_LINES = 200_000, 12
"""Of a server's log that are kept, and of a part's that are shown where it fails."""
GRACE_S = 4.0
"""A part that plans to its budget may be so late before it is ended."""
HOST_S = 60.0
"""NVML answers within seconds; the packages of a new environment are compiled first."""


class Part(NamedTuple):
    """What is measured together."""

    name: str
    what: str
    weight: float
    """Seconds of a day of eight minutes."""
    least_s: float
    """With less it is not begun on a GPU."""
    stretch: float = 1.0
    """Times its budget it may take before it is ended."""


PARTS = (
    Part("sensor", "period, lag and power of the counter", 55, 15),
    Part("shares", "joules of every subset of a step's requests", 75, 15),
    Part("model", "a model of random weights on the disk", 70, 5, stretch=2.0),
    Part("served", "requests of the Azure trace, estimated and measured", 140, 75),
    Part("campaign", "prefill and decode apart, three models", 90, 25),
    Part("throughput", "tokens per second with and without the meter", 70, 45),
)


def budgets(parts: Sequence[Part], left_s: float) -> dict[str, float]:
    """Seconds of each part, by weight, of what is left."""
    whole = sum(part.weight for part in parts)
    return {part.name: left_s * part.weight / whole for part in parts}


def complete(rows: Sequence[Row]) -> set[str]:
    """Parts of which everything is there."""
    ends = [row for row in rows if row["kind"] == ENDED]
    return {str(row["part"]) for row in ends if row.get("how") == COMPLETE}


def still_to_do(rows: Sequence[Row], options: Options) -> list[Part]:
    """A model is made again where its folder is gone."""
    done = complete(rows)
    gone = not (options.scratch / "model").exists()
    again = {"model"} if gone and not {"served", "throughput"} <= done else set()
    return [part for part in PARTS if part.name not in done - again]


class Children:
    """Starts processes of parts, and ends them with all that they started."""

    def __init__(self, options: Options, environment: Mapping[str, str]) -> None:
        self._options = options
        self._environment = environment

    def log(self, name: str) -> Path:
        """What a part prints."""
        folder = self._options.out / LOGS
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"

    def run(self, name: str, budget_s: float, limit_s: float) -> int | None:
        """A part's exit code; None where its time was over.

        Args:
            name: of the part.
            budget_s: to which it plans.
            limit_s: at which it is ended.
        """
        command = [sys.executable, str(Path(__file__).with_name("part.py")), name]
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                [*command, self._options.as_json(), f"{budget_s:.1f}"],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """With its servers and workers."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
    end_session(child.pid)
    child.wait()


def run_parts(options: Options, children: Children, rows: RowsFile, end_s: float) -> None:
    """Each part in turn; what one does not use is for those after it."""
    todo = still_to_do(rows.rows, options)
    for number, part in enumerate(todo):
        left_s = max(end_s - time.monotonic(), 0.0)
        budget_s = budgets(todo[number:], left_s)[part.name]
        if budget_s < part.least_s and not options.stub:
            note = f"not begun: {budget_s:.0f} s were its share, it needs {part.least_s:.0f}"
            rows.add(part.name, ENDED, how=CUT, note=note, seconds=0)
            print(f"{part.name}: {note}", flush=True)
            continue
        print(f"{part.name}: {part.what}, {budget_s:.0f} s", flush=True)
        most_s = budget_s * part.stretch + GRACE_S
        limit_s = max(min(most_s, left_s), options.plan.patience_s)
        try:
            code = children.run(part.name, budget_s, limit_s)
        except KeyboardInterrupt:
            rows.add(part.name, ENDED, how=CUT, note="interrupted", seconds=0)
            raise
        _note_killed(rows, options, part.name, code, limit_s)
        if rows.of(part.name, ENDED)[-1]["how"] in (FAILED, CUT):
            print(last_lines(options.out / LOGS / f"{part.name}.log", LOG_LINES), flush=True)


def _note_killed(
    rows: RowsFile, options: Options, part: str, code: int | None, limit_s: float
) -> None:
    """A part whose process could not say how it ended."""
    now, _ = read_rows(options.out / NAME)
    before = sum(row["kind"] == ENDED and row["part"] == part for row in rows.rows)
    rows.rows[:] = now
    if sum(row["kind"] == ENDED and row["part"] == part for row in now) > before:
        last = rows.of(part, ENDED)[-1]
        print(f"{part}: {last['how']} after {last['seconds']:g} s {last['note']}", flush=True)
        return
    note = f"ended after {limit_s:.0f} s" if code is None else f"its process ended with code {code}"
    rows.add(part, ENDED, how=CUT, note=note, seconds=round(limit_s, 1))
    print(f"{part}: {note}", flush=True)


def run(options: Options, minutes: float) -> int:
    """Measure until all is there or the time is over; 0 where all is there.

    Raises:
        DayError: the folder or the GPU cannot be used.
    """
    end_s = time.monotonic() + 60 * minutes - RESERVE_S
    stub = options.scratch / "nvml-stub"
    environment = stub_environment(stub) if options.stub else real_environment()
    rows = RowsFile(options.out, SIMULATED if options.stub else MEASURED)
    for remark in rows.remarks:
        print(f"gpu-day: {remark}", flush=True)
    children = Children(options, environment)
    if children.run(HOST, HOST_S, HOST_S) != 0:
        raise DayError(f"the GPU cannot be used: {last_lines(children.log(HOST), 1)}")
    try:
        run_parts(options, children, rows, end_s)
    except KeyboardInterrupt:
        print("gpu-day: interrupted; the same command goes on from here", file=sys.stderr)
    rows.close()
    keep_logs(options)
    from report import write_all

    write_all(options.out)
    return 0 if not still_to_do(read_rows(options.out / NAME)[0], options) else 1


def last_lines(log: Path, count: int) -> str:
    """Of a file that may be missing."""
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    return "\n".join(text.strip().splitlines()[-count:])


def keep_logs(options: Options) -> None:
    """The ends of the servers' logs, beside those of the parts."""
    for log in options.scratch.glob("*.log"):
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - LOG_BYTES, 0))
            (options.out / LOGS / f"server-{log.name}").write_bytes(file.read())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("run", "report", "adopt"))
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--power", choices=("auto", "nvml", "stub"), default="auto")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="default: OUT-scratch")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    try:
        return _verb(options, out)
    except MeterError as error:
        print(f"gpu-day: {error}", file=sys.stderr)
        return 1


def _verb(options: argparse.Namespace, out: Path) -> int:
    if options.verb == "run":
        scratch = options.scratch or out.with_name(out.name + "-scratch")
        stub = options.power == "stub"
        return run(Options(out, scratch.resolve(), options.engine, stub), options.minutes)
    if options.verb == "adopt":
        from cards import adopt

        return adopt(out)
    from report import write_all

    write_all(out)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
