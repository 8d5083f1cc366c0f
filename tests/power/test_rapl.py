"""RAPL on recorded trees: what is added, what is not, counters that come round, what is refused."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_carbon_meter.power.rapl import RaplMeter, open_rapl
from llm_carbon_meter.records import PowerError, Quality
from tests.support.powercap import SERVER, Powercap


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def joules_of(meter: RaplMeter) -> dict[str, float]:
    """By domain."""
    return {reading.gpu: round(reading.joules, 6) for reading in meter.read()}


def test_packages_and_memory_are_added_once(tmp_path: Path) -> None:
    """Not the platform, which holds them, nor cores, which they hold, nor a package again."""
    tree = Powercap(tmp_path)
    meter = open_rapl(tree.folder)
    assert joules_of(meter) == {"package": 0.0, "dram": 0.0}
    tree.add(intel_rapl_0=100.0, intel_rapl_1=50.0, intel_rapl_0_0=8.0, intel_rapl_1_0=4.0)
    assert joules_of(meter) == {"package": 150.0, "dram": 12.0}
    tree.add(intel_rapl_2=1000.0, intel_rapl_0_1=1000.0, intel_rapl_mmio_0=1000.0)
    assert joules_of(meter) == {"package": 150.0, "dram": 12.0}
    assert {reading.quality for reading in meter.read()} == {Quality.PACKAGE}


def test_all_of_a_cpu_together(tmp_path: Path) -> None:
    """As the joules of an engine that computes on it."""
    tree = Powercap(tmp_path)
    meter = open_rapl(tree.folder, together=True)
    tree.add(intel_rapl_0=100.0, intel_rapl_1_0=4.0)
    assert joules_of(meter) == {"cpu": 104.0}


@pytest.mark.parametrize(
    ("zones", "domains"),
    [
        ({"intel-rapl:0": "package-0", "intel-rapl:0:0": "core"}, ["package"]),
        ({"intel-rapl:0": "package-0-die-0", "intel-rapl:1": "package-0-die-1"}, ["package"]),
        ({"intel-rapl-tpmi:0": "package-0", "intel-rapl-tpmi:0:0": "dram"}, ["package", "dram"]),
        ({"intel-rapl-mmio:0": "package-0"}, ["package"]),
    ],
    ids=["AMD", "dies", "TPMI", "MMIO alone"],
)
def test_other_shapes_of_the_tree(
    tmp_path: Path, zones: dict[str, str], domains: list[str]
) -> None:
    """Of other makers and kernels; every die counts."""
    tree = Powercap(tmp_path, zones)
    meter = open_rapl(tree.folder)
    tree.add(**{zone.replace("-", "_").replace(":", "_"): 1.0 for zone in zones})
    assert list(joules_of(meter)) == domains
    packages = sum(name.startswith("package") for name in zones.values())
    assert joules_of(meter)["package"] == packages


def test_counters_that_come_round_lose_nothing(tmp_path: Path) -> None:
    """Ten times, at any place of the range."""
    tree, clock = Powercap(tmp_path, range_microjoules=50_000_000_000), Clock()
    meter = open_rapl(tree.folder, clock=clock)
    total = 0.0
    for number in range(40):
        clock.now_s += 10.0
        step = 9_000.0 + number
        tree.add(intel_rapl_0=step)
        total += step
        (package, _) = meter.read()
        assert package.joules == pytest.approx(total)
        assert package.quality is Quality.PACKAGE
    assert total > 7 * 50_000


def test_after_a_long_silence_nobody_knows_how_often_a_counter_came_round(tmp_path: Path) -> None:
    """262 kJ may pass in 262 s at a kilowatt; then the reading says that joules are missing."""
    tree, clock = Powercap(tmp_path), Clock()
    meter = open_rapl(tree.folder, clock=clock)
    qualities = []
    for pause_s in (260.0, 265.0, 1.0):
        clock.now_s += pause_s
        qualities.append(meter.read()[0].quality)
    assert qualities == [Quality.PACKAGE, Quality.RESET, Quality.PACKAGE]


def test_no_package_is_explained(tmp_path: Path) -> None:
    """Where it was looked for, and what a container needs."""
    (tmp_path / "powercap").mkdir()
    tree = Powercap(tmp_path / "sys", {"intel-rapl:0": "psys", "dtpm:0": "cpu0"})
    for folder in (tmp_path / "nowhere", tmp_path / "powercap", tree.folder):
        with pytest.raises(PowerError, match=rf"{folder}, there are none; .*rapl:/host/sys"):
            open_rapl(folder)


def test_a_counter_that_is_no_number_is_told(tmp_path: Path) -> None:
    """With the file; one that vanishes, too."""
    tree = Powercap(tmp_path)
    meter = open_rapl(tree.folder)
    file = tree.file("intel-rapl:1")
    file.unlink()
    with pytest.raises(PowerError, match=r"intel-rapl:1/energy_uj was read: No such file"):
        meter.read()
    file.write_text("nan")
    with pytest.raises(PowerError, match=r"energy_uj was read: 'nan' is no number"):
        meter.read()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Another user's rights inside the block."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_what_only_root_may_read_is_told_with_the_command_that_opens_it() -> None:
    """And the command does."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = Powercap(Path(folder, "sys"), SERVER)
        told = "only root may, since CVE-2020-8694"
        with as_nobody(), pytest.raises(PowerError, match=told) as refused:
            open_rapl(tree.folder)
        command = str(refused.value).partition("run as root: ")[2].partition(" (until")[0]
        assert command == f"chmod a+r {tree.folder}/*/energy_uj"
        subprocess.run(command, shell=True, check=True)
        with as_nobody():
            assert joules_of(open_rapl(tree.folder)) == {"package": 0.0, "dram": 0.0}


def test_a_counter_that_was_set_to_0_has_not_come_round(tmp_path: Path) -> None:
    """As when its module is loaded again: what nobody could have drawn is not counted."""
    tree, clock = Powercap(tmp_path), Clock()
    tree.add(intel_rapl_0=100_000.0)
    meter = open_rapl(tree.folder, clock=clock)
    clock.now_s += 1.0
    tree.add(intel_rapl_0=-99_990.0)
    (package, _) = meter.read()
    assert (package.joules, package.quality) == (0.0, Quality.RESET)
    clock.now_s += 1.0
    tree.add(intel_rapl_0=80.0)
    (package, _) = meter.read()
    assert package.joules == pytest.approx(80.0)
    assert package.quality is Quality.PACKAGE
