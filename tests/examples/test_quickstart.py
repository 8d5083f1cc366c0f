"""The quickstart runs as README says."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_the_quickstart_meters_one_request(tmp_path: Path) -> None:
    """Headers, a final record and accounts that add up, without a GPU."""
    done = subprocess.run(
        [sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("llm-carbon-measured-wh: ") for line in lines)
    assert "record: final, quality counter" in lines
    (ratio,) = (line for line in lines if line.startswith("llm_carbon_meter_accounted_ratio"))
    assert float(ratio.split()[-1]) == pytest.approx(1.0, rel=1e-9)
