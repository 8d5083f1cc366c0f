"""What is found of GPUs, one oddity at a time, through the stub in this process."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.check import gpus
from llm_carbon_meter.check.findings import Finding, Report, Verdict
from llm_carbon_meter.check.gpus import check_power
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.ledger.kept_coefficients import KeptCoefficients
from llm_carbon_meter.ledger.lag_learner import LagLearner
from llm_carbon_meter.power.nvml.architectures import Measured
from llm_carbon_meter.records import Quality
from tests.support.scripted_nvml import MIG_UUID, UUIDS, uuid_of
from tests.support.steps.cost_models import LLAMA

ALWAYS = "0 9e9"


@pytest.fixture(autouse=True)
def _all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA hides nothing."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "sees_host_numbers", lambda listed: True)


def found(poll_s: float = 0.1, **settings: Any) -> tuple[dict[str, Finding], Quality]:
    """Findings by topic, and the quality."""
    findings = list(check_power(dataclasses.replace(Config(), **settings), poll_s))
    return {finding.topic.strip(): finding for finding in findings}, Report(findings).quality


@pytest.mark.parametrize(
    ("order", "visible", "verdict"),
    [
        ("", None, Verdict.NOTE),
        ("FASTEST_FIRST", "1,0", Verdict.NOTE),
        ("PCI_BUS_ID", None, Verdict.OK),
        ("", UUIDS[1], None),
    ],
)
def test_where_cuda_and_nvml_number_otherwise_it_is_said(
    stub: Any,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
    visible: str | None,
    verdict: Verdict | None,
) -> None:
    """On a host with GPUs of several types, unless the engine's are named by UUID."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    stub.steady(100, 100, extra=("name NVIDIA L4", "own_name 1 NVIDIA H100 80GB HBM3"))
    finding = found()[0].get("cuda order")
    assert (finding and finding.verdict) is verdict
    if verdict is Verdict.NOTE:
        assert finding is not None
        assert "has NVIDIA L4, NVIDIA H100 80GB HBM3, and CUDA numbers the fastest" in finding.text
        assert "set CUDA_DEVICE_ORDER=PCI_BUS_ID" in finding.text


def test_gpus_of_one_type_may_have_any_order(stub: Any) -> None:
    """Nothing is said of it."""
    stub.steady(100, 100)
    assert "cuda order" not in found()[0]


def test_processes_on_a_gpu_are_named(stub: Any) -> None:
    """They may be a server's own, so it is a note."""
    stub.steady(100, extra=(f"process 0 {ALWAYS} 4711", f"process 0 {ALWAYS} 4712"))
    findings, quality = found()
    assert findings["shared"].verdict is Verdict.NOTE
    assert "4711, 4712" in findings["shared"].text
    assert quality is Quality.COUNTER


