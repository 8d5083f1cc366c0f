"""The host's energy as the settings want it: which source, which share, what it covers."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter import meter
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.meter import open_power
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.power import host_energy
from llm_carbon_meter.power.host_energy import ConstantMeter, HostEnergy, open_host_energy
from llm_carbon_meter.power.modelled import ModelledMeter
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.power.rapl import open_rapl
from llm_carbon_meter.records import PowerError, Quality, Source
from tests.support.powercap import Powercap
from tests.support.redfish_server import PASSWORD, answering, chassis

MODELLED = ModelledMeter(gpu_spec("H100"), 1, 0.0)


def opened(
    num_gpus: int = 1, engines: int = 1, power: PowerMeter = MODELLED, **settings: Any
) -> HostEnergy:
    """The source of some settings."""
    found = open_host_energy(Config(**settings), power, num_gpus, engines)
    assert found is not None
    return found


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Sequence[int]:
    """How many GPUs NVML shows; a test writes it."""
    number = [0]
    monkeypatch.setattr(host_energy, "count_gpus", lambda: number[0])
    return number


def test_nothing_is_opened_unless_it_is_wanted() -> None:
    """The default."""
    assert open_host_energy(Config(), MODELLED, 1, 1) is None


def test_a_constant_is_modelled() -> None:
    """Watts times time, whatever runs."""
    clock = [1000.0]
    meter = ConstantMeter(250.0, lambda: clock[0])
    clock[0] += 4.0
    (reading,) = meter.read()
    assert (reading.gpu, reading.joules, meter.source) == ("server", 1000.0, Source.MODELLED)
    assert opened(host_energy="250").covers == "host: 250 W all the time, as set"


@pytest.mark.parametrize(
    ("num_gpus", "of_host", "engines", "setting", "share"),
    [
        (2, 8, 1, "auto", 0.25),
        (1, 8, 4, "auto", 0.125),
        (1, 0, 4, "auto", 0.25),
        (1, 0, 1, "auto", 1.0),
        (4, 2, 1, "auto", 1.0),
        (1, 1, 1, 0.125, 0.125),
    ],
)
def test_an_engine_takes_its_share(
    gpus: list[int], num_gpus: int, of_host: int, engines: int, setting: float | str, share: float
) -> None:
    """Its GPUs of the host's; without GPUs its part of the engines; or what is set."""
    gpus[0], start_s = of_host, time.monotonic()
    host = opened(num_gpus, engines, host_energy="100", host_share=setting)
    said = f", {share:g} of it this engine's"
    assert host.covers.endswith("as set" if share == 1 else said)
    (reading,) = host.meter.read()
    assert reading.joules == pytest.approx(100 * share * (reading.monotonic_s - start_s), abs=0.1)


def test_rapl_of_a_folder(tmp_path: Path) -> None:
    """As a container sees the host's."""
    host = opened(host_energy=f"rapl:{Powercap(tmp_path).folder}")
    assert host.covers == "host: CPU package and dram (RAPL)"
    assert {reading.gpu: reading.joules for reading in host.first} == {"package": 0, "dram": 0}


def test_redfish_less_the_gpus_that_nvml_shows(stub: Any) -> None:
    """All of the host's, not only the engine's."""
    stub.steady(100, 100)
    with answering(chassis("1")) as controller:
        host = opened(host_energy=f"redfish:{controller.url}")
        assert host.covers == "host: the server (Redfish), less its 2 GPUs, 0.5 of it this engine's"
        assert PASSWORD not in repr(Config(host_energy=f"redfish:{controller.url}"))
        host.meter.close()


def test_redfish_without_gpus(gpus: list[int]) -> None:
    """Nothing is taken off, and nothing says so."""
    with answering(chassis("1")) as controller:
        host = opened(host_energy=f"redfish:{controller.url}")
        assert host.covers == "host: the server (Redfish)"
        host.meter.close()


def test_the_cpu_s_joules_are_not_told_twice(tmp_path: Path) -> None:
    """Where they are the requests' own already."""
    power = open_rapl(Powercap(tmp_path).folder, together=True)
    with pytest.raises(PowerError, match=r"already .*HOST_ENERGY=none"):
        opened(power=power, host_energy="100")


def test_engines_on_one_cpu_share_its_joules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With auto, too, where NVML does not answer; another engine has its joules modelled."""
    tree, gpu = Powercap(tmp_path), gpu_spec("H100")
    monkeypatch.setattr(host_energy, "POWERCAP", tree.folder)

    def no_gpu(*_: object, **__: object) -> None:
        raise PowerError("no driver")

    monkeypatch.setattr(meter, "open_nvml", no_gpu)

    def opened_power(power: str, **place: Any) -> PowerMeter:
        return open_power(Config(power=power), list, 1, gpu, 0.0, Faults(), **place)

    for power in ("auto", "rapl", f"rapl:{tree.folder}"):
        shared = opened_power(power, on_cpu=True, engines=2)
        tree.add(intel_rapl_0=100.0, intel_rapl_0_0=10.0)
        assert [(one.gpu, one.joules) for one in shared.read()] == [("cpu", pytest.approx(55.0))]
        assert (shared.source, shared.quality) == (Source.MEASURED, Quality.PACKAGE)
    assert opened_power("auto").source is Source.MODELLED
    monkeypatch.setattr(host_energy, "POWERCAP", tmp_path)
    assert opened_power("auto", on_cpu=True).source is Source.MODELLED
    with pytest.raises(PowerError, match="there are none"):
        opened_power("rapl", on_cpu=True)
