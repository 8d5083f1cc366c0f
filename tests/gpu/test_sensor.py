"""The counter of a real GPU: how often it moves, how late, and what the power says of it."""

import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from llm_carbon_meter.power.nvml.nvml_meter import NvmlMeter
from llm_carbon_meter.records import Quality

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default", "error::pytest.PytestUnhandledThreadExceptionWarning"),
]

WATCH_S = 6.0


def test_the_counter_ticks_and_agrees_with_the_power(
    meter: NvmlMeter, found: dict[str, Any]
) -> None:
    """At idle, bound by memory and bound by arithmetic: it only rises, several times a second."""
    from llm_carbon_meter.campaign.sensor import steady, works
    from llm_carbon_meter.campaign.torch_work import SteadyLoad

    loads = found["loads"] = {}
    for name, work in works("cuda").items():
        load = SteadyLoad(work, "cuda") if work else nullcontext()
        seen, loads[name] = steady(meter, load, WATCH_S, settle_s=1.0 if work else 2.0)
        assert seen.quality is Quality.COUNTER
        assert (np.diff(seen.joules) >= 0).all()
        assert seen.period_s is not None
        assert seen.period_s <= 0.2
    for name in ("decode", "prefill"):
        assert loads[name]["counter_to_power"] == pytest.approx(1, abs=0.15)
        assert loads[name]["counter_watts"] > 1.2 * loads["idle"]["counter_watts"]


def test_the_counter_notices_a_load_soon(meter: NvmlMeter, found: dict[str, Any]) -> None:
    """From the first kernel to the line of the counter: the median of several onsets."""
    from llm_carbon_meter.campaign.sensor import ONSETS, onset, works
    from llm_carbon_meter.campaign.torch_work import SteadyLoad

    work, lags_s = works("cuda")["prefill"], []
    for _ in range(ONSETS):
        time.sleep(1.0)
        lags_s.append(onset(meter, SteadyLoad(work, "cuda")))
    found["onset_lags_s"] = lags_s
    assert -0.1 < np.median(lags_s) < 0.5


def test_bursts_near_the_sensors_period_are_counted(
    meter: NvmlMeter, found: dict[str, Any]
) -> None:
    """Where the sensor looks only part of the time, bursts show what it misses; none is lost."""
    from llm_carbon_meter.campaign.sensor import BURST_PERIODS_S, bursting, steady
    from llm_carbon_meter.campaign.torch_work import SteadyLoad

    noted = found.setdefault("bursts", {})
    for period_s in BURST_PERIODS_S:
        load = SteadyLoad(bursting("cuda", period_s), "cuda")
        noted[str(period_s)] = steady(meter, load, 3.0, settle_s=0.5)[1]
    watts = [burst["counter_watts"] for burst in noted.values()]
    assert max(watts) < 2 * min(watts)
