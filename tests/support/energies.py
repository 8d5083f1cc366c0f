"""What an engine tells of a request, for tests that need such a figure."""

from dataclasses import replace
from typing import Any, Final

from llm_carbon_meter.records import Outcome, Quality, RequestEnergy, Source, Status

ENERGY: Final = RequestEnergy(
    request_id="a",
    engine=0,
    status=Status.FINAL,
    source=Source.MEASURED,
    quality=Quality.COUNTER,
    outcome=Outcome.FINISHED,
    prefill_joules=3.6,
    decode_joules=7.2,
    recompute_joules=0.0,
    waste_joules=0.0,
    idle_joules=0.0,
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


def energy_of(request_id: str, status: Status = Status.FINAL, **changes: Any) -> RequestEnergy:
    """The same of another request, with what differs."""
    return replace(ENERGY, request_id=request_id, status=status, **changes)


def energy_in_every_account(
    request_id: str, status: Status = Status.FINAL, **changes: Any
) -> RequestEnergy:
    """A figure of an engine: every account has its own."""
    accounts = {
        "prefill_joules": 1.0,
        "decode_joules": 2.0,
        "recompute_joules": 0.25,
        "waste_joules": 0.5,
        "idle_joules": 0.125,
    }
    others = {"operational_grams": 4.0, "cached_tokens": 3, "mean_running": 2.0}
    return energy_of(request_id, status, **{**accounts, **others, **changes})
