"""NVML through the real binding, on the compiled stub."""

import ctypes
import importlib.metadata
import itertools
import os
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.power.integral import PowerIntegral
from llm_carbon_meter.power.nvml.devices import visible_devices
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading, MeterError, PowerError, Quality, Source
from llm_carbon_meter.testing.nvml_stub import (
    StubScript,
    build,
    read_log,
)

UUIDS = [f"GPU-00000000-0000-0000-0000-{gpu:012d}" for gpu in range(4)]
MIG_UUID = UUIDS[0].replace("GPU-", "MIG-")


def read_for(meter: PowerMeter, seconds: float) -> list[Sequence[EnergyReading]]:
    """Poll every 10 ms."""
    end = time.monotonic() + seconds
    polls = []
    while time.monotonic() < end:
        polls.append(meter.read())
        time.sleep(0.01)
    return polls


@pytest.mark.parametrize("period_ms", [0, 20, 100])
@pytest.mark.parametrize("lag_ms", [0, 30])
def test_counter_is_the_integral_of_the_power(stub: Any, period_ms: float, lag_ms: float) -> None:
    """Every reading is the integral of the scripted power to 1 mJ, with ticks and lag."""
    script = stub.play(
        StubScript(
            gpus=1,
            power={0: [(0, 90), (0.05, 700), (0.05, 300), (0.12, 500), (0.2, 100)]},
            period_ms=period_ms,
            lag_ms=lag_ms,
            cycle_s=0.2,
            origin_s=time.monotonic() - 3,
        )
    )
    meter = open_nvml(["0"])
    polls = read_for(meter, 0.25)
    meter.close()
    log = stub.log()[1:]  # the first read is the probe
    assert len(log) == len(polls)
    for read, [reading] in zip(log, polls, strict=True):
        expected = script.counter_joules(0, read.monotonic_s)
        assert reading.joules == pytest.approx(expected, abs=1.001e-3)
        assert reading.joules == pytest.approx(read.millijoules / 1000)
    assert (meter.source, meter.quality) == (Source.MEASURED, Quality.COUNTER)


def test_delta_between_readings_is_the_energy_drawn(stub: Any) -> None:
    """Between two reads of a continuous counter lie the joules drawn between them."""
    script = stub.play(StubScript(1, {0: [(0, 100), (0.2, 900), (0.3, 50)]}))
    meter = open_nvml([UUIDS[0]])
    polls = read_for(meter, 0.2)
    meter.close()
    log = stub.log()[1:]
    for (read0, [first]), (read1, [second]) in itertools.pairwise(zip(log, polls, strict=True)):
        drawn = script.integral_joules(0, read0.monotonic_s, read1.monotonic_s)
        assert second.joules - first.joules == pytest.approx(drawn, abs=1.001e-3)


def test_two_gpus_are_read_apart_in_the_order_asked(stub: Any) -> None:
    """Readings come in the order of the devices, each with its own power and UUID."""
    stub.steady(100, 400)
    meter = open_nvml(["1", UUIDS[0]])
    first, second = meter.read(), meter.read()
    meter.close()
    assert list(meter.gpus) == [UUIDS[1], UUIDS[0]]
    assert [reading.gpu for reading in first] == [UUIDS[1], UUIDS[0]]
    assert [reading.watts for reading in second] == pytest.approx([400, 100])
    assert first[0].joules == pytest.approx(400 * 60, rel=0.05)
    assert first[1].joules == pytest.approx(100 * 60, rel=0.05)


