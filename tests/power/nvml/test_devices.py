"""Which GPUs are an engine's, and what is said of one that does not exist."""

from typing import Any

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_carbon_meter.power.nvml.devices import visible_devices
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.records import PowerError
from tests.support.scripted_nvml import MIG_UUID, UUIDS


@pytest.mark.parametrize(
    ("value", "first", "count", "expected"),
    [
        (None, 0, 2, ["0", "1"]),
        (None, 2, 2, ["2", "3"]),
        ("3,1", 0, 2, ["3", "1"]),
        ("3, 1 ,0,2", 2, 2, ["0", "2"]),
        (f"{UUIDS[1]},{UUIDS[0]}", 0, 1, [UUIDS[1]]),
        (MIG_UUID, 0, 1, [MIG_UUID]),
        ("1,-1,0", 0, 1, ["1"]),
    ],
)
def test_visible_devices(value: str | None, first: int, count: int, expected: list[str]) -> None:
    """An engine's GPUs are its slice of CUDA_VISIBLE_DEVICES, in that order."""
    assert visible_devices(value, first, count) == expected


@pytest.mark.parametrize("value", ["", "-1", "0", "0,-1,1", "0,NoDevFiles,1"])
def test_too_few_visible_devices(value: str) -> None:
    """As in CUDA the list ends at the first entry that is no device; too few is an error."""
    with pytest.raises(PowerError, match="list at least 2 GPUs"):
        visible_devices(value, 0, 2)


@settings(deadline=None)
@given(st.one_of(st.none(), st.text()), st.integers(0, 8), st.integers(1, 8))
def test_visible_devices_gives_count_or_an_error(value: str | None, first: int, count: int) -> None:
    """Whatever the variable holds, the engine gets all its GPUs or a PowerError."""
    try:
        devices = visible_devices(value, first, count)
    except PowerError:
        return
    assert len(devices) == count


def test_uuid_may_be_shortened_if_unique(stub: Any) -> None:
    """CUDA accepts the first characters of a UUID, so we do where they fit one GPU."""
    stub.steady(100)
    meter = open_nvml(["GPU-0000"])
    meter.close()
    assert list(meter.gpus) == [UUIDS[0]]
    stub.steady(100, 200)
    with pytest.raises(PowerError, match="was asked for"):
        open_nvml(["GPU-0000"])


@pytest.mark.parametrize("device", ["GPU-ffff", "MIG-ffff", "", "gpu0", MIG_UUID])
def test_unknown_device_lists_those_found(stub: Any, device: str) -> None:
    """A device that does not exist is an error that lists what does."""
    stub.steady(100, 200)
    with pytest.raises(PowerError, match=f"{UUIDS[0]}, {UUIDS[1]}"):
        open_nvml([device])


def test_index_out_of_range_says_how_many_were_found(stub: Any) -> None:
    """An index too high is an error with the number of GPUs."""
    stub.steady(100, 200)
    with pytest.raises(PowerError, match="GPU 2 was asked for, NVML found 2"):
        open_nvml(["0", "2"])


def test_failed_opening_leaves_no_session(stub: Any) -> None:
    """If a device is wrong, the NVML session is closed again."""
    stub.steady(100)
    with pytest.raises(PowerError):
        open_nvml(["7"])
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


def test_no_device_is_an_error(stub: Any) -> None:
    """A meter of no GPU cannot be opened."""
    stub.steady(100)
    with pytest.raises(PowerError, match="no GPU"):
        open_nvml([])
