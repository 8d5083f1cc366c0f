"""Families against Hugging Face's own code: parameters and matrix products, tiny and exact."""

from typing import Any

import pytest

from llm_carbon_meter.physics.kernels import Kernel, kernel_table
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.records import SpecError
from tests.support.made.families import MAMBA, TINY
from tests.support.made.tiny_configs import tiny_config

TOKENS = 17


def hugging_face(case: str) -> tuple[Any, ModelSpec]:
    """A tiny model with random weights, and what we read of its configuration."""
    transformers = pytest.importorskip("transformers")
    kind, sizes = TINY[case]
    config = transformers.AutoConfig.for_model(kind, **sizes)
    config._experts_implementation = "eager"  # products of the chosen experts alone
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.float().eval(), model_spec(config.to_dict())


@pytest.mark.parametrize("case", TINY)
def test_parameters_of_the_real_model(case: str) -> None:
    """Every weight and bias is counted, and every kernel's weights are among them."""
    model, spec = hugging_face(case)
    assert spec.parameters == sum(weight.numel() for weight in model.parameters())
    streamed = sum(
        kernel.count * (kernel.weight_bytes + spec.num_experts * kernel.expert_bytes)
        for kernel in kernel_table(spec)
    )
    width = spec.embedding_size or spec.hidden_size
    gathered = spec.position_rows * spec.hidden_size
    gathered += 0 if spec.tied_head else spec.vocab_size * width
    assert streamed == spec.weight_bytes * (spec.parameters - gathered)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", TINY)
def test_matrix_products_of_the_real_model(case: str) -> None:
    """PyTorch's FLOP counter finds what the kernels say.

    Eager attention multiplies the whole square of scores, windowed or not, and the model computes
    the logits of every token: both are put in here, everything else is the kernel's own.
    """
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    model, spec = hugging_face(case)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(1, TOKENS + 1)[None], use_cache=False)
    ours = sum(kernel.count * products(kernel, spec) for kernel in kernel_table(spec))
    assert counter.get_total_flops() == ours


def products(kernel: Kernel, spec: ModelSpec) -> float:
    """Operations of a kernel's matrix products, without softmax and biases."""
    if kernel.kind == "fuse_attn":
        return (kernel.ops_per_context - spec.softmax_ops * spec.num_heads) * TOKENS**2
    if kernel.peak == "vector" or kernel.kind == "embed":
        return 0
    if kernel.name.startswith("expert_"):
        # Llama 4's code gives every token to every expert and multiplies by zero
        chosen = spec.num_experts if "chunked" in spec.approximation else spec.experts_per_token
        return 2 * kernel.d_in * kernel.d_out * TOKENS * chosen
    return 2 * kernel.d_in * kernel.d_out * TOKENS


@pytest.mark.parametrize(
    ("config", "window", "layers"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, 64, 4),
        ({"model_type": "mistral", "sliding_window": None}, None, 0),
        ({"model_type": "phi3", "sliding_window": 2047}, 2047, 4),
        ({"model_type": "qwen2", "sliding_window": 64}, None, 0),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 64,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            64,
            3,
        ),
        ({"model_type": "gemma2"}, 4096, 2),
        ({"model_type": "gemma2", "num_hidden_layers": 5}, 4096, 3),
        ({"model_type": "gemma3_text", "num_hidden_layers": 26, "sliding_window": 512}, 512, 22),
        ({"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}, 128, 2),
        (
            {
                "model_type": "gemma3_text",
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 512,
            },
            512,
            2,
        ),
        ({"model_type": "llama"}, None, 0),
    ],
)
def test_sliding_windows(config: dict[str, Any], window: int | None, layers: int) -> None:
    """As ``layer_types`` lists them, else in the pattern of the family, and only where it is on."""
    spec = model_spec({**tiny_config(num_hidden_layers=4), **config})
    assert (spec.sliding_window, spec.windowed_layers) == (window, layers)


def test_more_windowed_layers_than_layers_are_refused() -> None:
    """A list that does not fit the number of layers contradicts it."""
    config = tiny_config(
        model_type="mistral", sliding_window=8, layer_types=["sliding_attention"] * 3
    )
    with pytest.raises(SpecError, match="3 windowed layers of 2"):
        model_spec(config)


EXPERTS = {
    "num_hidden_layers": 6,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"model_type": "qwen3_moe"}, 6),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2, "mlp_only_layers": [1]}, 2),
        ({"model_type": "mixtral", "first_k_dense_replace": 1, "moe_layer_freq": 2}, 2),
        ({"model_type": "mixtral", "moe_layer_freq": [0, 1, 1, 1, 1, 1]}, 5),
        ({"model_type": "mixtral", "interleave_moe_layer_step": 3}, 2),
    ],
)
def test_layers_with_experts(config: dict[str, Any], layers: int) -> None:
    """Every way to say which layers have experts; the others are dense."""
    spec = model_spec({**tiny_config(), **EXPERTS, **config})
    assert (spec.expert_layers, spec.dense_layers) == (layers, 6 - layers)
    assert (spec.intermediate_size, spec.expert_size) == (160, 48)