def test_one_call_of_field_values_per_gpu_and_poll(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll asks each GPU once, for the counter and the instant power together."""
    stub.steady(100, 400)
    meter = open_nvml(["0", "1"])
    calls = []
    original = pynvml.nvmlDeviceGetFieldValues

    def counted(handle: object, fields: Sequence[int]) -> object:
        calls.append(tuple(fields))
        return original(handle, fields)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", counted)
    meter.read()
    meter.close()
    assert calls == [(83, 186), (83, 186)]


@pytest.mark.parametrize(
    ("value", "first", "count", "expected"),
    [
        (None, 0, 2, ["0", "1"]),
        (None, 2, 2, ["2", "3"]),
        ("3,1", 0, 2, ["3", "1"]),
        ("3, 1 ,0,2", 2, 2, ["0", "2"]),
        (f"{UUIDS[1]},{UUIDS[0]}", 0, 1, [UUIDS[1]]),
        (MIG_UUID, 0, 1, [MIG_UUID]),
        ("1,-1,0", 0, 1, ["1"]),
    ],
)
def test_visible_devices(value: str | None, first: int, count: int, expected: list[str]) -> None:
    """An engine's GPUs are its slice of CUDA_VISIBLE_DEVICES, in that order."""
    assert visible_devices(value, first, count) == expected


@pytest.mark.parametrize("value", ["", "-1", "0", "0,-1,1", "0,NoDevFiles,1"])
def test_too_few_visible_devices(value: str) -> None:
    """As in CUDA the list ends at the first entry that is no device; too few is an error."""
    with pytest.raises(PowerError, match="list at least 2 GPUs"):
        visible_devices(value, 0, 2)


@settings(deadline=None)
@given(st.one_of(st.none(), st.text()), st.integers(0, 8), st.integers(1, 8))
def test_visible_devices_gives_count_or_an_error(value: str | None, first: int, count: int) -> None:
    """Whatever the variable holds, the engine gets all its GPUs or a PowerError."""
    try:
        devices = visible_devices(value, first, count)
    except PowerError:
        return
    assert len(devices) == count


def test_uuid_may_be_shortened_if_unique(stub: Any) -> None:
    """CUDA accepts the first characters of a UUID, so we do where they fit one GPU."""
    stub.steady(100)
    meter = open_nvml(["GPU-0000"])
    meter.close()
    assert list(meter.gpus) == [UUIDS[0]]
    stub.steady(100, 200)
    with pytest.raises(PowerError, match="was asked for"):
        open_nvml(["GPU-0000"])


@pytest.mark.parametrize("device", ["GPU-ffff", "MIG-ffff", "", "gpu0", MIG_UUID])
def test_unknown_device_lists_those_found(stub: Any, device: str) -> None:
    """A device that does not exist is an error that lists what does."""
    stub.steady(100, 200)
    with pytest.raises(PowerError, match=f"{UUIDS[0]}, {UUIDS[1]}"):
        open_nvml([device])


def test_index_out_of_range_says_how_many_were_found(stub: Any) -> None:
    """An index too high is an error with the number of GPUs."""
    stub.steady(100, 200)
    with pytest.raises(PowerError, match="GPU 2 was asked for, NVML found 2"):
        open_nvml(["0", "2"])


def test_failed_opening_leaves_no_session(stub: Any) -> None:
    """If a device is wrong, the NVML session is closed again."""
    stub.steady(100)
    with pytest.raises(PowerError):
        open_nvml(["7"])
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


def test_no_device_is_an_error(stub: Any) -> None:
    """A meter of no GPU cannot be opened."""
    stub.steady(100)
    with pytest.raises(PowerError, match="no GPU"):
        open_nvml([])


def test_counter_call_where_the_field_is_missing(stub: Any) -> None:
    """Field 83 unsupported but the energy call works: still a counter, and power is shown."""
    stub.steady(250, extra=("unsupported 0 energy_field",))
    meter = open_nvml(["0"])
    [reading] = meter.read()
    meter.close()
    assert meter.quality is Quality.COUNTER
    assert reading.joules == pytest.approx(250 * 60, rel=0.05)
    assert reading.watts == pytest.approx(250)


def test_counter_without_power_has_no_watts(stub: Any) -> None:
    """Where instant power is unsupported the watts are unknown, and the joules unharmed."""
    stub.steady(250, extra=("unsupported 0 instant",))
    meter = open_nvml(["0"])
    [reading] = meter.read()
    meter.close()
    assert reading.watts is None
    assert reading.joules == pytest.approx(250 * 60, rel=0.05)


def test_power_that_stops_does_not_stop_the_counter(stub: Any) -> None:
    """Instant power that fails later only loses the watts on display."""
    stub.steady(250)
    meter = open_nvml(["0"])
    stub.steady(250, extra=("unsupported 0 instant",))
    [reading] = meter.read()
    meter.close()
    assert reading.watts is None
    assert reading.joules > 0


@pytest.mark.parametrize("extra", [(), ("unsupported 0 instant",)])
def test_power_fallback_integrates(stub: Any, extra: tuple[str, ...]) -> None:
    """Without a counter, power over time gives the joules, from field 186 or the default power."""
    stub.steady(200, extra=("unsupported 0 energy", *extra))
    meter = open_nvml(["0"])
    polls = read_for(meter, 0.15)
    meter.close()
    [first], [last] = polls[0], polls[-1]
    elapsed_s = last.monotonic_s - first.monotonic_s
    assert meter.quality is Quality.POWER
    assert meter.source is Source.MEASURED
    assert first.joules == 0
    assert last.joules == pytest.approx(200 * elapsed_s, rel=1e-4)
    assert last.watts == pytest.approx(200)
    assert not stub.log()


def test_power_fallback_follows_a_ramp(stub: Any) -> None:
    """Trapezoids are exact on straight lines: a ramp of power gives its integral."""
    script = stub.play(
        StubScript(
            gpus=1,
            power={0: [(0, 100), (3, 700)]},
            origin_s=time.monotonic() - 1,
            extra=("unsupported 0 energy",),
        )
    )
    meter = open_nvml(["0"])
    polls = read_for(meter, 0.2)
    meter.close()
    [first], [last] = polls[0], polls[-1]
    drawn = script.integral_joules(0, first.monotonic_s, last.monotonic_s)
    samples = itertools.pairwise(reading for [reading] in polls)
    areas = [
        (b.monotonic_s - a.monotonic_s) * ((a.watts or 0) + (b.watts or 0)) / 2 for a, b in samples
    ]
    assert last.joules == pytest.approx(sum(areas))
    assert last.joules == pytest.approx(drawn, rel=0.1)


def test_gap_between_power_samples_is_not_bridged(stub: Any, clock: Any) -> None:
    """Nobody knows the joules of a gap over 1 s, so the integral stands still over it."""
    stub.steady(200, extra=("unsupported 0 energy",))
    meter = open_nvml(["0"], clock)
    meter.read()
    clock.ahead_s += 0.5
    [before] = meter.read()
    clock.ahead_s += 1.1
    [after] = meter.read()
    clock.ahead_s += 0.5
    [later] = meter.read()
    meter.close()
    assert before.joules == pytest.approx(100, rel=0.2)
    assert after.joules == before.joules
    assert (before.quality, after.quality) == (Quality.POWER, Quality.RESET)
    assert later.quality is Quality.POWER
    elapsed_s = later.monotonic_s - after.monotonic_s
    assert later.joules - after.joules == pytest.approx(200 * elapsed_s)


def test_power_integral_restarts_after_a_failed_read() -> None:
    """A trapezoid joins only two good reads in a row."""
    integral = PowerIntegral()
    integral.add(0.0, 100.0)
    assert integral.add(0.5, 300.0) == pytest.approx(100)
    integral.restart()
    assert integral.add(1.0, 300.0) == pytest.approx(100)
    assert integral.add(1.5, 300.0) == pytest.approx(250)
    assert integral.add(2.5, 300.0) == pytest.approx(550)
    assert integral.add(3.6, 300.0) == pytest.approx(550)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1000)), max_size=50))
