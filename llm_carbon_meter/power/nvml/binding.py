"""nvidia-ml-py, loaded when a meter is opened, and its errors in our words. For power/ alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from llm_carbon_meter.records import PowerError

Answer = TypeVar("Answer")

COUNTER_FIELD: Final = 83  # NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, mJ
INSTANT_FIELD: Final = 186  # NVML_FI_DEV_POWER_INSTANT, mW
MODELLED: Final = "or set LLM_CARBON_METER_POWER=modelled"
# Indexed by nvmlValueType_t: the member of the union that holds the value.
_VALUE_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
_NEEDED_NAMES: Final = (
    "NVMLError",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
    "convertStrBytes",  # without it names are bytes, as in 11.450
)


def binding() -> Any:
    """The module pynvml of nvidia-ml-py.

    Raises:
        PowerError: it is not installed, or another package has its name.
    """
    try:
        import pynvml
    except ImportError as error:
        raise PowerError(
            f"pynvml was imported: {error}; pip install nvidia-ml-py, {MODELLED}"
        ) from None
    missing = [name for name in _NEEDED_NAMES if not hasattr(pynvml, name)]
    if missing:
        where = getattr(pynvml, "__file__", "an unknown place")
        raise PowerError(
            f"pynvml was imported from {where}, which has no {missing[0]}: an old or another "
            "package; pip uninstall pynvml, then pip install --force-reinstall nvidia-ml-py"
        )
    return pynvml


def text(call: Callable[[], str]) -> str:
    """What NVML says in letters; the binding itself fails at what is not UTF-8."""
    try:
        return call()
    except UnicodeDecodeError as error:
        return error.object.decode(errors="replace")


def field_values(nvml: Any, handle: Any, fields: Sequence[int]) -> dict[int, Any]:
    """Many fields of a GPU in one call."""
    if not fields:
        return {}
    values = nvml.nvmlDeviceGetFieldValues(handle, fields)
    return dict(zip(fields, values, strict=True))


def value(nvml: Any, field: Any) -> float:
    """The number in one field value; each carries its own error."""
    if field.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(field.nvmlReturn)
    return float(getattr(field.value, _VALUE_MEMBERS[field.valueType]))


def lost(nvml: Any, error: Any) -> bool:
    """Whether the GPU or the session is gone, and not just what was asked for."""
    return error.value in (nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_GPU_IS_LOST)


def ask(nvml: Any, call: Callable[[], Answer], otherwise: Answer) -> Answer:
    """Call for what a GPU or an old driver may lack; a lost GPU is an error all the same."""
    try:
        return call()
    except nvml.NVMLError as error:
        if lost(nvml, error):
            raise
    except nvml.NVMLLibraryMismatchError:  # the driver is older than the binding
        pass
    return otherwise


@contextmanager
def explained(nvml: Any, tried: str) -> Iterator[None]:
    """NVML's errors inside the block become PowerError."""
    try:
        yield
    except nvml.NVMLError as error:
        raise explain(nvml, error, tried) from error


def explain(nvml: Any, error: Any, tried: str) -> PowerError:
    """The one place where NVML's errors become ours: tried, found, what to do."""
    advice = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 is missing: install the NVIDIA "
        "driver, or in a container add the capability with NVIDIA_DRIVER_CAPABILITIES=utility",
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA driver (nvidia-smi must work), or "
        "give the container a GPU",
        nvml.NVML_ERROR_NO_PERMISSION: "let this user read /dev/nvidia*",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver and library differ: restart the host "
        "after the driver's update",
        nvml.NVML_ERROR_NOT_SUPPORTED: "the GPU has neither an energy counter nor a power sensor "
        "(usual for virtual GPUs)",
        nvml.NVML_ERROR_GPU_IS_LOST: "the GPU fell off the bus: see dmesg for Xid errors",
        nvml.NVML_ERROR_UNINITIALIZED: "NVML's session ended; it is opened again by itself",
    }.get(error.value, "see nvidia-smi and dmesg")
    return PowerError(f"{tried}; NVML says: {error} (code {error.value}); {advice}, {MODELLED}")
