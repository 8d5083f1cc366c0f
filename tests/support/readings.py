"""Readings of a power meter over a while."""

import time
from collections.abc import Sequence

from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.records import EnergyReading


def read_for(meter: PowerMeter, seconds: float) -> list[Sequence[EnergyReading]]:
    """Poll every 10 ms."""
    end = time.monotonic() + seconds
    polls = []
    while time.monotonic() < end:
        polls.append(meter.read())
        time.sleep(0.01)
    return polls
