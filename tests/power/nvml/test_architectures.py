"""The table of architectures, and what was measured beside it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from llm_carbon_meter.power.nvml import architectures as sensors
from llm_carbon_meter.power.nvml.architectures import (
    ARCHITECTURES,
    GA100,
    Measured,
    architecture,
    measured,
)


def test_the_numbers_are_nvmls() -> None:
    """Every row stands under the number that NVML gives its name."""
    for number, row in ARCHITECTURES.items():
        assert getattr(pynvml, f"NVML_DEVICE_ARCH_{row.name.upper()}") == number


@pytest.mark.parametrize(
    ("number", "name", "window_s", "counts"),
    [
        (4, "Tesla P100-PCIE-16GB", 0.0, False),
        (5, "Tesla V100-SXM2-16GB", 0.0, True),
        (7, "NVIDIA A100-SXM4-80GB", 0.0, True),
        (7, "NVIDIA A30", 0.0, True),
        (7, "NVIDIA A40", 1.0, True),
        (9, "NVIDIA H100 80GB HBM3", 1.0, True),
        (99, "NVIDIA Next", 1.0, True),
    ],
)
def test_what_nvml_h_says(number: int, name: str, window_s: float, counts: bool) -> None:
    """GA100 and older give power now, newer ones the last second's mean; counters since Volta."""
    row = architecture(number, name)
    assert (row.usage_window_s, row.counts) == (window_s, counts)


def test_a_quarter_of_the_time_is_sampled_where_that_was_seen() -> None:
    """On A100 and H100 (arXiv 2312.02741); of others nothing is claimed."""
    assert GA100.sampled == ARCHITECTURES[9].sampled == 0.25
    assert ARCHITECTURES[8].sampled is None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package's data are here."""
    monkeypatch.setattr(
        "llm_carbon_meter.power.nvml.architectures.resources.files", lambda _: tmp_path
    )
    sensors._measurements.cache_clear()
    yield tmp_path
    sensors._measurements.cache_clear()


def test_without_a_measurement_nothing_is_known(folder: Path) -> None:
    """The file need not exist."""
    assert measured("NVIDIA H100 80GB HBM3") is None


def test_a_measurement_is_found_by_the_gpus_name(folder: Path) -> None:
    """Period and lag of the counter; more may stand beside them."""
    row = {"period_s": 0.02, "lag_s": 0.015, "driver": "580"}
    (folder / sensors.MEASURED_FILE).write_text(json.dumps({"gpus": {"NVIDIA H100": row}}))
    assert measured("NVIDIA H100") == Measured(0.02, 0.015)
    assert measured("NVIDIA H200") is None


def test_what_a_rehearsal_wrote_is_no_measurement(folder: Path) -> None:
    """Its file has the same form, and says that it is simulated."""
    row = {"period_s": 0.02, "lag_s": 0.03, "source": "simulated"}
    (folder / sensors.MEASURED_FILE).write_text(json.dumps({"gpus": {"NVIDIA H100": row}}))
    assert measured("NVIDIA H100") is None


def test_the_file_of_the_package_can_be_read() -> None:
    """Committed or not."""
    assert measured("no such GPU") is None
