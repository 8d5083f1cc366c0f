"""Ledgers for tests, and the steps, ends and readings that are entered into them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from llm_carbon_meter.ledger.attribution import step_loads, step_watts
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.physics.step_coefficients import sheet_coefficients
from llm_carbon_meter.physics.step_work import CostModel, StepRows, step_work
from llm_carbon_meter.records import (
    Account,
    EnergyReading,
    GpuTotals,
    Outcome,
    Quality,
    RequestEnd,
    RequestEnergy,
    Source,
    StepEvent,
    StepKind,
)
from tests.support.steps.cost_models import UNKNOWN

GPUS = ("gpu-0", "gpu-1")


def ledger_of(gpus: Sequence[str] = GPUS[:1], **options: Any) -> EnergyLedger:
    """A ledger of a measuring source; tokens decide unless a test says otherwise."""
    model = options.pop("model", UNKNOWN)
    return EnergyLedger(gpus, model, Source.MEASURED, Quality.COUNTER, **options)


def step_of(start_s: float, done_s: float, *request_ids: str, **columns: Any) -> StepEvent:
    """A decode step of some requests, one token each."""
    count = len(request_ids)
    return StepEvent(
        step_id=0,
        dispatched_s=start_s,
        done_s=done_s,
        request_ids=request_ids,
        accounts=columns.get("accounts", [Account.DECODE] * count),
        num_scheduled_tokens=columns.get("new", [1] * count),
        num_computed_tokens=columns.get("cached", [10] * count),
        num_sampled=columns.get("sampled", [1] * count),
    )


def overhead(start_s: float, done_s: float) -> StepEvent:
    """A dummy batch."""
    return StepEvent(0, start_s, done_s, kind=StepKind.OVERHEAD)


def end_of(request_id: str, at_s: float, outcome: Outcome = Outcome.FINISHED) -> RequestEnd:
    """The engine's last word about a request."""
    return RequestEnd(request_id, outcome, 7, 2, 5, at_s)


def read(ledger: EnergyLedger, gpu: str, *points: tuple[float, float]) -> None:
    """Enter (time, joules) of a GPU."""
    for at_s, joules in points:
        ledger.observe_reading(EnergyReading(at_s, gpu, joules))


def wait(ledger: EnergyLedger, start_s: float, end_s: float) -> list[RequestEnergy]:
    """Settle every half second of a span, as the meter does while time passes."""
    return [
        final for at_s in np.arange(start_s, end_s, 0.5).tolist() for final in ledger.settle(at_s)
    ]


def book(totals: GpuTotals) -> Mapping[str, float]:
    """The accounts that are not empty."""
    named = {account.label: totals.account_joules[account] for account in Account}
    return {name: joules for name, joules in named.items() if joules}


def rows_of(step: StepEvent) -> StepRows:
    """A single step as columns."""
    return StepRows(
        np.array([len(step.request_ids)]),
        np.array(step.num_scheduled_tokens, np.float64),
        np.array(step.num_computed_tokens, np.float64),
        np.array(step.num_sampled, np.float64),
    )


def expected_watts(step: StepEvent, model: CostModel) -> float:
    """Of a single step."""
    rows, coefficients = rows_of(step), sheet_coefficients(model.gpu)
    return float(
        step_watts(step_loads(rows, step_work(rows, model), coefficients), coefficients)[0]
    )


def close_to(value: Any) -> Any:
    """The value to 1e-9, relative or in joules."""
    return pytest.approx(value, rel=1e-9, abs=1e-9)
