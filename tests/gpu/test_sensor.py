"""The counter of a real GPU: how often it moves, how late, and what the power says of it."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llm_carbon_meter.power.characterise import Polled, agreement, histogram_ms, onset_lag_s, poll
from llm_carbon_meter.power.nvml.nvml_meter import NvmlMeter
from llm_carbon_meter.records import Quality

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default", "error::pytest.PytestUnhandledThreadExceptionWarning"),
]

WATCH_S = 6.0
ONSETS = 5
BURST_PERIODS_S = (0.02, 0.05, 0.1, 0.13)
GEMM_SIZE, GEMV_SIZE = 8192, 32768


def _works() -> dict[str, Callable[[], object] | None]:
    from tests.gpu.loads import decode_like, prefill_like

    return {
        "idle": None,
        "decode": decode_like("cuda", GEMV_SIZE),
        "prefill": prefill_like("cuda", GEMM_SIZE),
    }


def _watched(meter: NvmlMeter, work: Callable[[], object] | None) -> tuple[Polled, Any]:
    from tests.gpu.loads import Load

    if work is None:
        time.sleep(2.0)
        polled, took_s = poll(meter, WATCH_S)
    else:
        with Load(work, "cuda"):
            time.sleep(1.0)
            polled, took_s = poll(meter, WATCH_S)
    (seen,) = polled.values()
    return seen, took_s


def _note(seen: Polled, took_s: Any) -> dict[str, Any]:
    return {
        "period_s": seen.period_s,
        "intervals_ms": histogram_ms(seen.intervals_s),
        "counter_watts": seen.mean_watts,
        "instant_watts": float(np.mean(seen.watts)),
        "counter_to_power": agreement(seen),
        "call_median_s": float(np.median(took_s)),
        "call_p99_s": float(np.quantile(took_s, 0.99)),
    }


def test_the_counter_ticks_and_agrees_with_the_power(
    meter: NvmlMeter, found: dict[str, Any]
) -> None:
    """At idle, bound by memory and bound by arithmetic: it only rises, several times a second."""
    loads = found["loads"] = {}
    for name, work in _works().items():
        seen, took_s = _watched(meter, work)
        loads[name] = _note(seen, took_s)
        assert seen.quality is Quality.COUNTER
        assert (np.diff(seen.joules) >= 0).all()
        assert seen.period_s is not None
        assert seen.period_s <= 0.2
    for name in ("decode", "prefill"):
        assert loads[name]["counter_to_power"] == pytest.approx(1, abs=0.15)
        assert loads[name]["counter_watts"] > 1.2 * loads["idle"]["counter_watts"]


def test_the_counter_notices_a_load_soon(meter: NvmlMeter, found: dict[str, Any]) -> None:
    """From the first kernel to the line of the counter: the median of several onsets."""
    from tests.gpu.loads import Load, prefill_like

    work, lags_s = prefill_like("cuda", GEMM_SIZE), []
    for _ in range(ONSETS):
        time.sleep(1.0)
        before = _series(meter, 1.0)
        began_s = time.monotonic()
        with Load(work, "cuda"):
            under = _series(meter, 1.5)
        times_s = np.concatenate((before.times_s, under.times_s))
        joules = np.concatenate((before.joules, under.joules))
        lags_s.append(onset_lag_s(times_s, joules, began_s))
    found["onset_lags_s"] = lags_s
    assert -0.1 < np.median(lags_s) < 0.5


def _series(meter: NvmlMeter, seconds: float) -> Polled:
    (seen,) = poll(meter, seconds)[0].values()
    return seen


def test_bursts_near_the_sensors_period_are_counted(
    meter: NvmlMeter, found: dict[str, Any]
) -> None:
    """Where the sensor looks only part of the time, bursts show what it misses; none is lost."""
    from tests.gpu.loads import Load, bursts, prefill_like

    work, noted = prefill_like("cuda", GEMM_SIZE // 2), found.setdefault("bursts", {})
    for period_s in BURST_PERIODS_S:
        with Load(bursts(work, "cuda", period_s), "cuda"):
            time.sleep(0.5)
            seen = _series(meter, 3.0)
        noted[str(period_s)] = {
            "counter_watts": seen.mean_watts,
            "counter_to_power": agreement(seen),
        }
    watts = [burst["counter_watts"] for burst in noted.values()]
    assert max(watts) < 2 * min(watts)
