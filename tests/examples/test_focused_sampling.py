"""The comparison of sampling strategies: what it says follows from its curves."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from llm_carbon_meter.training.data.dataset import read_table
from llm_carbon_meter.training.fit.examples import merge_repeats
from llm_carbon_meter.training.study.recorded import STRATEGIES, Curves, Point

FOLDER = Path(__file__).parents[2] / "examples" / "focused_sampling"
SCRIPT = FOLDER / "compare.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("compare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def curves(focused: Sequence[float]) -> Curves:
    """Two trainings for each of three seeds; every other strategy errs by 10 ± 1 %."""
    other = [[Point(40, 20.0, 0), Point(100, error, 0)] for error in (9.0, 10.0, 11.0)]
    own = [[Point(40, 20.0, 0), Point(100, error, 30)] for error in focused]
    return {**dict.fromkeys(STRATEGIES, other), "focused": own}


@pytest.mark.parametrize(
    ("focused", "verdict"),
    [
        ((8.0, 9.5, 10.0), "Focused beats random sampling: -0.8 [-1.0, -0.5] percentage points"),
        ((9.5, 10.5, 12.0), "Focused is worse than random sampling: +0.7 [+0.5, +1.0]"),
        ((8.0, 11.0, 11.0), "Focused cannot be told from random sampling: +0.0 [-1.0, +1.0]"),
    ],
)
def test_the_verdict_follows_from_paired_differences(
    script: ModuleType, focused: Sequence[float], verdict: str
) -> None:
    """It is better or worse only where the interval says so; the first training is left out."""
    assert script.verdict(curves(focused)).startswith(verdict)
    assert verdict in script.caption_of(curves(focused), 908)


def test_the_table_has_a_line_for_every_training(script: ModuleType) -> None:
    """Mean and deviation over seeds, measurements around errors, paired differences."""
    heading, first, second, mean = script.table(curves((8.0, 9.0, 10.0))).splitlines()
    names = "measurements focused % random % even % near errors focused - random focused - even"
    assert " ".join(heading.split()) == names
    assert first.split()[:4] == ["40", "20.0", "±", "0.0"]
    assert second.split()[:7] == ["100", "9.0", "±", "1.0", "10.0", "±", "1.0"]
    assert second.split()[10:14] == ["30", "-1.0", "[-1.0,", "-1.0]"]
    assert mean.split()[:6] == ["mean", "after", "the", "first", "9.0", "10.0"]


def test_the_committed_comparison_is_of_the_public_rows(public_data: Path) -> None:
    """As many as there are; otherwise it has to be run again."""
    rows = merge_repeats(read_table(public_data).for_evaluation())
    text = (FOLDER / "compare.txt").read_text("utf-8")
    assert f"Pool: {len(rows)} public measurements." in " ".join(text.split())
    assert (FOLDER / "compare.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_comparison_runs(public_data: Path, tmp_path: Path) -> None:
    """Two seeds and two trainings: a table and a picture."""
    options = ["--data", public_data, "--output", tmp_path, "--seeds", "2", "--budget", "60"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "compare.txt").read_text("utf-8")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["40", "60", "mean"]
    assert (tmp_path / "compare.png").stat().st_size > 10_000
