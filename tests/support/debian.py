"""Programs of Debian's packages: found, or installed where that is possible."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import pytest


def provide(packages: Mapping[str, Sequence[str]]) -> None:
    """Skip the test unless every package is there or can be installed.

    Args:
        packages: package -> names of which one shows that it is there.
    """
    if _missing(packages) and shutil.which("apt-get") and os.geteuid() == 0:
        _install(_missing(packages))
    if _missing(packages):
        pytest.skip(f"missing and not installable here: {', '.join(_missing(packages))}")


def _missing(packages: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for name, programs in packages.items() if not any(map(shutil.which, programs))]


def _install(packages: Sequence[str]) -> None:
    # Their services would only take the ports.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        subprocess.run(["apt-get", *command], env=environment, check=False, capture_output=True)
