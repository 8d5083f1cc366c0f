"""What each decoder family makes of its ``config.json``: the fields of a `ModelSpec`, by name.

A new family is an entry in `FAMILIES`. Sources: the Hugging Face model code of each type.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llm_carbon_meter.physics import hybrid_families as hybrid
from llm_carbon_meter.physics import mixed_attention as mixed
from llm_carbon_meter.physics.attention_shapes import (
    ALIBI_OPS,
    GATED_GELU_OPS,
    GELU_OPS,
    RELU_OPS,
    SOFTCAP_OPS,
    SOFTMAX_OPS,
)
from llm_carbon_meter.physics.config_fields import Config, rotary_fraction, whole


@dataclass(frozen=True, slots=True)
class Family:
    """How to read one ``model_type``."""

    traits: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the spec that are the same for every member."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a config.json may leave out."""
    read: Callable[[Config], Mapping[str, Any]] = lambda _config: {}
    """Fields of the spec that depend on the config."""
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Kernels whose modules are not called as in other models (`stored_weights.MODULES`)."""


# Families.


def _biases(config: Config) -> Mapping[str, Any]:
    """``attention_bias`` is on all four projections, ``mlp_bias`` on the MLP."""
    attention = bool(config.get("attention_bias"))
    bias = {"qkv_bias": True, "out_bias": True} if attention else {}
    return {**bias, "mlp_bias": True} if config.get("mlp_bias") else bias


def _seed_oss(config: Config) -> Mapping[str, Any]:
    return {
        "qkv_bias": bool(config.get("attention_bias", True)),
        "out_bias": bool(config.get("attention_out_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
    }


def _gemma2(config: Config) -> Mapping[str, Any]:
    capped = bool(config["attn_logit_softcapping"])
    return {
        "softmax_ops": SOFTMAX_OPS + (SOFTCAP_OPS if capped else 0),
        "logit_softcap": bool(config["final_logit_softcapping"]),
    }


def _gemma3(config: Config) -> Mapping[str, Any]:
    return {"logit_softcap": bool(config.get("final_logit_softcapping"))}


def _bloom(config: Config) -> Mapping[str, Any]:
    hidden = whole(config, "hidden_size", "n_embed")
    return {"intermediate_size": whole(config, "n_inner", default=4 * hidden)}


def _falcon(config: Config) -> Mapping[str, Any]:
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads", "n_head")
    new, bias = bool(config["new_decoder_architecture"]), bool(config["bias"])
    parallel = new or bool(config["parallel_attn"])
    norms = int(config.get("num_ln_in_parallel_attn") or 2) if new else 1
    if new:
        kv_heads = whole(config, "num_kv_heads", default=heads)
    else:
        kv_heads = 1 if config["multi_query"] else heads
    return {
        "intermediate_size": whole(config, "ffn_hidden_size", default=4 * hidden),
        "num_kv_heads": kv_heads,
        "parallel_attention": parallel,
        "norms_per_layer": norms if parallel else 2,
        "rotary_fraction": 0.0 if config["alibi"] else 1.0,
        "softmax_ops": SOFTMAX_OPS + (ALIBI_OPS if config["alibi"] else 0),
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), bias),
    }


def _phi3(config: Config) -> Mapping[str, Any]:
    return {"rotary_fraction": rotary_fraction(config, 1.0)}


def _gpt_neox(config: Config) -> Mapping[str, Any]:
    bias = bool(config["attention_bias"])
    return {
        "rotary_fraction": rotary_fraction(config, 0.25),
        "parallel_attention": bool(config["use_parallel_residual"]),
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _opt(config: Config) -> Mapping[str, Any]:
    bias = bool(config["enable_bias"])
    last = config["do_layer_norm_before"] and not config.get("_remove_final_layer_norm")
    return {
        "intermediate_size": whole(config, "ffn_dim"),
        "embedding_size": whole(config, "word_embed_proj_dim", "hidden_size"),
        "position_rows": whole(config, "max_position_embeddings") + 2,  # two rows of padding
        "final_norm": bool(last),
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), bias),
    }


def _starcoder2(config: Config) -> Mapping[str, Any]:
    return dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), bool(config["use_bias"]))


def _gpt2(config: Config) -> Mapping[str, Any]:
    hidden, heads = whole(config, "hidden_size", "n_embd"), whole(config, "n_head")
    return {
        "intermediate_size": whole(config, "n_inner", default=4 * hidden),
        "num_kv_heads": 1 if config["multi_query"] else heads,
        "position_rows": whole(config, "n_positions"),
    }


def _llama4(config: Config) -> Mapping[str, Any]:
    width = whole(config, "intermediate_size")
    return {"intermediate_size": whole(config, "intermediate_size_mlp"), "shared_size": width}


def _cohere(config: Config) -> Mapping[str, Any]:
    return {**_biases(config), "full_qk_norm": bool(config.get("use_qk_norm"))}


def _glm4_moe(config: Config) -> Mapping[str, Any]:
    return {
        "qkv_bias": bool(config.get("attention_bias")),
        "qk_norm": bool(config.get("use_qk_norm")),
        "rotary_fraction": rotary_fraction(config, 0.5),
    }


def _glm4(config: Config) -> Mapping[str, Any]:
    return {
        "qkv_bias": bool(config.get("attention_bias")),
        "rotary_fraction": rotary_fraction(config, 0.5),
    }


def _minimax_m2(config: Config) -> Mapping[str, Any]:
    return {"rotary_fraction": rotary_fraction(config, 1.0), "shared_size": 0}


def _phi3_small(config: Config) -> Mapping[str, Any]:
    return {"intermediate_size": whole(config, "ff_intermediate_size"), **_ALL_BIASES}


def _ernie(config: Config) -> Mapping[str, Any]:
    return dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), bool(config.get("use_bias")))


def _nemotron(config: Config) -> Mapping[str, Any]:
    return {**_biases(config), "rotary_fraction": rotary_fraction(config, 0.5)}


def _mimo(config: Config) -> Mapping[str, Any]:
    return {"qkv_bias": bool(config.get("attention_bias", True))}


_LAYER_NORM: Final = {"layer_norm": True, "gated_mlp": False, "activation_ops": GELU_OPS}
_ALL_BIASES: Final = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
_GEMMA: Final = {"activation_ops": GATED_GELU_OPS}
_EXPANDED: Final = "latent attention counted with keys and values expanded per head"
_LATENT: Final = Family(
    {"approximation": _EXPANDED},
    read=hybrid.latent_attention,
)
_QWEN2_MOE: Final = Family(
    {"shared_gate": True},
    {"qkv_bias": True, "use_sliding_window": False},
    lambda config: {"qkv_bias": bool(config["qkv_bias"])},
)
_QWEN3: Final = Family({"qk_norm": True}, {"use_sliding_window": False}, _biases)
_QWEN3_5: Final = {"approximation": hybrid.RECURRENT, "qk_norm": True}
_COHERE: Final = {"norms_per_layer": 1, "parallel_attention": True}
_CHOSEN: Final = "attention to chosen tokens counted as a window of as many"
_SPARSE: Final = Family({"approximation": f"{_EXPANDED}; {_CHOSEN}"}, read=mixed.sparse)
_SINKS: Final = "sinks of windowed heads not counted"
_STREAMS: Final = "residual streams and low-rank updates counted as one projection"
_BLOCK_SPARSE: Final = "block-sparse attention counted as attention to everything"
_GEMMA3_DEFAULTS: Final = {
    "tie_word_embeddings": True,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}

FAMILIES: Final[Mapping[str, Family]] = {
    "llama": Family(read=_biases),
    "granite": Family(read=_biases),
    "seed_oss": Family(defaults={"head_dim": 128}, read=_seed_oss),
    "mistral": Family(),
    "ministral": Family(),
    "qwen2": Family({"qkv_bias": True}, {"use_sliding_window": False}),
    "qwen2_moe": _QWEN2_MOE,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "mixtral": Family(),
    "phi3": Family(read=_phi3),
    "gemma": Family(_GEMMA, {"tie_word_embeddings": True}),
    "gemma2": Family(
        {**_GEMMA, "norms_per_layer": 4},
        {
            "tie_word_embeddings": True,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 2,
        },
        _gemma2,
    ),
    "gemma3_text": Family(
        {**_GEMMA, "norms_per_layer": 4, "qk_norm": True}, _GEMMA3_DEFAULTS, _gemma3
    ),
    "bloom": Family(
        {
            **_LAYER_NORM,
            **_ALL_BIASES,
            "embedding_norm": True,
            "rotary_fraction": 0.0,
            "softmax_ops": SOFTMAX_OPS + ALIBI_OPS,
        },
        {"tie_word_embeddings": True},
        _bloom,
    ),
    "falcon": Family(
        _LAYER_NORM,
        {
            "tie_word_embeddings": True,
            "new_decoder_architecture": False,
            "multi_query": True,
            "parallel_attn": True,
            "alibi": False,
            "bias": False,
            "max_position_embeddings": 2048,
        },
        _falcon,
    ),
    "gpt_neox": Family(
        {**_LAYER_NORM, "mlp_bias": True},
        {"attention_bias": True, "use_parallel_residual": True},
        _gpt_neox,
    ),
    "opt": Family(
        {**_LAYER_NORM, "activation_ops": RELU_OPS, "rotary_fraction": 0.0},
        {"tie_word_embeddings": True, "enable_bias": True, "do_layer_norm_before": True},
        _opt,
    ),
    "starcoder2": Family(_LAYER_NORM, {"tie_word_embeddings": True, "use_bias": True}, _starcoder2),
    **{
        family: Family(
            {**_LAYER_NORM, **_ALL_BIASES, "rotary_fraction": 0.0},
            {"tie_word_embeddings": True, "multi_query": family == "gpt_bigcode"},
            _gpt2,
        )
        for family in ("gpt2", "gpt_bigcode")
    },
    "gpt_oss": Family(
        {**_ALL_BIASES, "router_bias": True, "sinks": True},
        {"head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2},
    ),
    "llama4_text": Family(
        {"approximation": "chunked attention counted as a sliding window"},
        {"attention_chunk_size": 8192, "sliding_window_pattern": 4},
        _llama4,
    ),
    "ernie4_5": Family({}, {"tie_word_embeddings": True}, _ernie),
    "dots1": Family({"qk_norm": True}, {"max_window_layers": 62}, _biases),
    "exaone4": Family({"qk_norm": True}, {"sliding_window_pattern": 4}),
    "hunyuan_v1_dense": Family({"qk_norm": True}, read=_biases),
    "phimoe": Family({"layer_norm": True}, read=_biases),
    "nemotron": Family(
        {"layer_norm": True, "gated_mlp": False, "activation_ops": 2 * RELU_OPS}, read=_nemotron
    ),
    "apertus": Family(
        {"qk_norm": True, "gated_mlp": False, "activation_ops": GELU_OPS}, read=_biases
    ),
    "mistral4": _LATENT,
    "solar_open": Family(read=_glm4_moe),
    "glm": Family(read=_glm4),
    "glm4": Family({"norms_per_layer": 4}, read=_glm4),
    "glm4_moe": Family(read=_glm4_moe),
    "minimax_m2": Family({"full_qk_norm": True}, read=_minimax_m2),
    "minimax_m3": Family({"qk_norm": True, "approximation": _CHOSEN}, read=mixed.minimax_m3),
    "mimo": Family({}, {"use_sliding_window": False}, _mimo),
    "mimo_v2_flash": Family({"approximation": _SINKS}, read=mixed.mimo_v2),
    "gemma3n_text": Family(
        {**_GEMMA, "norms_per_layer": 4, "qk_norm": True, "approximation": _STREAMS},
        {**_GEMMA3_DEFAULTS, "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15},
        mixed.gemma3n,
    ),
    "gemma4_text": Family(
        {**_GEMMA, "norms_per_layer": 4, "qk_norm": True},
        {"tie_word_embeddings": True, "sliding_window": 512, "sliding_window_pattern": 6},
        mixed.gemma4,
        mixed.GEMMA4_MODULES,
    ),
    "step3p5": Family({"qk_norm": True}, read=mixed.step3),
    "olmo2": Family({"full_qk_norm": True}, read=_biases),
    "olmo3": Family({"full_qk_norm": True}, {"sliding_window_pattern": 4}, _biases),
    "olmoe": Family({"full_qk_norm": True}, read=_biases),
    "smollm3": Family({"rotary_fraction": 0.75}, {"use_sliding_window": False}, _biases),
    "arcee": Family({"gated_mlp": False, "activation_ops": 2 * RELU_OPS}, read=_biases),
    "cohere": Family(_COHERE, {"tie_word_embeddings": True}, _cohere),
    "cohere2": Family(_COHERE, {"tie_word_embeddings": True, "sliding_window_pattern": 4}, _cohere),
    "chameleon": Family({"full_qk_norm": True}, read=_biases),
    "phi3small": Family(
        {**_ALL_BIASES, **_LAYER_NORM, "gated_mlp": True, "approximation": _BLOCK_SPARSE},
        {"tie_word_embeddings": True},
        _phi3_small,
    ),
    "granitemoe": Family(read=_biases),
    "granitemoehybrid": Family(
        {"approximation": hybrid.RECURRENT}, {"tie_word_embeddings": True}, hybrid.granite_hybrid
    ),
    "nemotron-nas": Family(read=hybrid.nemotron_nas),
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "kimi_k2": _LATENT,
    "glm4_moe_lite": _LATENT,
    "deepseek_v32": _SPARSE,
    "glm_moe_dsa": _SPARSE,
    "deepseek_v4": Family(
        {"approximation": "compressed attention and hyper-connections counted approximately"},
        read=mixed.deepseek_v4,
    ),
    "kimi_linear": Family({"approximation": hybrid.RECURRENT}, read=hybrid.kimi_linear),
    "nemotron_h": Family(
        {
            "approximation": hybrid.RECURRENT,
            "norms_per_layer": 1,
            "gated_mlp": False,
            "activation_ops": 2 * RELU_OPS,
            "rotary_fraction": 0.0,
        },
        read=hybrid.nemotron_h,
    ),
    "jamba": Family(
        {"approximation": hybrid.RECURRENT, "rotary_fraction": 0.0},
        {
            "mamba_expand": 2,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        hybrid.jamba,
    ),
    "qwen3_5_text": Family(_QWEN3_5, read=hybrid.qwen3_5),
    "qwen3_5_moe_text": Family({**_QWEN3_5, "shared_gate": True}, read=hybrid.qwen3_5),
    "qwen3_next": Family(
        {
            "approximation": hybrid.RECURRENT,
            "qk_norm": True,
            "shared_gate": True,
            "query_gate": True,
        },
        read=hybrid.qwen3_next,
    ),
}

# Text models inside multimodal ones.
ALIASES: Final[Mapping[str, str]] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    **dict.fromkeys(("minimax_m3_vl", "minimax_m3_vl_text", "minimax_m3_text"), "minimax_m3"),
    "ministral3": "mistral",
    "step3p7": "step3p5",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "llama4": "llama4_text",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
