"""What fits on the GPUs, against sums by hand and against deployments that were measured."""

from dataclasses import replace

import pytest

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.memory import (
    BLOCK_TOKENS,
    UTILISATION,
    Memory,
    check_context,
    check_memory,
    memory_of,
    server_limits,
)
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import Heads
from llm_carbon_meter.physics.parallel import check_tensor_parallel, group_sizes
from llm_carbon_meter.records import SpecError


def on(model: str, gpu: str = "H100", num_gpus: int = 1, num_stages: int = 1) -> Memory:
    """Of a deployment by its names."""
    return memory_of(built_in_model(model), gpu_spec(gpu), num_gpus, num_stages)


def test_memory_is_weights_activations_and_cache() -> None:
    """Llama-3.1-8B on an H100: 8.03 billion weights of two bytes, the rest of 92 % of 81559 MiB."""
    memory = on("Llama-3.1-8B")
    assert memory.usable_bytes == pytest.approx(0.92 * 81559 * 2**20)
    assert memory.weight_bytes == pytest.approx(2 * 8.03e9, rel=1e-3)
    # 8192 tokens in the MLP's product and two residuals, logits of 1024 in float32, and 0.5 GB
    activations = 8192 * (3 * 14336 + 2 * 4096) * 2 + 1024 * 128256 * 4
    assert memory.reserved_bytes == pytest.approx(0.5e9 + activations)
    parts = memory.weight_bytes + memory.reserved_bytes + memory.cache_bytes
    assert parts == pytest.approx(memory.usable_bytes)


@pytest.mark.parametrize(
    ("model", "num_gpus", "token_bytes"),
    [
        ("Llama-3.1-8B", 1, 32 * 2 * 8 * 128 * 2),
        ("Llama-3.1-8B", 4, 32 * 2 * 2 * 128 * 2),
        ("Qwen3-30B-A3B", 4, 48 * 2 * 1 * 128 * 2),
        ("Qwen3-30B-A3B", 8, 48 * 2 * 1 * 128 * 2),  # four key/value heads, each on two GPUs
        ("DeepSeek-V3", 1, 61 * (512 + 64) * 2),
        ("DeepSeek-V3", 8, 61 * (512 + 64) * 2),  # a latent is on every GPU
    ],
)
def test_a_cached_token_is_keys_and_values_of_all_layers(
    model: str, num_gpus: int, token_bytes: float
) -> None:
    """Divided among the GPUs as far as there are heads; a latent is not divided."""
    assert on(model, num_gpus=num_gpus).token_bytes == token_bytes


def test_a_window_holds_no_more_than_itself() -> None:
    """Gemma3-12b: of six layers one sees everything, and the others 1024 tokens."""
    memory = on("Gemma3-12b")
    per_layer = 2 * 8 * 256 * 2
    assert memory.token_bytes == 8 * per_layer
    assert memory.request_bytes(1024) == 48 * per_layer * 1024
    assert memory.request_bytes(8192) == per_layer * (8 * 8192 + 40 * 1024)


def test_a_recurrent_state_is_held_once_in_float32() -> None:
    """However long the request; the layers with attention hold their tokens beside it."""
    memory, model = on("Nemotron-Nano-9B-v2"), built_in_model("Nemotron-Nano-9B-v2")
    assert memory.sequence_bytes == 4 * model.recurrent_state * model.recurrent_layers > 0
    grown = memory.request_bytes(3200) - memory.request_bytes(1600)
    assert grown == 1600 * memory.token_bytes


def test_pages_are_whole() -> None:
    """A request of one token holds a page."""
    memory = on("Llama-3.1-8B")
    assert memory.request_bytes(1) == memory.request_bytes(BLOCK_TOKENS)
    assert memory.request_bytes(BLOCK_TOKENS + 1) == 2 * memory.request_bytes(1)


