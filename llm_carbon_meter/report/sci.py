"""A report in the terms of the SCI specification (ISO/IEC 21031): E, I, M, R and the score."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter import __version__
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.groups import Group
from llm_carbon_meter.report.summary import Report
from llm_carbon_meter.report.text import facts
from llm_carbon_meter.units import watt_hours

STANDARD: Final = "ISO/IEC 21031:2024, Software Carbon Intensity: SCI = (E x I + M) / R"
UNITS: Final = {"request": 1.0, "1000 tokens": 1000.0}
"""Functional units, and how many requests or tokens each is."""


def sci_report(report: Report) -> Mapping[str, Any]:
    """The fields of an SCI report for each group.

    E is the energy of the GPUs times PUE, I the mean intensity that the requests met, weighted by
    their energy, so that E x I are the operational grams. M is null, and the score with it, where
    a request has no embodied grams.
    """
    said = facts(report)
    return {
        "standard": STANDARD,
        "made_by": f"llm-carbon-meter {__version__}",
        "period": next(text for name, text in said if name == "period"),
        "software_boundary": [text for name, text in said if name == "boundary"],
        "grid": [text for name, text in said if name == "grid"],
        "notes": [text for name, text in said if name == "note"],
        "scores": [
            _score(report.question.by, group, unit, size)
            for group in report.groups
            for unit, size in UNITS.items()
        ],
    }


def _score(by: Sequence[str], group: Group, unit: str, size: float) -> Mapping[str, Any]:
    kilowatt_hours = watt_hours(group.sums["pue_joules"]) / 1000.0
    units = (group.requests if unit == "request" else group.tokens) / size
    grams = group.sci_grams
    return {
        "group": dict(zip(by, group.labels, strict=False)),
        "source": group.source,
        "functional_unit": unit,
        "E_kwh": kilowatt_hours,
        "I_gco2eq_per_kwh": group.operational_grams / kilowatt_hours if kilowatt_hours else None,
        "O_gco2eq": group.operational_grams,
        "M_gco2eq": group.known("embodied_grams"),
        "R": units,
        "SCI_gco2eq_per_unit": grams / units if grams is not None and units else None,
    }


def write_sci(report: Report, path: Path) -> None:
    """Save it as JSON.

    Raises:
        MeterError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(sci_report(report), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise MeterError(
            f"the file {str(path)!r} cannot be written: {error}; give another --json"
        ) from error
