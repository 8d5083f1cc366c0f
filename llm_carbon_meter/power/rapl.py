"""RAPL: the energy counters of the host's CPU packages and memory, as Linux's powercap shows them.

They count all that runs on the host. Files and names: Documentation/power/powercap/powercap.rst.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm_carbon_meter.records import CPU, EnergyReading, PowerError, Quality, Source
from llm_carbon_meter.units import MICRO

POWERCAP: Final = Path("/sys/class/powercap")
PACKAGE, DRAM = "package", "dram"
LARGEST_WATTS: Final = 1_000.0
"""No domain draws more: after a silence in which its counter could have come round, nobody knows
how often it did."""
_ZONE: Final = re.compile(r"(?P<control>[a-z-]+):(?P<place>\d+(:\d+)?)")


@dataclass(slots=True)
class _Zone:
    """One counter, which begins at 0 again beyond its range."""

    file: Path
    range_joules: float
    read_s: float = 0.0
    joules: float = 0.0
    """As read, 0 to the range."""
    counted_joules: float = 0.0
    """Since the first reading."""
    certain: bool = True
    """Whether that has all joules since the reading before."""

    def read(self, now_s: float, *, first: bool = False) -> None:
        joules = _microjoules(self.file) * MICRO
        if not first:
            step, most = joules - self.joules, (now_s - self.read_s) * LARGEST_WATTS
            round_again = step + self.range_joules
            # A counter that was set to 0 looks as if it had come round.
            was_reset = step < 0 and round_again > most
            self.certain = most < self.range_joules and not was_reset
            self.counted_joules += step if step >= 0 else 0.0 if was_reset else round_again
        self.read_s, self.joules = now_s, joules


class RaplMeter:
    """PowerMeter over groups of zones that `open_rapl` has found.

    Args:
        groups: zones whose joules are added up, by the name that readings give them.
        clock: monotonic.
    """

    source = Source.MEASURED
    quality = Quality.PACKAGE

    def __init__(self, groups: Mapping[str, Sequence[_Zone]], clock: Callable[[], float]) -> None:
        self.gpus: Sequence[str] = tuple(groups)
        self._groups = groups
        self._clock = clock
        for zones in groups.values():
            for zone in zones:
                zone.read(clock(), first=True)

    def read(self) -> Sequence[EnergyReading]:
        """Read every zone once.

        Raises:
            PowerError: one cannot be read.
        """
        return [self._sum(name, zones) for name, zones in self._groups.items()]

    def _sum(self, name: str, zones: Sequence[_Zone]) -> EnergyReading:
        now_s = self._clock()
        for zone in zones:
            zone.read(now_s)
        quality = self.quality if all(zone.certain for zone in zones) else Quality.RESET
        joules = sum(zone.counted_joules for zone in zones)
        return EnergyReading(now_s, name, joules, quality=quality)

    def close(self) -> None:
        """Nothing to release."""


def open_rapl(
    folder: Path = POWERCAP, *, together: bool = False, clock: Callable[[], float] = time.monotonic
) -> RaplMeter:
    """Find the packages and their memory, and read each once.

    The platform's own zone (psys) holds the packages, core and uncore are parts of them: neither is
    added. A package that two control types count (intel-rapl, intel-rapl-mmio) is taken once.

    Args:
        folder: of the kernel's class powercap, or where a container has it.
        together: one reading of all, named `CPU`; else one of the packages and one of the memory.
        clock: monotonic.

    Raises:
        PowerError: there is no package, or its counter cannot be read.
    """
    zones: dict[str, list[_Zone]] = {}
    for domain, place in _domains(folder):
        zone = _Zone(place / "energy_uj", _microjoules(place / "max_energy_range_uj") * MICRO)
        zones.setdefault(CPU if together else domain, []).append(zone)
    if not zones:
        raise PowerError(
            f"CPU packages were looked for in {folder}, there are none; load the module "
            "intel_rapl_msr (Intel and AMD), or in a container mount the host's /sys at /host/sys "
            "and say rapl:/host/sys/class/powercap"
        )
    return RaplMeter(zones, clock)


def _domains(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each package and each package's memory, once: what it is, and where."""
    seen: set[tuple[str, str]] = set()
    # Of control types that count the same, intel-rapl has the shortest name and comes first.
    for place in sorted(folder.glob("*:*"), key=lambda path: (len(path.name), path.name)):
        found = _ZONE.fullmatch(place.name)
        if found is None:
            continue
        name, parent = _name(place), found["place"].rpartition(":")[0]
        package = _name(folder / f"{found['control']}:{parent}") if parent else ""
        domain = DRAM if name == DRAM else PACKAGE if name.startswith(PACKAGE) else None
        if domain is None or (package, name) in seen:
            continue
        seen.add((package, name))
        yield domain, place


def _name(zone: Path) -> str:
    return _text(zone / "name")


def _microjoules(file: Path) -> float:
    text = _text(file)
    try:
        return float(int(text))
    except ValueError:
        raise PowerError(f"{file} was read: {text!r} is no number of microjoules") from None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except PermissionError:
        everywhere = file.parent.parent / "*" / file.name
        raise PowerError(
            f"{file} was read: only root may, since CVE-2020-8694; run as root: chmod a+r "
            f"{everywhere} (until the next start; then every user of this host can read it)"
        ) from None
    except OSError as error:
        raise PowerError(f"{file} was read: {error.strerror}") from None
