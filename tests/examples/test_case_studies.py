"""The case studies: what is committed is what their scripts print."""

import subprocess
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "examples" / "case_studies"
NAMES = sorted(path.stem for path in STUDIES.glob("*.txt"))


@pytest.mark.parametrize("name", NAMES)
def test_a_study_prints_what_is_committed(name: str, tmp_path: Path) -> None:
    """Of the shipped weights; otherwise it has to be run again."""
    command = [sys.executable, STUDIES / f"{name}.py", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (STUDIES / f"{name}.txt").read_text("utf-8")
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_every_study_has_been_run() -> None:
    """The four of examples/README.md, each with its picture."""
    assert NAMES == ["day", "number_of_gpus", "phases", "training"]
    assert all((STUDIES / f"{name}.png").exists() for name in NAMES)
