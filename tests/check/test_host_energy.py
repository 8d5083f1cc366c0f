"""What ``check`` says of the host's energy: readable or not, why, and what it draws now."""

from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.check import host_energy
from llm_carbon_meter.check.findings import Finding, Verdict
from llm_carbon_meter.check.gpus import check_power
from llm_carbon_meter.check.host_energy import check_host_energy, rapl_problem
from llm_carbon_meter.config import Config
from llm_carbon_meter.records import Quality
from tests.support.powercap import Advancing, Powercap


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_energy, "WATCHED_S", 0.3)


def found(**settings: Any) -> Finding:
    """The only finding."""
    (finding,) = check_host_energy(Config(**settings))
    return finding


def test_what_the_host_draws_is_told(tmp_path: Path) -> None:
    """By domain."""
    tree = Powercap(tmp_path)
    with Advancing(tree, intel_rapl_0=80.0, intel_rapl_1_0=9.0):
        finding = found(host_energy=f"rapl:{tree.folder}")
    assert finding.verdict is Verdict.OK
    assert finding.text.startswith("host: CPU package and dram (RAPL); package ")
    assert finding.figures["watts"]["package"] == pytest.approx(80.0, rel=0.3)


def test_what_cannot_be_read_is_a_note_with_the_reason(tmp_path: Path) -> None:
    """Requests are metered all the same."""
    finding = found(host_energy=f"rapl:{tmp_path}")
    assert finding.verdict is Verdict.NOTE
    assert f"looked for in {tmp_path}, there are none" in finding.text
    assert finding.text.endswith("the host's energy would not be told")


def test_the_cpu_s_joules_twice_are_a_note() -> None:
    """The setting that mends it is named."""
    finding = found(host_energy="rapl", power="rapl")
    assert finding.verdict is Verdict.NOTE
    assert "LLM_CARBON_METER_HOST_ENERGY=none" in finding.text


@pytest.mark.parametrize("there", [True, False])
def test_where_nobody_asks_it_is_said_whether_rapl_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """With the reason where it cannot."""
    tree = Powercap(tmp_path)
    folder = tree.folder if there else tmp_path
    monkeypatch.setattr(host_energy, "rapl_problem", lambda: rapl_problem(folder))
    finding = found()
    assert finding.verdict is Verdict.OK
    assert ("RAPL can be read" in finding.text) is there
    assert ("there are none" in finding.text) is not there


def test_rapl_as_the_power_source(tmp_path: Path) -> None:
    """Requests would have the quality package; a folder without packages fails."""
    tree = Powercap(tmp_path)
    (finding,) = check_power(Config(power=f"rapl:{tree.folder}"), 0.1)
    assert (finding.verdict, finding.quality) == (Verdict.OK, Quality.PACKAGE)
    (finding,) = check_power(Config(power=f"rapl:{tmp_path}"), 0.1)
    assert finding.verdict is Verdict.FAILS
