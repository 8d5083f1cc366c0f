"""Both ends of a meter in one process."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.servers.shared import local_meter
from llm_carbon_meter.servers.shared.local_meter import LocalMeter
from llm_carbon_meter.servers.shared.meter_process import MeterProcess, Setup


def test_whatever_fails_at_the_start_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an error that is none of ours, such as metrics that are registered already."""
    processes: list[Any] = []

    class Watched(MeterProcess):
        """Is remembered."""

        def __init__(self, setup: Setup, faults: Faults) -> None:
            super().__init__(setup, faults)
            processes.append(self._process)

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("registered already")

    monkeypatch.setattr(local_meter, "MeterProcess", Watched)
    monkeypatch.setattr(local_meter, "ApiServer", broken)
    config = Config(power="modelled", channel_dir=str(tmp_path))
    setup = Setup(config, 0, [], 0, 1, None, 1, time.monotonic())
    with pytest.raises(ValueError, match="registered already"):
        LocalMeter(setup, "toy", held=lambda: 0, tracing=False, faults=Faults())
    (process,) = processes
    assert process.poll() is not None


def test_a_meter_that_has_begun_says_what_it_meters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line: GPU, sensor, quality, routes, request log, estimator."""
    log = tmp_path / "requests.jsonl"
    config = Config(power="modelled", channel_dir=str(tmp_path), request_log=str(log))
    model = built_in_model("Llama-3.1-8B")
    process = MeterProcess(Setup(config, 0, [], 0, 1, model, 1, time.monotonic()), Faults())
    with caplog.at_level(logging.INFO, "llm_carbon_meter"):
        process.ready()
    process.stop()
    (line,) = caplog.messages
    assert line == (
        "llm_carbon_meter: engine 0 is metered: GPU modelled-0 (H100), modelled, "
        "quality modelled; power source: modelled; "
        "routes: /metrics, /v1/carbon/requests/{id}, /v1/carbon/estimate; "
        f"request log: {log}; estimates: gnn"
    )