def test_the_text_model_of_a_multimodal_one() -> None:
    """``text_config`` has the shape, and the outer file the quantisation."""
    inner = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    spec = model_spec(
        {
            "model_type": "gemma3",
            "quantization_config": {"quant_method": "fp8"},
            "text_config": {**inner, "num_hidden_layers": 34, "sliding_window": 1024},
        }
    )
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (8, 4, 256)
    assert (spec.vocab_size, spec.windowed_layers, spec.weight_bytes) == (262208, 29, 1.0)
    assert spec.parameters == 3880263168


def test_an_unknown_architecture_counts_as_llama_if_asked_for() -> None:
    """The label says so; without asking it is an error."""
    config = tiny_config(model_type="newest")
    spec = model_spec(config, "N", approximate=True)
    assert spec.parameters == model_spec(tiny_config()).parameters
    assert spec.approximation == "model type 'newest' is not known, counted as llama"
    with pytest.raises(SpecError, match="'newest' is not known; nearest is "):
        model_spec(config)


def test_exact_families_carry_no_label() -> None:
    """A label means that something is approximated."""
    labelled = {case for case in TINY if model_spec({**tiny_of(case)}).approximation}
    assert labelled == {"llama4_text", "deepseek_v2", "deepseek_v3"}


def tiny_of(case: str) -> dict[str, Any]:
    """The case as a config.json would have it."""
    kind, sizes = TINY[case]
    return {"model_type": kind, **sizes}


def test_nemotron_h_has_one_block_a_layer() -> None:
    """Signs or words: Mamba, MLP, attention; recurrent layers are their projections."""
    config = {**tiny_config(model_type="nemotron_h", num_hidden_layers=None), **MAMBA}
    spec = model_spec({**config, "hybrid_override_pattern": "M-M*-"})
    words = ["mamba", "mlp", "mamba", "attention", "mlp"]
    assert model_spec({**config, "layers_block_type": words}) == spec
    assert (spec.recurrent_layers, spec.dense_layers, spec.attention_layers) == (2, 2, 1)
    assert (spec.recurrent_in, spec.recurrent_out) == (2 * 128 + 2 * 2 * 32 + 8, 128)
    counts = {kernel.name: kernel.count for kernel in kernel_table(spec)}
    assert counts["norm_attn"] + counts["norm_mlp"] == spec.num_layers
    assert (counts["recurrent_in_proj"], counts["q_proj"], counts["up_proj"]) == (2, 1, 2)
    assert "gate_proj" not in counts
    assert "recurrent layers" in spec.approximation


def test_jamba_mixes_four_kinds_of_layers() -> None:
    """One attention in eight, experts in every second layer."""
    spec = model_spec(
        tiny_config(model_type="jamba", num_hidden_layers=16, num_experts=4, num_experts_per_tok=2)
    )
    assert (spec.attention_layers, spec.recurrent_layers) == (2, 14)
    assert (spec.expert_layers, spec.dense_layers) == (8, 8)


def test_qwen3_next_gates_its_query() -> None:
    """Three linear layers for one full, whose query projection makes a gate as well."""
    spec = model_spec(
        {
            **tiny_config(model_type="qwen3_next"),
            **EXPERTS,
            "num_hidden_layers": 8,
            "shared_expert_intermediate_size": 48,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_value_head_dim": 8,
        }
    )
    assert (spec.attention_layers, spec.recurrent_layers) == (2, 6)
    table = {kernel.name: kernel for kernel in kernel_table(spec)}
    assert table["q_proj"].d_out == 2 * table["out_proj"].d_in
    assert table["recurrent_in_proj"].d_out == 2 * (16 + 32) + 2 * 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "opt"}, "ffn_dim is None"),
        ({"model_type": "deepseek_v3"}, "kv_lora_rank is None"),
        ({"model_type": "jamba", "attn_layer_period": 0}, "attn_layer_period is 0"),
        ({"model_type": "falcon", "ffn_hidden_size": -1}, "ffn_hidden_size is -1"),
        ({"model_type": "mistral", "sliding_window": -4}, "sliding_window .* is -4"),
        ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}, "3 experts"),
    ],
)
def test_missing_and_wrong_fields_of_a_family(config: dict[str, Any], message: str) -> None:
    """The field is named with its value."""
    with pytest.raises(SpecError, match=message):
        model_spec({**tiny_config(), **config})
