"""What the names of MIG instances and virtual GPUs say, as NVML prints them.

``NVIDIA A100-SXM4-80GB MIG 1g.10gb``: a compute slice and 10 GB. ``GRID A100D-40C``: a virtual GPU
of 40 GB that takes turns on the whole GPU; ``GRID A100D-1-10C``: one on a MIG instance.
"""

import re
from typing import Final, NamedTuple

_MIG: Final = re.compile(
    r"(?P<whole>.+?) MIG "
    r"(?P<profile>(?:(?P<cut>\d+)c\.)?(?P<slices>\d+)g\.(?P<gb>\d+)gb(?:[+-][\w.+-]+)?)",
    re.IGNORECASE,
)
"""``1c.3g.20gb``: of the three slices of an instance one computes. ``+me``: with media engines."""
_VIRTUAL: Final = re.compile(
    r"(?:NVIDIA )?(?:GRID )?(?P<whole>.+?)-"
    r"(?P<profile>(?:(?P<slices>\d+)-)?(?P<gb>\d+)(?:C|CME|Q))",
    re.IGNORECASE,
)
"""The series C and Q; A and B do not compute."""


class Part(NamedTuple):
    """What a part of a GPU has."""

    whole: str
    """The GPU as it is called before the profile."""
    profile: str
    memory_gb: float
    slices: int | None
    """Compute slices; None where the part takes turns on all of them."""


def mig_instance(name: str) -> Part | None:
    """The MIG instance of a name; None where the name is of none."""
    found = _MIG.fullmatch(name)
    if found is None:
        return None
    slices = int(found["cut"] or found["slices"])
    return Part(found["whole"], found["profile"].lower(), float(found["gb"]), slices)


def virtual_gpu(name: str) -> Part | None:
    """The virtual GPU of a name; None where the name is of none."""
    found = _VIRTUAL.fullmatch(name)
    if found is None:
        return None
    slices = int(found["slices"]) if found["slices"] else None
    return Part(found["whole"], found["profile"].upper(), float(found["gb"]), slices)
