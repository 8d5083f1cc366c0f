"""What the meter must know of a model of transformers: its shape, and the GPUs that hold it."""

from collections.abc import Sequence
from typing import Any

from llm_carbon_meter.config import cuda_visible_devices
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.power.nvml.devices import visible_devices
from llm_carbon_meter.records import SpecError
from llm_carbon_meter.servers.shared.loaded_config import loaded_config


def spec_of(model: Any, name: str, faults: Faults) -> ModelSpec | None:
    """The model's shape in the number format that it is loaded in; None where it is not known."""
    config = loaded_config(model.config, model.config.get_text_config(), model.dtype)
    try:
        return model_spec(config, name, any_format=True)
    except SpecError as error:
        faults.note("model", error, "Requests have no estimate.")
        return None


def gpus_of(model: Any) -> list[int]:
    """CUDA's indices of the GPUs that hold it."""
    devices = {parameter.device for parameter in model.parameters()}
    return sorted(device.index or 0 for device in devices if device.type == "cuda")


def visible_gpus(gpus: Sequence[int]) -> Sequence[str]:
    """NVML's indices or UUIDs of the GPUs that hold it; of the first one where none does.

    Raises:
        PowerError: CUDA_VISIBLE_DEVICES shows fewer.
    """
    return visible_devices(cuda_visible_devices(), min(gpus, default=0), max(len(gpus), 1))


def gpu_name(gpus: Sequence[int]) -> str:
    """The name of the first as CUDA gives it; empty on a host without one."""
    import torch

    return str(torch.cuda.get_device_name(gpus[0])) if gpus else ""
