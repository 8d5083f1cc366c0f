"""Joules of repeated work, between moves of the counter."""

import time
from collections.abc import Callable
from typing import NamedTuple

from llm_carbon_meter.campaign.torch_work import SteadyLoad
from llm_carbon_meter.power.characterise import Polled, poll
from llm_carbon_meter.power.power_meter import PowerMeter

WARM_UP_S = 0.5
"""Clocks and power have risen by then."""
PAUSE_S = 0.01
"""Between readings beside a load, which shares this process's interpreter lock."""


class Repeated(NamedTuple):
    """One repetition of some work under unbroken load."""

    joules: float
    """Gross, of the whole GPU."""
    seconds: float


def repeated(
    meter: PowerMeter,
    work: Callable[[], object],
    device: str,
    seconds: float,
    warm_up_s: float = WARM_UP_S,
) -> Repeated:
    """Repeat work and share what the counter says among the repetitions."""
    with SteadyLoad(work, device) as load:
        time.sleep(warm_up_s)
        began_s, before = time.monotonic(), load.count
        polled = watched(meter, seconds)
        each_s = (time.monotonic() - began_s) / max(load.count - before, 1)
    return Repeated(polled.mean_watts * each_s, each_s)


def watched(meter: PowerMeter, seconds: float, pause_s: float = PAUSE_S) -> Polled:
    """The only GPU's series."""
    (polled,) = poll(meter, seconds, pause_s)[0].values()
    return polled