def test_requests_under_way_hold_half_of_their_outputs() -> None:
    """So many fit; one that does not fit to its end is none."""
    memory = on("Llama-3.1-8B")
    held = memory.request_bytes(1500 + 150)
    assert memory.most(1500, 300) == int(memory.cache_bytes // held)
    whole = int(memory.cache_bytes / memory.token_bytes)
    assert memory.most(whole - 2 * BLOCK_TOKENS, BLOCK_TOKENS) == 1
    assert memory.most(whole // 2, whole) == 0
    assert on("Llama-3.1-70B").most(1, 1) == 0


def test_stages_divide_the_layers() -> None:
    """Two stages of four GPUs hold half of the weights and of the cache each."""
    whole, staged = on("Llama-3.1-70B", num_gpus=4), on("Llama-3.1-70B", num_gpus=4, num_stages=2)
    assert staged.weight_bytes == whole.weight_bytes / 2
    assert staged.request_bytes(160) == whole.request_bytes(160) / 2


@pytest.mark.parametrize(
    ("model", "gpu", "num_gpus", "concurrency", "prompt", "output"),
    [
        ("Gemma2-9b", "A100-40GB", 1, 127, 100, 381),
        ("Gemma2-27b", "A100-40GB", 4, 495, 100, 394),
        ("Mixtral-8x7B", "A100-40GB", 4, 1006, 100, 379),
        ("Gemma2-2b", "H100", 1, 1476, 100, 488),
        ("Llama-3.1-8B", "H100", 1, 976, 100, 482),
        ("Phi-3-medium", "H100", 1, 510, 100, 471),
        ("Phi-3-mini", "H100", 1, 319, 100, 475),
        ("Mistral-7B", "H100", 1, 1230, 100, 421),
        ("Llama-3.1-70B", "H100", 4, 974, 100, 456),
        ("Mistral-Large", "H100", 8, 1473, 100, 512),
    ],
)
def test_what_was_measured_fits(
    model: str, gpu: str, num_gpus: int, concurrency: float, prompt: float, output: float
) -> None:
    """The largest batches that ML.ENERGY ran with vLLM on a GPU."""
    check_memory(on(model, gpu, num_gpus), concurrency, prompt, output)


def test_a_refusal_says_what_would_work() -> None:
    """More GPUs, or fewer bits; where neither does, that."""
    with pytest.raises(SpecError, match=r"141 GB .* room for 7.* on 2 GPUs or with 8-bit weights"):
        check_memory(on("Llama-3.1-70B"), 1, 100, 100)
    with pytest.raises(SpecError, match=r"no such request .* fits on 2 GPUs or with 8-bit weights"):
        check_memory(on("Llama-3.1-8B", "L4"), 1, 60_000, 300)
    with pytest.raises(SpecError, match=r"concurrency is 400; at most 278 such requests .* H100"):
        check_memory(on("Llama-3.1-8B"), 400, 1500, 300)
    part = gpu_spec("NVIDIA H100 80GB HBM3 MIG 3g.40gb")
    with pytest.raises(SpecError, match="no group of these GPUs holds it"):
        check_memory(memory_of(built_in_model("GLM-5"), part, 1), 1, 1, 1)
    small = replace(gpu_spec("T4"), total_bytes=1e9)
    with pytest.raises(SpecError, match="no group of these GPUs holds it"):
        check_memory(memory_of(built_in_model("Llama-3.1-405B"), small, 1), 1, 1, 1)


def test_the_context_ends_with_its_last_token() -> None:
    """4096 tokens fit a context of 4096, and 4097 do not; an unknown one refuses nothing."""
    model = built_in_model("Llama-2-7B")
    check_context(model, 4000, 96)
    with pytest.raises(
        SpecError, match=r"4000 prompt and 97 output tokens are 4097; .* holds 4096"
    ):
        check_context(model, 4000, 97)
    check_context(replace(model, max_context=0), 1e6, 1e6)


@pytest.mark.parametrize(
    ("model", "num_gpus", "words"),
    [
        ("Llama-3.1-8B", 3, "must divide 32 heads of Llama-3.1-8B, as 1, 2, 4, 8, 16, 32 do"),
        ("Llama-3.1-8B", 0, "num_gpus is 0; it must divide 32 heads"),
        ("Phi-4", 4, "must divide 10 key/value heads of Phi-4, as 1, 2 do"),
        ("Llama-3.1-8B", 64, "must divide 32 heads"),
        ("Qwen2-0.5b", 7, "must divide 2 key/value heads"),
    ],
)
def test_a_group_divides_heads_and_widths(model: str, num_gpus: int, words: str) -> None:
    """The refusal names what it does not divide and the sizes that do."""
    with pytest.raises(SpecError) as refused:
        check_tensor_parallel(built_in_model(model), num_gpus)
    assert words in str(refused.value)


def test_a_group_divides_the_heads_of_windowed_layers_too() -> None:
    """Layers that see everything divide among eight GPUs; twelve heads or six keys do not."""
    model = built_in_model("Llama-3.1-8B")
    for heads, words in ((Heads(12, 4, 128, 128), "12 heads"), (Heads(32, 6, 128, 128), "6 key")):
        with pytest.raises(SpecError, match=f"must divide {words}.* as 1, 2"):
            check_tensor_parallel(replace(model, windowed_heads=heads), 8)


def test_experts_and_mlps_are_divided_by_their_width() -> None:
    """Experts of 768 on 32 GPUs have 24 columns each; of 1000 they have no whole number."""
    with pytest.raises(SpecError, match="must divide an MLP of 14337"):
        check_tensor_parallel(replace(built_in_model("Llama-3.1-8B"), intermediate_size=14337), 2)
    model = built_in_model("Qwen3-30B-A3B")
    check_tensor_parallel(model, 32)
    with pytest.raises(SpecError, match="must divide experts of 1000"):
        check_tensor_parallel(replace(model, expert_size=1000), 16)
    assert group_sizes(replace(model, expert_size=1000)) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("gpu", "step_tokens", "sequences"),
    [("L4", 2048, 256), ("A100", 2048, 256), ("H100", 8192, 1024), ("B200", 16384, 1024)],
)
def test_a_server_takes_as_much_as_its_gpu_suggests(
    gpu: str, step_tokens: int, sequences: int
) -> None:
    """vLLM's defaults go with the memory, and A100s count as small."""
    assert server_limits(gpu_spec(gpu)) == (step_tokens, sequences)
    assert UTILISATION == 0.92
