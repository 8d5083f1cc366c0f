"""Over how many GPUs a model's tensors can be divided (tensor parallelism)."""

from typing import Final

from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.records import SpecError

GROUP_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
"""GPUs of a tensor-parallel group, as they are built."""


def check_tensor_parallel(model: ModelSpec, num_gpus: int) -> None:
    """Refuse a group of GPUs that the model's tensors cannot be divided among.

    Raises:
        SpecError: says what it does not divide, and which sizes do.
    """
    obstacle = _obstacle(model, num_gpus)
    if obstacle:
        sizes = ", ".join(map(str, group_sizes(model)))
        raise SpecError(
            f"num_gpus is {num_gpus}; it must divide {obstacle} of {model.name}, as {sizes} do"
        )


def group_sizes(model: ModelSpec) -> list[int]:
    """Those of `GROUP_SIZES` that the model's tensors can be divided among."""
    return [size for size in GROUP_SIZES if not _obstacle(model, size)]


def _obstacle(model: ModelSpec, num_gpus: int) -> str:
    """What ``num_gpus`` does not divide; empty where it divides everything."""
    for heads in filter(None, (model.heads, model.windowed_heads)):
        if num_gpus < 1 or heads.num_heads % num_gpus:
            return f"{heads.num_heads} heads"
        key_heads = heads.num_kv_heads
        # Fewer key/value heads than GPUs are replicated.
        if not model.latent and max(key_heads, num_gpus) % min(key_heads, num_gpus):
            return f"{key_heads} key/value heads"
    widths = {
        "an MLP of {}": model.intermediate_size if model.dense_layers else 0,
        "experts of {}": model.expert_size if model.expert_layers else 0,
        "shared experts of {}": model.shared_size if model.expert_layers else 0,
    }
    return next((words.format(width) for words, width in widths.items() if width % num_gpus), "")
