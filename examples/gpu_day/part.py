"""One part of a GPU day, in a process of its own: what it measured is kept whatever happens to it.

python part.py NAME OPTIONS SECONDS     # day.py starts it so; OPTIONS are JSON
"""

import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu import DayGpu, RealGpu, StubGpu, facts
from plan import ON_GPU, REHEARSAL, DayPlan
from rows import ENDED, HOST, DayError, RowsFile
from session import end_with_parent

from llm_carbon_meter.campaign.runner import installed_version
from llm_carbon_meter.testing.nvml_stub import SCRIPT_VARIABLE
from llm_carbon_meter.testing.servers import cuda_available

SHOWN = ("torch", "transformers", "vllm", "accelerate", "nvidia-ml-py", "matplotlib")
"""Packages whose versions the host's row has."""
LAST_LINES = 1
"""Of an error that are noted beside its first."""
COMPLETE, SHORT, FAILED, CUT = "complete", "short", "failed", "cut"
"""How a part ends: with all of it, with some of it, by an error, or by the end of its time."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a day was asked for."""

    out: Path
    scratch: Path
    """For models, servers' logs and the stub: nothing that is kept."""
    engine: str
    stub: bool

    def as_json(self) -> str:
        """For the process of a part."""
        return json.dumps([str(self.out), str(self.scratch), self.engine, self.stub])

    @classmethod
    def from_json(cls, text: str) -> "Options":
        """As `as_json` wrote them."""
        out, scratch, engine, stub = json.loads(text)
        return cls(Path(out), Path(scratch), engine, stub)

    @property
    def plan(self) -> DayPlan:
        """Its sizes."""
        return REHEARSAL if self.stub else ON_GPU


@dataclass(frozen=True, slots=True)
class Day:
    """What a part works with."""

    options: Options
    gpu: DayGpu
    rows: RowsFile
    deadline_s: float
    """Monotonic; nothing is begun that would end later."""

    @property
    def plan(self) -> DayPlan:
        """Its sizes."""
        return self.options.plan

    @property
    def left_s(self) -> float:
        """Until the deadline; 0 after it."""
        return max(self.deadline_s - time.monotonic(), 0.0)

    @property
    def limit_s(self) -> float:
        """Monotonic: when nothing more is begun whatever is missing."""
        return time.monotonic() + self.plan.patience_s if self.options.stub else self.deadline_s

    def has_time(self, seconds: float) -> bool:
        """Whether to begin what takes so long; a rehearsal goes through everything."""
        return self.options.stub or self.left_s >= seconds


Run = Callable[[Day], str]
"""Measures; what is missing afterwards, in words: nothing where the part is complete."""


def run_of(name: str) -> Run:
    """A part by its name; its module is imported here, in its own process."""
    run: Run = import_module(f"part_{name}").run
    return run


def host(day: Day) -> Mapping[str, Any]:
    """What is measured on.

    Raises:
        DayError: NVML or torch cannot use it.
    """
    if day.gpu.device == "cuda" and not cuda_available():
        raise DayError(
            "NVML shows a GPU, and this torch cannot use it (torch.cuda.is_available() is False): "
            "name the Python whose torch can, make gpu-day PYTHON=…"
        )
    return {
        **facts(day.gpu),
        "device": day.gpu.device,
        "engine": day.options.engine,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {package: installed_version(package) or "not installed" for package in SHOWN},
    }


def execute(name: str, day: Day, run: Run) -> str:
    """Run a part and note how it ended.

    Returns:
        COMPLETE, SHORT or FAILED.
    """
    began_s = time.monotonic()
    try:
        missing = run(day)
        how, note = (SHORT, missing) if missing else (COMPLETE, "")
    except Exception as error:  # noqa: BLE001 - boundary: the day goes on with its next part
        traceback.print_exc()
        how, note = FAILED, shortened(error)
    seconds = round(time.monotonic() - began_s, 1)
    day.rows.add(name, ENDED, how=how, note=note, seconds=seconds)
    return how


def shortened(error: Exception) -> str:
    """An error in a line: how it begins, and how it ends, which a log's reason does."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [""]
    ends = lines[1:][-LAST_LINES:]
    return f"{type(error).__name__}: " + " … ".join([lines[0], *ends])


def gpu_of(options: Options, environment: Mapping[str, str]) -> DayGpu:
    """The real GPU, or the script that the stub plays in this process."""
    return StubGpu(Path(environment[SCRIPT_VARIABLE])) if options.stub else RealGpu()


def main(name: str, options_json: str, seconds: str) -> int:
    """Run one part until it is complete or its time is over."""
    import os

    end_with_parent()
    options = Options.from_json(options_json)
    deadline_s = time.monotonic() + float(seconds)
    gpu = gpu_of(options, os.environ)
    rows = RowsFile(options.out, gpu.source)
    day = Day(options, gpu, rows, deadline_s)
    if name == HOST:
        _note_host(day)
        return 0
    return 0 if execute(name, day, run_of(name)) == COMPLETE else 1


def _note_host(day: Day) -> None:
    """A row; what is there of another GPU or engine is in the way.

    Raises:
        DayError: the folder has rows of another GPU or engine.
    """
    now, before = host(day), [row for row in day.rows.rows if row["kind"] == HOST]
    for name in ("gpu", "engine"):
        if before and before[-1][name] != now[name]:
            raise DayError(
                f"{day.options.out} has rows of {before[-1][name]}, and this is {now[name]}: name "
                "another OUT"
            )
    day.rows.add(HOST, HOST, **now)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except DayError as error:
        sys.exit(str(error))