def test_processes_of_another_namespace_are_unknown(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the numbers say nothing."""
    monkeypatch.setattr(gpus, "sees_host_numbers", lambda listed: False)
    stub.steady(100, extra=(f"process 0 {ALWAYS} 4711",))
    assert "unknown" in found()[0]["shared"].text


@pytest.mark.parametrize(
    ("name", "limit", "verdict", "words"),
    [
        ("NVIDIA GB300", None, Verdict.OK, "GB300, 1400 W; the GPU does not say its power limit"),
        ("NVIDIA B300 SXM6 AC", 1100, Verdict.OK, "B300, 1100 W; power limit 1100 W"),
        ("NVIDIA H800", 500, Verdict.OK, "H800, 700 W; power limit 500 W, which estimates and"),
        (
            "NVIDIA H20",
            500,
            Verdict.OK,
            "H20, 400 W; power limit 500 W, more than the data sheet's",
        ),
        ("NVIDIA L20", 9, Verdict.NOTE, "not taken: a power limit of 9 W cannot be that of L20"),
        ("GRID A100D-40C", None, Verdict.NOTE, "a virtual GPU, taken to have the whole A100-PCIe"),
        ("NVIDIA H101", 350, Verdict.NOTE, "H101 is not known, H100 is assumed; GPU 'NVIDIA H101'"),
        ("NVIDIA H101", 350, Verdict.NOTE, "nearest is H100; known: T4"),
    ],
)
def test_the_sheet_of_each_gpu_is_told(
    stub: Any, name: str, limit: int | None, verdict: Verdict, words: str
) -> None:
    """Its board power, the limit that is enforced, and what was assumed where none is known."""
    stub.steady(100, extra=(f"name {name}", *([f"limit 0 {limit}"] if limit else [])))
    sheet = found()[0]["sheet"]
    assert words in sheet.text
    assert sheet.verdict is verdict
    assert sheet.figures["power_limit_watts"] == limit


def test_a_clock_that_is_set_lower_is_told(stub: Any) -> None:
    """Estimates do not know clocks; locked ones cannot be read."""
    stub.steady(100, extra=("name NVIDIA H200", "clock 0 1200"))
    sheet = found()[0]["sheet"]
    assert "SM clock set to 1200 MHz of 1980" in sheet.text
    assert sheet.figures["clock_mhz"] == 1200


WITHOUT_SENSORS = tuple(f"unsupported 0 {sensor}" for sensor in ("energy", "instant", "usage"))


def test_a_known_gpu_without_a_sensor_is_modelled_by_its_own_sheet(stub: Any) -> None:
    """Not by the assumed one, whatever the settings assume; at its limit."""
    stub.steady(100, extra=("name Tesla T4", "limit 0 60", *WITHOUT_SENSORS))
    findings, quality = found(assume_gpu="L4")
    assert quality is Quality.MODELLED
    assert "load x the data sheet of T4 at 60 W (GPU 0 was looked up" in findings["power"].text
    assert found(power="modelled")[0]["power"].figures == {"sheet": "T4"}


def test_a_mig_instance_is_modelled_by_its_slice(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the whole GPU is read, where all its instances are ours."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", MIG_UUID)
    name = "NVIDIA A100-SXM4-80GB"
    lines = (f"name {name}", f"instance {name} MIG 1g.10gb", f"mig 0 {ALWAYS}")
    stub.steady(100, extra=lines)
    modelled, _ = found()
    assert "MIG 1g.10gb (Hopper)" in modelled["cuda 0"].text
    assert "1 of 7 slices of A100" in modelled["sheet"].text
    assert "data sheet of A100 MIG 1g.10gb" in modelled["power"].text
    read, quality = found(mig_parent=True)
    assert quality is Quality.MIG_PARENT
    assert read["sheet"].text.startswith("A100, 400 W")


def test_a_gpu_without_a_counter_is_taken_for_virtual(stub: Any) -> None:
    """Power is integrated, and the quality says so."""
    stub.steady(100, extra=("unsupported 0 energy",))
    findings, quality = found()
    assert "is this a virtual GPU?" in findings["counter"].text
    assert quality is Quality.POWER


def test_a_pascal_has_no_counter_by_the_manual(stub: Any) -> None:
    """Nothing is odd about power there."""
    stub.steady(100, extra=("unsupported 0 energy", "architecture 4"))
    assert "virtual" not in found()[0]["counter"].text


def test_a_counter_at_0_is_found_out(stub: Any) -> None:
    """It takes a second of watching."""
    stub.steady(100, extra=(f"zero 0 {ALWAYS}",))
    findings, quality = found(poll_s=1.3)
    assert findings["counter"].verdict is Verdict.NOTE
    assert quality is Quality.POWER


def test_a_module_is_said_and_labelled(stub: Any) -> None:
    """Its sensors count the CPU."""
    stub.steady(100, extra=(f"module 0 {ALWAYS}",))
    findings, quality = found()
    assert "count the CPU of its module" in findings["cuda 0"].text
    assert quality is Quality.MODULE_SCOPE


def test_slow_calls_show(stub: Any) -> None:
    """What a reading takes is measured."""
    stub.steady(100, extra=(f"slow_ms 0 {ALWAYS} 20",))
    assert found()[0]["calls"].figures["median_s"] >= 0.02


def test_what_was_measured_on_this_type_is_told(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lag needs no guess from two seconds."""
    monkeypatch.setattr(gpus, "measured", {"NVIDIA Tested": Measured(0.02, 0.015)}.get)
    stub.steady(100, extra=("name NVIDIA Tested",))
    assert "on this type 20 ms and a lag of 15 ms were measured" in found()[0]["counter"].text


def test_what_a_meter_learnt_of_this_gpu_is_told(
    stub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the kept file, before what was measured on the type; of this GPU alone."""
    monkeypatch.setattr(gpus, "measured", {"NVIDIA Tested": Measured(0.02, 0.015)}.get)
    stub.steady(100, 100, extra=("name NVIDIA Tested",))
    file = KeptCoefficients(tmp_path / "kept.json", LLAMA, Faults())
    file.lags = LagLearner({uuid_of(0): 0.0625})
    file.learner.coefficients = replace(file.learner.coefficients, idle_watts=99.0)
    file.save()
    config = replace(Config(), prices_file=str(tmp_path / "kept.json"))
    findings = list(check_power(config, 0.1))
    first, second = (finding for finding in findings if finding.topic.strip() == "counter")
    assert "a meter learnt its lag: 62.5 ms" in first.text
    assert first.figures["learnt_lag_s"] == 0.0625
    assert "a lag of 15 ms were measured" in second.text
    assert second.figures["learnt_lag_s"] is None


def test_a_counter_that_stands_still_is_a_note(stub: Any) -> None:
    """Nothing can be said of its period."""
    stub.steady(0)
    assert "moved 0 times" in found()[0]["counter"].text


def test_no_gpu_shown_by_cuda_is_modelled(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty CUDA_VISIBLE_DEVICES hides all."""
    stub.steady(100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    findings, quality = found()
    assert "opened for no GPU" in findings["power"].text
    assert quality is Quality.MODELLED


def test_an_unknown_assumed_gpu_fails_where_settings_are_strict(stub: Any) -> None:
    """As the start of a server would."""
    findings, _ = found(power="modelled", assume_gpu="H1000", strict=True)
    assert findings["power"].verdict is Verdict.FAILS
