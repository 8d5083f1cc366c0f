"""Steps of a decoder on a real GPU: every joule is booked, and shares are near the exact ones."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from llm_carbon_meter.campaign.subsets import (
    BATCHES,
    StepMember,
    exact_shares,
    modelled_shares,
    subsets,
)
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.ledger.attribution import POLICIES
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.physics.deployed_gpu import gpu_of
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.power.nvml.nvml_meter import NvmlMeter
from llm_carbon_meter.power.nvml.survey import GpuFacts
from llm_carbon_meter.power.sampler import PowerSampler
from llm_carbon_meter.records import Account, EnergyReading, Outcome, RequestEnd, Source, StepEvent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default", "error::pytest.PytestUnhandledThreadExceptionWarning"),
]

MODEL = built_in_model("Llama-3.1-8B")
LARGEST_ERROR = 0.15
"""Of a request's share of its step."""


@pytest.fixture(scope="module")
def physics(gpu: GpuFacts) -> CostModel:
    """The data sheet of this GPU, the kernels of the model."""
    return CostModel(gpu_of(Config(), {"gpu": gpu.name}, Faults()).spec, step_costs(MODEL))


@pytest.mark.parametrize("name", BATCHES)
def test_shares_are_near_those_of_all_subsets(
    meter: NvmlMeter, found: dict[str, Any], physics: CostModel, seconds: float, name: str
) -> None:
    """Each subset of a small batch is run by itself; the Shapley value of their joules is true."""
    from llm_carbon_meter.campaign.measuring import repeated
    from llm_carbon_meter.campaign.torch_work import Decoder

    rows = BATCHES[name]
    decoder = Decoder(MODEL, rows, "cuda")
    measured = {
        members: repeated(meter, partial(decoder.step, members), "cuda", seconds)
        for members in subsets(len(rows))
    }
    joules = {members: one.joules for members, one in measured.items()}
    whole = measured[tuple(range(len(rows)))]
    exact = exact_shares(joules, len(rows))
    ours = {policy: modelled_shares(rows, whole.seconds, physics, policy) for policy in POLICIES}
    found.setdefault("shares", {})[name] = {
        "rows": rows,
        "joules": {"+".join(map(str, members)): value for members, value in joules.items()},
        "step_s": whole.seconds,
        "exact": exact,
        **ours,
    }
    assert sum(exact) == pytest.approx(1)
    assert ours["shapley"] == pytest.approx(exact, abs=LARGEST_ERROR)


def test_every_joule_of_a_run_is_booked(
    meter: NvmlMeter, physics: CostModel, found: dict[str, Any]
) -> None:
    """Three requests decode, then the GPU rests: the accounts are the counter's own increments."""
    from llm_carbon_meter.campaign.torch_work import Decoder, synchronize

    rows = [StepMember(1, cached) for cached in (500, 2000, 8000)]
    decoder = Decoder(MODEL, rows, "cuda")
    decoder.step((0, 1, 2))
    synchronize("cuda")
    readings: list[EnergyReading] = []
    sampler = PowerSampler(meter, 0.05, readings.extend, Faults())
    sampler.start()
    time.sleep(1.0)
    steps = _steps(decoder, rows, 4.0)
    time.sleep(1.0)
    sampler.stop()
    ledger = EnergyLedger(meter.gpus, physics, Source.MEASURED, meter.quality)
    ledger.observe_steps(steps)
    for reading in readings:
        ledger.observe_reading(reading)
    for member in range(len(rows)):
        ledger.close(RequestEnd(str(member), Outcome.FINISHED, 1, 0, 1, steps[-1].done_s))
    records = ledger.settle(readings[-1].monotonic_s)
    (book,) = ledger.totals()
    found["balance"] = {account.label: book.account_joules[account] for account in Account}
    assert len(records) == len(rows)
    assert sum(record.joules for record in records) == pytest.approx(
        book.account_joules[Account.DECODE]
    )
    assert sum(book.account_joules) == pytest.approx(book.counter_joules, rel=1e-9)
    assert book.account_joules[Account.UNATTRIBUTED] == 0
    assert book.account_joules[Account.IDLE] > 0
    busy_s = steps[-1].done_s - steps[0].dispatched_s
    assert book.account_joules[Account.DECODE] > physics.gpu.idle_watts * busy_s


def _steps(decoder: Any, rows: Sequence[Any], seconds: float) -> list[StepEvent]:
    """Decode steps as an engine would report them."""
    from llm_carbon_meter.campaign.torch_work import synchronize

    steps: list[StepEvent] = []
    members = tuple(range(len(rows)))
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        dispatched_s = time.monotonic()
        decoder.step(members)
        synchronize("cuda")
        steps.append(
            StepEvent(
                len(steps),
                dispatched_s,
                time.monotonic(),
                [str(member) for member in members],
                [Account.DECODE] * len(rows),
                [row.new for row in rows],
                [row.cached for row in rows],
                [1] * len(rows),
            )
        )
    return steps