def test_power_integral_never_falls(samples: list[tuple[float, float]]) -> None:
    """Joules from power only rise, whatever the gaps."""
    integral, t, shown = PowerIntegral(), 0.0, 0.0
    for step_s, watts in samples:
        t += step_s
        joules = integral.add(t, watts)
        assert joules >= shown
        shown = joules


def test_mixed_qualities_give_the_worst(stub: Any) -> None:
    """One GPU without a counter makes the figure of the whole engine a power figure."""
    stub.steady(200, 200, extra=("unsupported 1 energy",))
    meter = open_nvml(["0", "1"])
    meter.close()
    assert meter.quality is Quality.POWER


def test_neither_counter_nor_power_is_an_error(stub: Any) -> None:
    """A GPU that supports nothing cannot be metered: the error says so and what to do."""
    fields = ("energy", "instant", "average", "usage")
    stub.steady(200, extra=tuple(f"unsupported 0 {name}" for name in fields))
    with pytest.raises(PowerError, match=r"neither.*LLM_CARBON_METER_POWER=modelled"):
        open_nvml(["0"])


def test_lost_gpu_is_left_out_and_comes_back(stub: Any, clock: Any) -> None:
    """While a GPU is lost the other is still read; the lost one returns in a new session."""
    script = stub.steady(100, 400)
    meter = open_nvml(["0", "1"], clock)
    assert len(meter.read()) == 2
    stub.play(StubScript(2, script.power, origin_s=script.origin_s, extra=("lost 0 0 9e9",)))
    assert [reading.gpu for reading in meter.read()] == [UUIDS[1]]
    assert [reading.gpu for reading in meter.read()] == [UUIDS[1]]  # reopened: still away
    stub.play(script)
    assert [reading.gpu for reading in meter.read()] == [UUIDS[1]]  # not again within 1 s
    clock.ahead_s += 1.1
    back, other = meter.read()
    meter.close()
    assert back.joules == pytest.approx(100 * 60, rel=0.05)
    assert other.joules == pytest.approx(400 * 60, rel=0.05)


def test_lost_gpu_restarts_its_power_integral(stub: Any, clock: Any) -> None:
    """Joules drawn while a GPU did not answer are not invented from its power before and after."""
    fallback = "unsupported 0 energy"
    stub.steady(200, extra=(fallback,))
    meter = open_nvml(["0"], clock)
    meter.read()
    stub.steady(200, extra=(fallback, "lost 0 0 9e9"))
    with pytest.raises(PowerError):
        meter.read()
    stub.steady(200, extra=(fallback,))
    clock.ahead_s += 0.5
    [back] = meter.read()
    meter.close()
    assert back.joules == 0
    assert back.quality is Quality.RESET


