"""Fresh Python interpreters, for what this process cannot show."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

HIDING: Final = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""


def without(*packages: str) -> str:
    """Code after which these packages are as if they were not installed."""
    return HIDING.format(hidden=set(packages))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code from the folder of the tests."""
    return _run("-c", code, **environment)


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command ``llm-carbon-meter``."""
    return _run("-m", "llm_carbon_meter.cli", *arguments, **environment)


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": "", "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
