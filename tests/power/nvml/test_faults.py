"""Sensors that do not say what they seem to: each is labelled or refused, none is guessed."""

import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import pynvml
import pytest

from llm_carbon_meter.power.contention import Sharing
from llm_carbon_meter.power.nvml.architectures import Measured
from llm_carbon_meter.power.nvml.nvml_meter import ZERO_BELIEVED_S, NvmlMeter, open_nvml
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading, PowerError, Quality
from llm_carbon_meter.testing.nvml_stub import StubScript
from tests.support.scripted_nvml import MIG_UUID, UUIDS, read_for

ALWAYS = "0 9e9"


def one(meter: PowerMeter) -> EnergyReading:
    """The reading of the only GPU."""
    [reading] = meter.read()
    return reading


def alone(gpu: str, listed: Sequence[int]) -> Sharing:
    """A judge for tests of other things."""
    return Sharing.ALONE


def reviewed(meter: NvmlMeter) -> Quality:
    """The quality of a reading after a review."""
    meter.review(alone)
    return one(meter).quality


@pytest.mark.parametrize("device", [MIG_UUID, "0", UUIDS[0]])
def test_mig_is_refused_unless_the_whole_gpu_is_ours(stub: Any, device: str) -> None:
    """A slice, or a GPU with slices, is an error that names the setting."""
    stub.steady(100, extra=(f"mig 0 {ALWAYS}",))
    with pytest.raises(PowerError, match=r"MIG mode.*LLM_CARBON_METER_MIG_PARENT=1"):
        open_nvml([device])
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


def test_mig_slices_that_are_all_ours_read_their_parent(stub: Any) -> None:
    """Where all slices are said to be ours the GPU is read, once, and says mig_parent."""
    stub.steady(100, 300, extra=(f"mig 0 {ALWAYS}",))
    meter = open_nvml([MIG_UUID, MIG_UUID], mig_parent=True)
    reading = one(meter)
    meter.close()
    assert meter.quality is reading.quality is Quality.MIG_PARENT
    assert reading.gpu == UUIDS[0]
    assert reading.joules == pytest.approx(100 * 60, rel=0.05)


@pytest.mark.parametrize(
    ("fault", "quality"), [("mig", Quality.MIG_PARENT), ("module", Quality.MODULE_SCOPE)]
)
def test_a_scope_that_changes_shows_at_the_next_review(
    stub: Any, fault: str, quality: Quality
) -> None:
    """From then on readings carry the label, and lose it when the cause is gone."""
    stub.steady(100)
    meter = open_nvml(["0"])
    before = reviewed(meter)
    stub.steady(100, extra=(f"{fault} 0 {ALWAYS}",))
    meanwhile = reviewed(meter)
    stub.steady(100)
    after = reviewed(meter)
    meter.close()
    assert (before, meanwhile, after) == (Quality.COUNTER, quality, Quality.COUNTER)


def test_a_grace_hopper_module_is_labelled(stub: Any) -> None:
    """Its sensors count the CPU on the same board too."""
    stub.steady(100, extra=(f"module 0 {ALWAYS}",))
    meter = open_nvml(["0"])
    meter.close()
    assert meter.quality is Quality.MODULE_SCOPE


def test_other_processes_lower_the_label_of_their_gpu(stub: Any) -> None:
    """The judge gets each GPU's processes; its verdict marks that GPU's readings alone."""
    stub.steady(100, 200, extra=(f"process 1 {ALWAYS} 4711", f"process 1 {ALWAYS} 4712"))
    meter = open_nvml(["0", "1"])
    seen = {}

    def judge(gpu: str, listed: Sequence[int]) -> Sharing:
        seen[gpu] = list(listed)
        return Sharing.SHARED if listed else Sharing.ALONE

    meter.review(judge)
    readings = meter.read()
    meter.close()
    assert seen == {UUIDS[0]: [], UUIDS[1]: [4711, 4712]}
    assert [reading.quality for reading in readings] == [Quality.COUNTER, Quality.CONTENDED]


