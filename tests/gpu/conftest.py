"""The GPU of this machine, or a skip; and where findings are noted."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.campaign.sensors_file import write
from llm_carbon_meter.power.nvml.nvml_meter import NvmlMeter, open_nvml
from llm_carbon_meter.power.nvml.survey import GpuFacts, survey


@pytest.fixture(scope="session")
def gpu() -> GpuFacts:
    """What NVML says of CUDA's first GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    (facts,) = survey([f"GPU-{torch.cuda.get_device_properties(0).uuid}"]).gpus
    return facts


@pytest.fixture(scope="session")
def meter(gpu: GpuFacts) -> Iterator[NvmlMeter]:
    """It is read as the meter does."""
    meter = open_nvml([gpu.uuid])
    yield meter
    meter.close()


@pytest.fixture(scope="session")
def found(gpu: GpuFacts) -> Iterator[dict[str, Any]]:
    """Notes of all tests, written to SENSORS_JSON at the end."""
    import torch

    notes: dict[str, Any] = {
        "architecture": gpu.architecture.name,
        "driver": survey([]).driver,
        "torch": str(torch.__version__),
    }
    yield notes
    if "SENSORS_JSON" in os.environ:
        write(Path(os.environ["SENSORS_JSON"]), gpu.name, notes)


@pytest.fixture(scope="session")
def seconds() -> float:
    """How long each subset of a batch is repeated: GPU_SECONDS, 3 to 10."""
    return min(max(float(os.environ.get("GPU_SECONDS", "3")), 3.0), 10.0)
