"""Three counters of the stub, each late by another time, one of them changing: what is shown."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from llm_carbon_meter.check.gpus import check_power
from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.prometheus import PrometheusExporter
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.ledger.kept_coefficients import KeptCoefficients
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.records import EnergyReading, Quality, Source, StepEvent
from llm_carbon_meter.testing.nvml_stub import StubScript
from tests.support.made.records import TOTALS
from tests.support.scripted_nvml import UUIDS
from tests.support.steps.cost_models import LLAMA
from tests.support.steps.ledgers import step_of

GPUS: Final = UUIDS[:3]
CYCLE_S: Final = 4.37
BURSTS: Final = ((0.2, 0.5), (0.9, 1.0), (1.6, 2.3), (2.5, 2.7), (3.6, 4.1))
CHANGE_S, OVER_S = 60.0, 150.0
SHOWN_MS: Final = 10.0
"""Half of the stub's period: the counter is read so long after it moved, in the mean."""


def counter(lag_ms: float) -> StubScript:
    """120 W, and 500 in bursts; the stub's own figures, at times that a test chooses."""
    points = [(0.0, 120.0)]
    for start, end in BURSTS:
        points += [(start, 120.0), (start, 500.0), (end, 500.0), (end, 120.0)]
    return StubScript(1, {0: points}, 20.0, lag_ms, CYCLE_S, origin_s=0.0)


def steps() -> Iterator[StepEvent]:
    """What the bursts are: steps of 50 ms."""
    for cycle in range(int(OVER_S / CYCLE_S)):
        for start, end in BURSTS:
            for at_s in np.arange(start, end - 0.01, 0.05) + cycle * CYCLE_S:
                yield step_of(float(at_s), float(at_s) + 0.05, "a", "b")


def run(ledger: EnergyLedger) -> None:
    """Play all three counters; the last one's lag grows from 40 to 90 ms, standing meanwhile."""
    scripts, waiting = [counter(ms) for ms in (0.0, 120.0, 40.0)], list(steps())
    reached = 0.0
    for at_s in np.arange(0.0, OVER_S, 0.0503).tolist():
        if at_s > CHANGE_S:
            scripts[2] = counter(90.0)
        while waiting and waiting[0].done_s <= at_s:
            ledger.observe_steps([waiting.pop(0)])
        for name, script in zip(GPUS, scripts, strict=True):
            joules = script.counter_joules(0, at_s)
            if name == GPUS[2]:
                joules = reached = max(reached, joules)
            ledger.observe_reading(EnergyReading(at_s, name, joules))
        ledger.settle(min(at_s, waiting[0].dispatched_s if waiting else at_s))


def test_three_lags_are_in_check_and_in_the_metrics(stub: Any, tmp_path: Path) -> None:
    """Each GPU's own, to 6 ms, from a running meter and from the file that it kept."""
    path = tmp_path / "kept.json"
    file = KeptCoefficients(path, LLAMA, Faults())
    ledger = EnergyLedger(
        GPUS,
        LLAMA,
        Source.MEASURED,
        Quality.COUNTER,
        tick_s=1.0,
        learner=file.learner,
        lags=file.lags,
    )
    run(ledger)
    file.save()
    registry = CollectorRegistry()
    exporter = PrometheusExporter("m", owns_totals=True, registry=registry)
    exporter.totals(replace(TOTALS, gpus=tuple(ledger.totals())))
    stub.steady(100, 100, 100)
    findings = list(check_power(replace(Config(), prices_file=str(path)), 0.1))
    told = [finding for finding in findings if finding.topic.strip() == "counter"]
    for name, finding, lag_ms in zip(GPUS, told, (0.0, 120.0, 90.0), strict=True):
        labels = {"model_name": "m", "engine": "0", "gpu": name}
        shown_s = registry.get_sample_value("llm_carbon_meter_gpu_energy_lag_seconds", labels)
        assert shown_s == pytest.approx((lag_ms + SHOWN_MS) / 1000, abs=0.006)
        assert finding.figures["learnt_lag_s"] == pytest.approx(shown_s)
        assert "a meter learnt its lag" in finding.text
