"""A tree in the shape of the kernel's powercap, whose counters a test advances.

As Linux lays it out: zones lie in each other under ``devices/virtual/powercap``, and the class has
a link to each control type and to each zone.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

RANGE_MICROJOULES: Final = 262_143_328_850
"""Of a package of a Xeon."""
SERVER: Final = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "dram",
    "intel-rapl:0:1": "core",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "dram",
    "intel-rapl:2": "psys",
    "intel-rapl-mmio:0": "package-0",
    "intel-rapl-mmio:0:0": "dram",
}
"""Names of a server's zones: two packages with their memory, the platform, and a package again."""


class Powercap:
    """The tree.

    Args:
        root: instead of ``/sys``.
        zones: names by zone.
        range_microjoules: of every counter.
    """

    def __init__(
        self,
        root: Path,
        zones: Mapping[str, str] = SERVER,
        range_microjoules: int = RANGE_MICROJOULES,
    ) -> None:
        self.folder = root / "class" / "powercap"
        self.folder.mkdir(parents=True)
        self._devices = root / "devices" / "virtual" / "powercap"
        self._range = range_microjoules
        self._microjoules = dict.fromkeys(zones, 0)
        self.drawn_microjoules = dict.fromkeys(zones, 0)
        """Of each zone, however often its counter came round."""
        for control in {zone.partition(":")[0] for zone in zones}:
            self._link(self._devices / control, {"enabled": "1"})
        for zone, name in zones.items():
            attributes = {
                "name": name,
                "energy_uj": "0",
                "max_energy_range_uj": str(range_microjoules),
                "enabled": "0",
                "constraint_0_name": "long_term",
                "constraint_0_power_limit_uw": "270000000",
            }
            self._link(self._place(zone), attributes)
            (self._place(zone) / "energy_uj").chmod(0o400)

    def _place(self, zone: str) -> Path:
        control, *numbers = zone.split(":")
        parts = [f"{control}:{':'.join(numbers[: n + 1])}" for n in range(len(numbers))]
        return self._devices.joinpath(control, *parts)

    def _link(self, place: Path, attributes: Mapping[str, str]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in attributes.items():
            (place / name).write_text(text + "\n")
        depth = Path("..") / ".." / place.relative_to(self.folder.parents[1])
        (self.folder / place.name).symlink_to(depth)

    def file(self, zone: str, name: str = "energy_uj") -> Path:
        """An attribute of a zone, as the class shows it."""
        return self.folder / zone / name

    def add(self, **joules: float) -> None:
        """Let zones count, by their names without colons: ``intel_rapl_0_0``."""
        for zone in self._microjoules:
            self._add(zone, joules.get(zone.replace("-", "_").replace(":", "_"), 0.0))

    def _add(self, zone: str, joules: float) -> None:
        microjoules = round(1e6 * joules)
        self.drawn_microjoules[zone] += microjoules
        counted = self._microjoules[zone] + microjoules
        self._microjoules[zone] = counted % self._range
        # In one piece, as the kernel gives it: a reader must not see an empty file.
        place = self._place(zone)
        new = place / "new"
        new.write_text(f"{self._microjoules[zone]}\n")
        new.replace(place / "energy_uj")


class Advancing:
    """A thread that lets a tree's zones draw power inside a ``with`` block.

    Args:
        tree: advanced.
        watts: by zone, as `Powercap.add` names them.
    """

    def __init__(self, tree: Powercap, **watts: float) -> None:
        self._tree, self._watts = tree, watts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._advance, daemon=True)

    def _advance(self) -> None:
        last_s = time.monotonic()
        while not self._stop.wait(0.02):
            now_s = time.monotonic()
            self._tree.add(**{name: w * (now_s - last_s) for name, w in self._watts.items()})
            last_s = now_s

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
