"""A message of every kind that goes between processes."""

from llm_carbon_meter.records import (
    Account,
    CarbonIntensity,
    EngineLoad,
    EngineTotals,
    GpuTotals,
    HostTotals,
    Outcome,
    Quality,
    Source,
)
from llm_carbon_meter.servers.shared.channel import Message, SharedRecord
from tests.support.made.energies import energy_of
from tests.support.made.records import RECORD

ENERGY = energy_of(
    "chatcmpl-1-8f",
    engine=1,
    source=Source.MODELLED,
    quality=Quality.MODELLED,
    outcome=Outcome.STOPPED,
    joules={"waste": 0.1},
)


TOTALS = EngineTotals(
    session="s",
    engine=0,
    source=Source.MEASURED,
    gpus=(GpuTotals("GPU-1", 7.0, (1.0,) * 7, (2.0,) * 7, None),),
    account_grams=(0.5,) * len(Account),
    embodied_grams=(0.1,) * len(Account),
    intensity=CarbonIntensity(302.0, "DE", "electricitymaps", 12.5, is_estimated=True),
    steps={"prefill": 3},
    tokens={"prefill": 30},
    errors={"power": 1},
    sampler_gap_s=0.04,
    open_requests=2,
    account_litres=(0.01,) * len(Account),
    host=(HostTotals("dram", Source.MEASURED, 14.0, (2.0,) * 7),),
    covers="energy of the GPUs alone",
)


SHARED = SharedRecord(1, RECORD)
LOAD = EngineLoad(1, {0: 3, 2: 1})
MESSAGES: list[Message] = [ENERGY, TOTALS, LOAD, SHARED]