def test_processes_of_another_namespace_change_nothing(stub: Any) -> None:
    """Unknown is not contended."""
    stub.steady(100, extra=(f"process 0 {ALWAYS} 4711",))
    meter = open_nvml(["0"])
    meter.review(lambda gpu, listed: Sharing.UNKNOWN)
    reading = one(meter)
    meter.close()
    assert reading.quality is Quality.COUNTER


def test_a_review_skips_a_gpu_that_is_lost(stub: Any) -> None:
    """It keeps its label, and the other is still reviewed."""
    script = stub.steady(100, 200)
    meter = open_nvml(["0", "1"])
    stub.play(
        StubScript(
            2,
            script.power,
            origin_s=script.origin_s,
            extra=(f"lost 0 {ALWAYS}", f"module 1 {ALWAYS}"),
        )
    )
    meter.read()
    meter.read()  # a new session: GPU 0 has no handle now
    meter.review(alone)
    [reading] = meter.read()
    meter.close()
    assert (reading.gpu, reading.quality) == (UUIDS[1], Quality.MODULE_SCOPE)


def test_a_review_of_a_lost_gpu_keeps_what_was_known(stub: Any) -> None:
    """No answer is no sign that the module or the slices are gone."""
    module = f"module 0 {ALWAYS}"
    stub.steady(100, extra=(module,))
    meter = open_nvml(["0"])
    stub.steady(100, extra=(f"lost 0 {ALWAYS}",))
    meter.review(alone)
    stub.steady(100)
    reading = one(meter)
    meter.close()
    assert reading.quality is Quality.MODULE_SCOPE


@pytest.mark.parametrize("extra", [(), ("unsupported 0 instant",)])
def test_a_counter_that_is_always_0_is_not_believed(
    stub: Any, clock: Any, extra: tuple[str, ...]
) -> None:
    """After a second of power without counting, power is integrated, that second included."""
    stub.steady(200, extra=(f"zero 0 {ALWAYS}", *extra))
    meter = open_nvml(["0"], clock)
    readings = []
    for _ in range(9):
        readings.append(one(meter))
        clock.ahead_s += ZERO_BELIEVED_S / 4
    meter.close()
    first, last = readings[0], readings[-1]
    assert [reading.joules for reading in readings[:4]] == [0.0] * 4
    assert first.quality is Quality.COUNTER
    assert last.quality is Quality.POWER
    assert last.joules == pytest.approx(200 * (last.monotonic_s - first.monotonic_s), rel=1e-3)


def test_a_counter_that_falls_to_0_under_load_is_replaced_by_power(stub: Any, clock: Any) -> None:
    """The fall is a reset as any other; what follows is power's, from the fall on."""
    script = stub.steady(200)
    meter = open_nvml(["0"], clock)
    before = one(meter)
    stub.play(StubScript(1, script.power, origin_s=script.origin_s, extra=(f"zero 0 {ALWAYS}",)))
    fallen = one(meter)
    for _ in range(3):
        clock.ahead_s += 0.5
        last = one(meter)
    meter.close()
    assert before.joules > fallen.joules == 0.0
    assert last.quality is Quality.POWER
    assert last.joules == pytest.approx(200 * (last.monotonic_s - fallen.monotonic_s), rel=1e-3)


@pytest.mark.parametrize(("old", "quality"), [(False, Quality.COUNTER), (True, Quality.IMPOSSIBLE)])
def test_a_reset_to_0_is_still_a_counter(
    stub: Any, clock: Any, old: bool, quality: Quality
) -> None:
    """A counter that starts again within the second goes on being read.

    Where it is back at its old value, what it has gained since the 0 was not drawn.
    """
    script = stub.steady(200)
    meter = open_nvml(["0"], clock)
    stub.play(StubScript(1, script.power, origin_s=script.origin_s, extra=(f"zero 0 {ALWAYS}",)))
    one(meter)
    origin_s = script.origin_s if old else time.monotonic()
    stub.play(StubScript(1, script.power, origin_s=origin_s))
    clock.ahead_s += 0.5
    again = one(meter)
    meter.close()
    assert again.quality is quality
    assert again.joules == pytest.approx(200 * 60 if old else 0, rel=0.05, abs=100)


