"""NVML as a script plays it: the compiled stub under the real nvidia-ml-py, one script a test."""

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path

import pynvml
import pytest

from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading
from llm_carbon_meter.testing.nvml_stub import (
    LIBRARY,
    LOG_VARIABLE,
    SCRIPT_VARIABLE,
    CounterRead,
    StubScript,
    build,
    read_log,
)


def uuid_of(gpu: int) -> str:
    """The name that the stub gives a GPU."""
    return f"GPU-00000000-0000-0000-0000-{gpu:012d}"


UUIDS = [uuid_of(gpu) for gpu in range(4)]
MIG_UUID = UUIDS[0].replace("GPU-", "MIG-")


@pytest.fixture(scope="session")
def stub_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled stub of NVML."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def loaded_stub(stub_directory: Path) -> ctypes.CDLL:
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
def stub(loaded_stub: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """NVML is our stub in this test, and whatever it was before afterwards."""
    stub = Stub(tmp_path)
    monkeypatch.setenv(SCRIPT_VARIABLE, str(stub.script_path))
    monkeypatch.setenv(LOG_VARIABLE, str(stub.log_path))
    monkeypatch.setattr(pynvml, "nvmlLib", loaded_stub)
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


def read_for(meter: PowerMeter, seconds: float) -> list[Sequence[EnergyReading]]:
    """Poll every 10 ms."""
    end = time.monotonic() + seconds
    polls = []
    while time.monotonic() < end:
        polls.append(meter.read())
        time.sleep(0.01)
    return polls
