"""What was found of a counter, as `llm_carbon_meter/data/sensors.json` has it: a row a GPU name.

``SENSORS_JSON=FILE pytest -m gpu`` and ``make gpu-day`` write it; rows of other GPUs stay.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

NEEDED = ("period_s", "lag_s")
"""Without these the meter has no use for a row."""


def row(found: dict[str, Any]) -> dict[str, Any]:
    """A GPU's row from what was noted: the loads' median period, the onsets' median lag."""
    summary = dict(found)
    periods = [load["period_s"] for load in found.get("loads", {}).values() if load["period_s"]]
    if periods:
        summary["period_s"] = float(np.median(periods))
    if found.get("onset_lags_s"):
        # Reading ahead of the power is noise of the fit.
        summary["lag_s"] = max(float(np.median(found["onset_lags_s"])), 0.0)
    return summary


def write(path: Path, gpu_name: str, found: dict[str, Any]) -> None:
    """Put a GPU's row into the file, if it is whole."""
    summary = row(found)
    if not all(name in summary for name in NEEDED):
        return
    gpus = json.loads(path.read_text("utf-8"))["gpus"] if path.exists() else {}
    gpus[gpu_name] = summary
    path.write_text(json.dumps({"gpus": gpus}, indent=1) + "\n", "utf-8")
