"""The stub of NVML itself: it answers as its script says, and explains what it cannot do."""

import ctypes
import importlib.metadata
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest

from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.records import MeterError, PowerError
from llm_carbon_meter.testing.nvml_stub import StubScript, build, read_log
from tests.support.interpreters import run_python


def test_stub_serves_a_process_by_library_path(stub_directory: Path, tmp_path: Path) -> None:
    """A process started with the three variables sees the scripted GPUs and writes the log."""
    script = StubScript(2, {0: [(0, 100)], 1: [(0, 400)]}, origin_s=time.monotonic() - 10)
    code = (
        "from llm_carbon_meter.power.nvml.nvml_meter import open_nvml\n"
        "print(*(reading.joules for reading in open_nvml(['0', '1']).read()))"
    )
    result = run_python(
        code,
        LD_LIBRARY_PATH=str(stub_directory),
        NVML_STUB_SCRIPT=str(script.write(tmp_path / "script")),
        NVML_STUB_LOG=str(tmp_path / "log"),
    )
    assert result.returncode == 0, result.stderr
    log = read_log(tmp_path / "log")
    shown = [float(word) for word in result.stdout.split()]
    assert shown == pytest.approx([read.millijoules / 1000 for read in log[-2:]])
    for read in log:
        expected = script.counter_joules(read.gpu, read.monotonic_s)
        assert read.millijoules / 1000 == pytest.approx(expected, abs=1.001e-3)


def test_field_value_has_the_layout_of_the_stub() -> None:
    """The binding's field value is 40 bytes, which the stub asserts of its own."""
    assert ctypes.sizeof(pynvml.c_nvmlFieldValue_t) == 40
    assert importlib.metadata.version("nvidia-ml-py")


def mean_milliwatts(script: StubScript) -> float:
    """Average of the last second."""
    now_s = time.monotonic()
    return script.integral_joules(0, now_s - 1, now_s) * 1000


def test_stub_answers_the_other_calls(stub: Any) -> None:
    """Name, architecture, driver and the average power of the last second can be asked."""
    script = stub.play(
        StubScript(
            1,
            {0: [(0, 0), (0, 100), (2, 100), (2, 900)]},
            origin_s=time.monotonic() - 2.5,
            extra=("name NVIDIA H100 80GB", "architecture 10"),
        )
    )
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA H100 80GB"
        assert pynvml.nvmlDeviceGetArchitecture(handle) == pynvml.NVML_DEVICE_ARCH_BLACKWELL
        assert pynvml.nvmlSystemGetDriverVersion()
        before = mean_milliwatts(script) - 1
        average, energy = pynvml.nvmlDeviceGetFieldValues(handle, [185, 191])
        usage = pynvml.nvmlDeviceGetPowerUsage(handle)
        after = mean_milliwatts(script) + 1
        assert before < average.value.uiVal <= usage < after
        assert energy.value.ullVal == stub.log()[-1].millijoules
    finally:
        pynvml.nvmlShutdown()


def test_broken_script_line_is_reported(stub: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """A line that the stub cannot read stops it, with the line's number on stderr."""
    stub.script_path.write_text("gpus 1\npower 0 zero 5\n")
    with pytest.raises(PowerError, match="load the NVIDIA driver"):
        open_nvml(["0"])
    assert "line 2" in capfd.readouterr().err


def test_build_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler: the error says what was tried and how to go on without the stub."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeterError, match=r"tried cc, gcc and clang.*install gcc"):
        build(tmp_path)


def test_build_that_fails_shows_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that refuses is quoted."""
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho it will not do >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MeterError, match="it will not do"):
        build(tmp_path)
