"""A compiled NVML under the real nvidia-ml-py, one script per test."""

import ctypes
import time
from pathlib import Path

import pynvml
import pytest

from llm_carbon_meter.testing.nvml_stub import (
    LIBRARY,
    LOG_VARIABLE,
    SCRIPT_VARIABLE,
    CounterRead,
    StubScript,
    build,
    read_log,
)


@pytest.fixture(scope="session")
def stub_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stub lies, compiled once."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def stub_library(stub_directory: Path) -> ctypes.CDLL:
    """The stub in this process."""
    return ctypes.CDLL(str(stub_directory / LIBRARY))


class Stub:
    """The script that plays now, and the log of what was read."""

    def __init__(self, directory: Path) -> None:
        self.script_path = directory / "script"
        self.log_path = directory / "log"

    def play(self, script: StubScript) -> StubScript:
        script.write(self.script_path)
        return script

    def steady(self, *watts: float, extra: tuple[str, ...] = ()) -> StubScript:
        """Constant watts, one figure a GPU; counters start a minute ago."""
        power = {gpu: [(0.0, value)] for gpu, value in enumerate(watts)}
        origin_s = time.monotonic() - 60
        return self.play(StubScript(len(watts), power, origin_s=origin_s, extra=extra))

    def log(self, gpu: int = 0) -> list[CounterRead]:
        return [read for read in read_log(self.log_path) if read.gpu == gpu]


@pytest.fixture
def stub(stub_library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """NVML is our stub in this test, and whatever it was before afterwards."""
    stub = Stub(tmp_path)
    monkeypatch.setenv(SCRIPT_VARIABLE, str(stub.script_path))
    monkeypatch.setenv(LOG_VARIABLE, str(stub.log_path))
    monkeypatch.setattr(pynvml, "nvmlLib", stub_library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return stub


class MovableClock:
    """``time.monotonic`` that a test can push forward, and that remembers what it said."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.said: list[float] = []

    def __call__(self) -> float:
        self.said.append(time.monotonic() + self.ahead_s)
        return self.said[-1]


@pytest.fixture
def clock() -> MovableClock:
    """For the meter under test."""
    return MovableClock()