def test_an_idle_counter_at_0_is_believed(stub: Any, clock: Any) -> None:
    """Nothing drawn, nothing counted."""
    stub.steady(0)
    meter = open_nvml(["0"], clock)
    for _ in range(5):
        clock.ahead_s += 0.5
        reading = one(meter)
    meter.close()
    assert (reading.joules, reading.quality) == (0.0, Quality.COUNTER)


def _read_in_fork(meter: PowerMeter, answer: "Connection[Any, Any]") -> None:
    try:
        meter.read()
    except PowerError as error:
        answer.send(str(error))
    meter.close()
    answer.send("closed")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_never_uses_its_parents_session(stub: Any) -> None:
    """Reading in a forked child is an error that says so; closing there leaves the parent's."""
    stub.steady(100)
    meter = open_nvml(["0"])
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_read_in_fork, args=(meter, theirs))
    child.start()
    said = ours.recv()
    assert f"opened by process {os.getpid()} and read by its fork {child.pid}" in said
    assert ours.recv() == "closed"
    child.join()
    assert one(meter).joules > 0
    meter.close()


@pytest.mark.parametrize(("architecture", "delay_s"), [(6, 0.0), (9, 0.5)])
def test_power_that_is_an_average_is_stamped_at_its_middle(
    stub: Any, architecture: int, delay_s: float
) -> None:
    """From Ada on the only power of a GPU without counter and field is the last second's mean."""
    extra = ("unsupported 0 energy", "unsupported 0 instant", f"architecture {architecture}")
    stub.steady(100, extra=extra)
    meter = open_nvml(["0"])
    now_s = time.monotonic()
    reading = one(meter)
    meter.close()
    assert reading.monotonic_s == pytest.approx(now_s - delay_s, abs=0.1)


def test_a_measured_lag_moves_the_readings(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pytest -m gpu` found of a GPU's counter is used for GPUs of that name."""
    monkeypatch.setattr(
        "llm_carbon_meter.power.nvml.sensors.measured",
        {"NVIDIA Tested": Measured(period_s=0.02, lag_s=0.3)}.get,
    )
    stub.steady(100, extra=("name NVIDIA Tested",))
    meter = open_nvml(["0"])
    now_s = time.monotonic()
    reading = one(meter)
    meter.close()
    assert reading.monotonic_s == pytest.approx(now_s - 0.3, abs=0.1)
    assert reading.lag_s == 0.3


def test_a_binding_without_the_module_call_is_no_module(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old releases of nvidia-ml-py do not know nvmlDeviceGetC2cModeInfoV."""
    monkeypatch.delattr(pynvml, "nvmlDeviceGetC2cModeInfoV")
    stub.steady(100)
    meter = open_nvml(["0"])
    meter.close()
    assert meter.quality is Quality.COUNTER


def test_a_driver_without_the_list_of_processes_names_nobody(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scope is still looked at."""

    def missing(handle: object) -> None:
        raise pynvml.NVMLLibraryMismatchError

    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", missing)
    stub.steady(100)
    meter = open_nvml(["0"])
    stub.steady(100, extra=(f"module 0 {ALWAYS}", f"process 0 {ALWAYS} 4711"))
    meter.review(lambda gpu, listed: Sharing.SHARED if listed else Sharing.ALONE)
    reading = one(meter)
    meter.close()
    assert reading.quality is Quality.MODULE_SCOPE


def test_slow_calls_are_waited_for_and_read_right(stub: Any) -> None:
    """Half of a call is before the reading's time, half after it: joules and time fit."""
    script = stub.steady(100)
    meter = open_nvml(["0"])
    stub.play(
        StubScript(1, script.power, origin_s=script.origin_s, extra=(f"slow_ms 0 {ALWAYS} 60",))
    )
    polls = read_for(meter, 0.3)
    meter.close()
    [first], [last] = polls[0], polls[-1]
    drawn = 100 * (last.monotonic_s - first.monotonic_s)
    assert last.joules - first.joules == pytest.approx(drawn, abs=100 * 0.03)
