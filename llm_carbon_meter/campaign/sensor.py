"""How the counter of a GPU behaves: its period and power under a steady load, its lag at an onset.

What is measured is noted as JSON has it, under names that `sensors_file` and the report know.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np

from llm_carbon_meter.campaign.torch_work import bursts, decode_like, prefill_like
from llm_carbon_meter.power.characterise import Polled, agreement, histogram_ms, onset_lag_s, poll
from llm_carbon_meter.power.power_meter import PowerMeter

Work = Callable[[], object]
"""Starts kernels and returns."""
Load = AbstractContextManager[object]
"""The GPU works inside its ``with`` block."""
ONSETS: Final = 5
BURST_PERIODS_S: Final = (0.02, 0.05, 0.1, 0.13)
GEMM_SIZE, GEMV_SIZE = 8192, 32768


def works(device: str, gemm_size: int = GEMM_SIZE, gemv_size: int = GEMV_SIZE) -> Mapping[str, Any]:
    """Work by name, beside none: bound by memory, and bound by arithmetic."""
    return {
        "idle": None,
        "decode": decode_like(device, gemv_size),
        "prefill": prefill_like(device, gemm_size),
    }


def bursting(device: str, period_s: float, gemm_size: int = GEMM_SIZE // 2) -> Work:
    """Arithmetic in half of each period."""
    return bursts(prefill_like(device, gemm_size), device, period_s)


def steady(
    meter: PowerMeter, load: Load, seconds: float, settle_s: float
) -> tuple[Polled, dict[str, Any]]:
    """Poll under a load that began ``settle_s`` before: the series, and what is noted of it."""
    with load:
        time.sleep(settle_s)
        polled, took_s = poll(meter, seconds)
    (seen,) = polled.values()
    return seen, {
        "period_s": seen.period_s,
        "intervals_ms": histogram_ms(seen.intervals_s),
        "counter_watts": seen.mean_watts,
        "instant_watts": float(np.mean(seen.watts)),
        "counter_to_power": agreement(seen),
        "call_median_s": float(np.median(took_s)),
        "call_p99_s": float(np.quantile(took_s, 0.99)),
    }


def onset(meter: PowerMeter, load: Load, before_s: float = 1.0, under_s: float = 1.5) -> float:
    """Seconds from the first kernel of a load to the line of the counter."""
    before = _series(meter, before_s)
    began_s = time.monotonic()
    with load:
        under = _series(meter, under_s)
    times_s = np.concatenate((before.times_s, under.times_s))
    joules = np.concatenate((before.joules, under.joules))
    return onset_lag_s(times_s, joules, began_s)


def _series(meter: PowerMeter, seconds: float) -> Polled:
    (seen,) = poll(meter, seconds)[0].values()
    return seen