def test_every_gpu_lost_is_an_error(stub: Any) -> None:
    """No answer at all is a PowerError that names the GPUs."""
    stub.steady(100, 400)
    meter = open_nvml(["0", "1"])
    stub.steady(100, 400, extra=("lost 0 0 9e9", "lost 1 0 9e9"))
    with pytest.raises(PowerError, match=f"{UUIDS[0]}, {UUIDS[1]}.*fell off the bus"):
        meter.read()
    meter.close()


def test_ended_session_is_opened_again(stub: Any) -> None:
    """If somebody ends NVML under the meter, the next read but one works again."""
    stub.steady(100)
    meter = open_nvml(["0"])
    pynvml.nvmlShutdown()
    with pytest.raises(PowerError, match="session ended"):
        meter.read()
    assert len(meter.read()) == 1
    meter.close()


def test_driver_that_stays_away_is_retried(stub: Any, clock: Any) -> None:
    """While NVML cannot be opened again reads fail clearly, and work once it can."""
    script = stub.steady(100)
    meter = open_nvml(["0"], clock)
    pynvml.nvmlShutdown()
    stub.steady(100, extra=("init_error 9",))
    for _ in range(3):
        with pytest.raises(PowerError):
            meter.read()
    stub.play(script)
    clock.ahead_s += 1.1
    assert len(meter.read()) == 1
    meter.close()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


def test_reset_shows_as_a_drop(stub: Any) -> None:
    """A counter that starts again at 0 is passed on as it is: the ledger books resets."""
    script = stub.steady(100)
    meter = open_nvml(["0"])
    [before] = meter.read()
    reset_s = time.monotonic() - script.origin_s
    stub.play(StubScript(1, script.power, origin_s=script.origin_s, extra=(f"reset 0 {reset_s}",)))
    [after] = meter.read()
    meter.close()
    assert before.joules > 5000
    assert after.joules < 100


def test_slow_call_is_stamped_in_its_middle(stub: Any, clock: Any) -> None:
    """A driver that takes 100 ms is waited for; the time is the middle of the call."""
    stub.steady(100)
    meter = open_nvml(["0"], clock)
    stub.steady(100, extra=("slow_ms 0 0 9e9 100",))
    [reading] = meter.read()
    meter.close()
    before_s, after_s = clock.said[-2:]
    [_probe, read] = stub.log()
    assert after_s - before_s >= 0.1
    assert before_s < read.monotonic_s < after_s
    assert reading.monotonic_s == (before_s + after_s) / 2


@pytest.mark.parametrize(
    ("code", "advice"),
    [(9, "load the NVIDIA driver"), (4, "/dev/nvidia"), (18, "restart the host"), (77, "77")],
)
def test_init_error_says_what_to_do(stub: Any, code: int, advice: str) -> None:
    """Each way in which NVML refuses to open becomes a PowerError with advice."""
    stub.steady(100, extra=(f"init_error {code}",))
    with pytest.raises(PowerError, match=rf"NVML was opened.*{advice}.*=modelled"):
        open_nvml(["0"])


def test_read_after_close_is_an_error(stub: Any) -> None:
    """A closed meter does not read, and closing twice is harmless."""
    stub.steady(100)
    meter = open_nvml(["0"])
    meter.close()
    meter.close()
    with pytest.raises(PowerError, match="after close"):
        meter.read()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter from the repository's root."""
    root = Path(__file__).parents[3]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": "", "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def library_present() -> bool:
    """Whether a real driver is installed."""
    code = "import ctypes; ctypes.CDLL('libnvidia-ml.so.1')"
    return run_python(code).returncode == 0


def test_missing_library_names_driver_and_capability() -> None:
    """Without libnvidia-ml.so.1 the error names the driver, the capability, a way on."""
    if library_present():
        pytest.skip("this machine has an NVIDIA driver")
    result = run_python(
        "from llm_carbon_meter.power.nvml.nvml_meter import open_nvml; open_nvml(['0'])"
    )
    assert "PowerError" in result.stderr
    assert "NVIDIA_DRIVER_CAPABILITIES=utility" in result.stderr
    assert "LLM_CARBON_METER_POWER=modelled" in result.stderr


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


def test_importing_needs_no_pynvml() -> None:
    """The module can be imported where nvidia-ml-py is not installed; opening explains."""
    code = (
        "import sys; sys.modules['pynvml'] = None\n"
        "from llm_carbon_meter.power.nvml.nvml_meter import open_nvml\n"
        "open_nvml(['0'])"
    )
    assert "PowerError: pynvml was imported" in run_python(code).stderr


def test_wrong_pynvml_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that only shares the name is recognised by what it lacks."""
    monkeypatch.setitem(sys.modules, "pynvml", types.ModuleType("pynvml"))
    with pytest.raises(PowerError, match="pip uninstall pynvml"):
        open_nvml(["0"])


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
