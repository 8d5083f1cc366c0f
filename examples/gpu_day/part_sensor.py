"""The sensor: how often the counter moves, how late, what it says of known loads, what it costs."""

import time
from contextlib import ExitStack
from typing import Any

from part import Day

from llm_carbon_meter.power.nvml.nvml_meter import open_nvml

PART = "sensor"
FULL_S = 55.0
"""With so much time every figure has its full length."""
WATCH_S, SETTLE_S = 6.0, 1.5
ONSET_S, UNDER_S = 1.0, 1.5
LEAST_WATCH_S, LEAST_ONSET_S = 0.6, 0.4
BURSTS_S = 3.0
AWAKE = "idle, no context"


def run(day: Day) -> str:
    """Idle before torch has a context, steady loads, onsets, bursts."""
    scale = min(1.0, day.left_s / FULL_S)
    with ExitStack() as stack:
        meter = open_nvml([day.gpu.index])
        stack.callback(meter.close)
        _steady(day, meter, AWAKE, None, max(LEAST_WATCH_S, WATCH_S * scale / 2))
        from llm_carbon_meter.campaign import sensor  # torch is imported here

        plan = day.plan
        works = sensor.works(day.gpu.device, plan.gemm_size, plan.gemv_size)
        for name, work in works.items():
            _steady(day, meter, name, work, max(LEAST_WATCH_S, WATCH_S * scale))
        missing = [*_onsets(day, meter, works["prefill"], scale), *_bursts(day, meter, scale)]
    return ", ".join(missing)


def _steady(day: Day, meter: Any, name: str, work: Any, seconds: float) -> None:
    from llm_carbon_meter.campaign.sensor import steady

    if not day.rows.has(PART, "load", name):
        settle_s = min(SETTLE_S, seconds / 3)
        seen, note = steady(meter, day.gpu.load(work), seconds, settle_s)
        day.rows.add(PART, "load", name, quality=str(seen.quality), seconds=seconds, **note)


def _onsets(day: Day, meter: Any, work: Any, scale: float) -> list[str]:
    """Seconds that the counter is late, at several starts of a load."""
    from llm_carbon_meter.campaign.sensor import ONSETS, onset

    before_s, under_s = max(LEAST_ONSET_S, ONSET_S * scale), max(LEAST_ONSET_S, UNDER_S * scale)
    for number in range(ONSETS):
        if day.rows.has(PART, "onset", str(number)):
            continue
        if number and not day.has_time(before_s + under_s):
            return [f"{ONSETS - number} of {ONSETS} onsets"]
        time.sleep(before_s)  # the power has fallen
        lag_s = onset(meter, day.gpu.load(work), before_s, under_s)
        day.rows.add(PART, "onset", str(number), lag_s=lag_s)
    return []


def _bursts(day: Day, meter: Any, scale: float) -> list[str]:
    """Loads that come and go near the sensor's own period."""
    from llm_carbon_meter.campaign.sensor import BURST_PERIODS_S, bursting, steady

    seconds = max(LEAST_WATCH_S, BURSTS_S * scale)
    for place, period_s in enumerate(BURST_PERIODS_S):
        key = str(period_s)
        if day.rows.has(PART, "burst", key):
            continue
        if not day.has_time(seconds):
            return [f"bursts of {', '.join(map(str, BURST_PERIODS_S[place:]))} s"]
        work = bursting(day.gpu.device, period_s, day.plan.gemm_size // 2)
        _, note = steady(meter, day.gpu.load(work), seconds, settle_s=min(0.5, seconds / 3))
        day.rows.add(PART, "burst", key, **note)
    return []
