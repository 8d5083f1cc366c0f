"""Both ends of a meter in one process."""

import time
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
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
