"""Which requests judge an estimate, and the errors that are shown."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from llm_carbon_meter.predictor.drift import error_ratios, judging_joules
from llm_carbon_meter.records import (
    AccountJoules,
    EnergyEstimate,
    Outcome,
    Quality,
    RequestRecord,
    Source,
    Status,
)
from tests.support.made.energies import energy_of
from tests.support.made.records import ESTIMATE, RECORD

TOLD = EnergyEstimate("gnn", 10.0, 0.0, 10.0, 10.0, 1.0, False, 0.0)
FINISHED = replace(
    RECORD,
    energy=energy_of("a", joules={"prefill": 12.0, "decode": 0.0, "idle": 1.0}),
    conditional=TOLD,
)


def finished(**changes: Any) -> RequestRecord:
    """The same with what differs, of the record or of its energy."""
    if "conditional" in changes:
        return replace(FINISHED, **changes)
    assert FINISHED.energy is not None
    return replace(FINISHED, energy=replace(FINISHED.energy, **changes))


def test_a_measured_finished_request_judges() -> None:
    """Without idle joules that were spread."""
    assert judging_joules(FINISHED) == pytest.approx(12.0)
    assert judging_joules(finished(quality=Quality.POWER)) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"source": Source.MODELLED, "quality": Quality.MODELLED},
        {"source": Source.MODELLED},
        {"status": Status.PROVISIONAL},
        {"outcome": Outcome.ABORTED},
        {"outcome": Outcome.STOPPED},
        {"outcome": Outcome.FAILED},
        *(
            {"quality": quality}
            for quality in (Quality.CONTENDED, Quality.MIG_PARENT, Quality.RESET, Quality.OUTSIDE)
        ),
        {"conditional": None},
        {"conditional": replace(TOLD, facility=True)},
        {"accounts": AccountJoules(idle=1.0)},
    ],
)
def test_nothing_else_judges(change: Mapping[str, Any]) -> None:
    """Modelled joules above all; and what is doubtful, unfinished, or of a whole data centre."""
    assert judging_joules(finished(**change)) is None


def test_a_record_without_energy_judges_nothing() -> None:
    """Look-ups of requests in flight are records too."""
    assert judging_joules(replace(FINISHED, energy=None)) is None


def test_errors_are_signed_and_of_four_kinds() -> None:
    """(estimated - measured) / measured, before and after the factor, on both bases."""
    measured = RECORD.energy.joules - RECORD.energy.accounts.idle  # type: ignore[union-attr]
    told = replace(ESTIMATE, prefill_joules=0.0, decode_joules=measured / 2, calibration=1.5)
    known = replace(told, decode_joules=measured * 2, calibration=0.5)
    assert error_ratios(replace(RECORD, estimate=told, conditional=known)) == pytest.approx(
        {
            ("raw", "conditional"): 1.0,
            ("calibrated", "conditional"): 0.0,
            ("raw", "end_to_end"): -0.5,
            ("calibrated", "end_to_end"): -0.25,
        }
    )


def test_modelled_joules_show_no_error() -> None:
    """What is compared must have been measured; nor does an aborted request say anything."""
    energy = RECORD.energy
    assert energy is not None
    assert error_ratios(replace(RECORD, energy=replace(energy, source=Source.MODELLED))) == {}
    assert error_ratios(replace(RECORD, energy=replace(energy, outcome=Outcome.ABORTED))) == {}
    assert error_ratios(replace(RECORD, energy=None)) == {}
    assert len(error_ratios(replace(RECORD, conditional=None))) == 2
