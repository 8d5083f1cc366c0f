"""What an engine tells of a request, for tests that need such a figure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from llm_carbon_meter.records import AccountJoules, Outcome, Quality, RequestEnergy, Source, Status

ENERGY: Final = RequestEnergy(
    request_id="a",
    engine=0,
    status=Status.FINAL,
    source=Source.MEASURED,
    quality=Quality.COUNTER,
    outcome=Outcome.FINISHED,
    accounts=AccountJoules(prefill=3.6, decode=7.2),
    operational_grams=0.0015,
    gpu_seconds=2.5,
    embodied_grams=0.004,
    prompt_tokens=10,
    cached_tokens=0,
    output_tokens=5,
    num_steps=6,
    mean_running=1.0,
    first_step_s=1.0,
    last_step_s=2.0,
)
"""3 mWh."""


def booked(energy: RequestEnergy, **joules: float) -> RequestEnergy:
    """The same with other joules on some accounts."""
    return replace(energy, accounts=replace(energy.accounts, **joules))


def energy_of(
    request_id: str,
    status: Status = Status.FINAL,
    joules: Mapping[str, float] | None = None,
    **changes: Any,
) -> RequestEnergy:
    """The same of another request, with the accounts and fields that differ."""
    return booked(
        replace(ENERGY, request_id=request_id, status=status, **changes), **(joules or {})
    )


def energy_in_every_account(
    request_id: str,
    status: Status = Status.FINAL,
    joules: Mapping[str, float] | None = None,
    **changes: Any,
) -> RequestEnergy:
    """A figure of an engine: every account has its own."""
    own = {"prefill": 1.0, "decode": 2.0, "recompute": 0.25, "waste": 0.5, "idle": 0.125}
    others = {"operational_grams": 4.0, "cached_tokens": 3, "mean_running": 2.0}
    return energy_of(request_id, status, {**own, **(joules or {})}, **{**others, **changes})
