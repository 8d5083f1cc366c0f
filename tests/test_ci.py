"""The scripts that run before a change lands."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / ".ci"


@pytest.mark.parametrize("name", ["run", "test-wheel"])
def test_a_script_can_be_run_and_is_bash(name: str) -> None:
    """Its executable bit is set, and bash finds no fault in its grammar."""
    script = SCRIPTS / name
    assert os.access(script, os.X_OK)
    checked = subprocess.run(
        ["bash", "-n", str(script)], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_everything_is_run() -> None:
    """The fast tests, then the wheel's, then the slow ones; every script is tested above."""
    lines = (SCRIPTS / "run").read_text("utf-8").splitlines()
    targets = [line for line in lines if line.startswith("make ")]
    assert targets == ["make test", "make test-wheel", "make test-all"]
    assert {script.name for script in SCRIPTS.iterdir()} == {"run", "test-wheel"}
