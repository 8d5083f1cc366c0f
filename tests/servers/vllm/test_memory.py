"""The division of memory against vLLM's own classes and defaults."""

from unittest.mock import patch

import pytest
import torch

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.memory import (
    BLOCK_TOKENS,
    GIBI,
    UTILISATION,
    memory_of,
    server_limits,
)
from llm_carbon_meter.physics.model_list import built_in_model

H100 = gpu_spec("H100")


def test_the_shares_are_vllm_s_defaults() -> None:
    """``gpu_memory_utilization`` and the tokens of a block."""
    from vllm.config.cache import CacheConfig

    assert CacheConfig().gpu_memory_utilization == UTILISATION
    assert BLOCK_TOKENS == CacheConfig.DEFAULT_BLOCK_SIZE


@pytest.mark.parametrize(
    ("name", "gibi"), [("L4", 22.5), ("A100", 79.3), ("H100", 79.2), ("B200", 179.1)]
)
def test_a_server_s_limits_are_vllm_s(name: str, gibi: float) -> None:
    """On a GPU of that name and of the memory that CUDA gives it."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    with (
        patch.object(type(current_platform), "get_device_total_memory", lambda *_: gibi * GIBI),
        patch.object(type(current_platform), "get_device_name", lambda *_: f"NVIDIA {name}"),
        patch.object(type(current_platform), "is_cpu", lambda *_: False),
    ):
        tokens, sequences = EngineArgs.get_batch_defaults(1)
    server = UsageContext.OPENAI_API_SERVER
    assert server_limits(gpu_spec(name)) == (tokens[server], sequences[server])


@pytest.mark.parametrize("num_gpus", [1, 4, 16])
def test_a_page_of_keys_and_values_is_vllm_s(num_gpus: int) -> None:
    """Of all layers of Llama-3.1-8B, whose eight heads are on each GPU of a larger group."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    page = FullAttentionSpec(
        block_size=BLOCK_TOKENS,
        num_kv_heads=max(8 // num_gpus, 1),
        head_size=128,
        dtype=torch.bfloat16,
    ).page_size_bytes
    memory = memory_of(built_in_model("Llama-3.1-8B"), H100, num_gpus)
    assert memory.request_bytes(1) == 32 * page


def test_a_page_of_latents_is_vllm_s() -> None:
    """Of all layers of DeepSeek-V3, the same on every GPU."""
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    page = MLAAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=576, dtype=torch.bfloat16
    ).page_size_bytes
    assert memory_of(built_in_model("DeepSeek-V3"), H100, 8).request_bytes(1) == 61 * page
