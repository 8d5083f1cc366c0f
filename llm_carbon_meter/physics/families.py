"""What each decoder family makes of its ``config.json``: the fields of a `ModelSpec`, by name.

A new family is an entry in `FAMILIES`. Sources: the Hugging Face model code of each type.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from llm_carbon_meter.records import SpecError

Config = Mapping[str, Any]

SILU_OPS, GELU_OPS, GATED_GELU_OPS, RELU_OPS = 5.0, 8.0, 9.0, 1.0
SOFTMAX_OPS, ALIBI_OPS, SOFTCAP_OPS = 5.0, 1.0, 3.0


class LatentAttention(NamedTuple):
    """Sizes of multi-head latent attention."""

    query_rank: int
    """0 where the query is projected directly."""
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int

    @property
    def query_dim(self) -> int:
        """Of one head."""
        return self.rope_dim + self.nope_dim

    @property
    def cached_dim(self) -> int:
        """Of a token in the KV cache."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class Family:
    """How to read one ``model_type``."""

    traits: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the spec that are the same for every member."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a config.json may leave out."""
    read: Callable[[Config], Mapping[str, Any]] = lambda _config: {}
    """Fields of the spec that depend on the config."""


def first(config: Config, default: Any, *names: str) -> Any:
    """The first of some fields that is there."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def whole(config: Config, *names: str, default: int | None = None) -> int:
    """The first of some fields, a whole number above 0, or the default where none is there.

    Raises:
        SpecError: it is something else.
    """
    value = first(config, None, *names)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        listed = " or ".join(names)
        raise SpecError(f"config.json: {listed} is {value!r}, expected a whole number > 0")
    return value


def num_layers(config: Config) -> int:
    """Decoder layers; patterns of hybrids have one sign or word for each."""
    pattern = first(config, None, "layers_block_type", "hybrid_override_pattern")
    return len(pattern) if pattern else whole(config, "num_hidden_layers", "n_layer")


# Sliding windows.


def window(config: Config) -> Mapping[str, Any]:
    """Window and number of windowed layers: as listed, else the family's own pattern."""
    size = first(config, None, "sliding_window", "attention_chunk_size")
    if not size or config.get("use_sliding_window") is False:
        return {}
    kinds = config.get("layer_types")
    if kinds:
        count = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
    else:
        layers = num_layers(config)
        period = first(config, 0, "sliding_window_pattern", "_sliding_window_pattern")
        if "max_window_layers" in config:
            count = max(layers - int(config["max_window_layers"]), 0)
        else:  # one full layer ends every period; without a period all are windowed
            count = layers - layers // period if period else layers
    window_size = whole(config, "sliding_window", "attention_chunk_size")
    return {"sliding_window": window_size, "windowed_layers": count} if count else {}


# Experts.


def experts(config: Config) -> Mapping[str, Any]:
    """Routed and shared experts, and how many layers have them."""
    num = whole(config, "num_local_experts", "num_experts", "n_routed_experts", default=0)
    if not num:
        return {"experts_per_token": whole(config, "num_experts_per_tok", default=0)}
    layers = num_layers(config)
    with_experts = _expert_layers(config, layers)
    width = whole(config, "moe_intermediate_size", "intermediate_size")
    return {
        "num_experts": num,
        "experts_per_token": whole(config, "num_experts_per_tok", default=0),
        "expert_layers": with_experts,
        "dense_layers": layers - with_experts,
        "expert_size": width,
        "shared_size": whole(
            config,
            "shared_expert_intermediate_size",
            default=int(config.get("n_shared_experts") or 0)
            * whole(config, "moe_shared_expert_intermediate_size", default=width),
        ),
    }


def _expert_layers(config: Config, layers: int) -> int:
    """Layers whose MLP is made of experts."""
    if config.get("moe_layers") is not None:
        return len(config["moe_layers"])
    frequency = config.get("moe_layer_freq") or 1
    if isinstance(frequency, list):
        return sum(map(bool, frequency))
    dense_first = int(config.get("first_k_dense_replace") or 0)
    step = config.get("decoder_sparse_step") or config.get("interleave_moe_layer_step") or 1
    dense = set(config.get("mlp_only_layers") or ())
    return sum(
        layer >= dense_first
        and layer % frequency == 0
        and (layer + 1) % step == 0
        and layer not in dense
        for layer in range(layers)
    )


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
    return {"rotary_fraction": _rotary_fraction(config, 1.0)}


def _gpt_neox(config: Config) -> Mapping[str, Any]:
    bias = bool(config["attention_bias"])
    return {
        "rotary_fraction": _rotary_fraction(config, 0.25),
        "parallel_attention": bool(config["use_parallel_residual"]),
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _rotary_fraction(config: Config, default: float) -> float:
    rope = config.get("rope_parameters") or {}
    nested = first(rope, default, "partial_rotary_factor")
    return float(first(config, nested, "partial_rotary_factor", "rotary_pct"))


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


def _deepseek(config: Config) -> Mapping[str, Any]:
    sizes = LatentAttention(
        query_rank=whole(config, "q_lora_rank", default=0),
        kv_rank=whole(config, "kv_lora_rank"),
        rope_dim=whole(config, "qk_rope_head_dim"),
        nope_dim=whole(config, "qk_nope_head_dim"),
        value_dim=whole(config, "v_head_dim"),
    )
    # its ``head_dim`` is that of the rotary part, not of a head
    return {"latent": sizes, "head_dim": sizes.query_dim}


def _nemotron_h(config: Config) -> Mapping[str, Any]:
    """Every layer is one block: Mamba-2, attention, MLP or experts (``M * - E``)."""
    pattern = list(first(config, "", "layers_block_type", "hybrid_override_pattern"))
    inner = whole(config, "mamba_num_heads") * whole(config, "mamba_head_dim")
    states = 2 * whole(config, "n_groups") * whole(config, "ssm_state_size")

    def count(*signs: str) -> int:
        return sum(sign in signs for sign in pattern)

    return {
        "attention_layers": count("*", "attention", "full_attention"),
        "dense_layers": count("-", "mlp"),
        "expert_layers": count("E", "moe"),
        "recurrent_layers": count("M", "mamba", "linear_attention"),
        "recurrent_in": 2 * inner + states + whole(config, "mamba_num_heads"),
        "recurrent_out": inner,
        "recurrent_state": inner * whole(config, "ssm_state_size"),
        **({} if count("E", "moe") else {"num_experts": 0, "experts_per_token": 0}),
    }


def _jamba(config: Config) -> Mapping[str, Any]:
    layers = num_layers(config)
    inner = whole(config, "mamba_expand") * whole(config, "hidden_size")

    def every(period: str, offset: str) -> int:
        step, start = whole(config, period), int(config[offset])
        return sum(layer % step == start for layer in range(layers))

    attention = every("attn_layer_period", "attn_layer_offset")
    with_experts = every("expert_layer_period", "expert_layer_offset")
    return {
        "attention_layers": attention,
        "recurrent_layers": layers - attention,
        "recurrent_in": 2 * inner,
        "recurrent_out": inner,
        "recurrent_state": inner * whole(config, "mamba_d_state", default=16),
        "expert_layers": with_experts,
        "dense_layers": layers - with_experts,
    }


def _qwen3_next(config: Config) -> Mapping[str, Any]:
    kinds = config.get("layer_types")
    layers, period = num_layers(config), int(config.get("full_attention_interval") or 4)
    full = kinds.count("full_attention") if kinds else layers // period
    keys = whole(config, "linear_num_key_heads") * whole(config, "linear_key_head_dim")
    values = whole(config, "linear_num_value_heads") * whole(config, "linear_value_head_dim")
    return {
        "attention_layers": full,
        "recurrent_layers": layers - full,
        "recurrent_in": 2 * (keys + values) + 2 * whole(config, "linear_num_value_heads"),
        "recurrent_out": values,
        "recurrent_state": values * whole(config, "linear_key_head_dim"),
        "rotary_fraction": _rotary_fraction(config, 0.25),
    }


_LAYER_NORM: Final = {"layer_norm": True, "gated_mlp": False, "activation_ops": GELU_OPS}
_BIASED: Final = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
_GEMMA: Final = {"activation_ops": GATED_GELU_OPS}
_RECURRENT: Final = "recurrent layers counted as their projections and the state's update"
_LATENT: Final = Family(
    {"approximation": "latent attention counted with keys and values expanded per head"},
    read=_deepseek,
)
_QWEN2_MOE: Final = Family(
    {"shared_gate": True},
    {"qkv_bias": True, "use_sliding_window": False},
    lambda config: {"qkv_bias": bool(config["qkv_bias"])},
)
_QWEN3: Final = Family({"qk_norm": True}, {"use_sliding_window": False}, _biases)
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
            **_BIASED,
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
            {**_LAYER_NORM, **_BIASED, "rotary_fraction": 0.0},
            {"tie_word_embeddings": True, "multi_query": family == "gpt_bigcode"},
            _gpt2,
        )
        for family in ("gpt2", "gpt_bigcode")
    },
    "gpt_oss": Family(
        {**_BIASED, "router_bias": True, "sinks": True},
        {"head_dim": 64, "sliding_window": 128, "sliding_window_pattern": 2},
    ),
    "llama4_text": Family(
        {"approximation": "chunked attention counted as a sliding window"},
        {"attention_chunk_size": 8192},
        _llama4,
    ),
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "kimi_k2": _LATENT,
    "nemotron_h": Family(
        {
            "approximation": _RECURRENT,
            "norms_per_layer": 1,
            "gated_mlp": False,
            "activation_ops": 2 * RELU_OPS,
            "rotary_fraction": 0.0,
        },
        read=_nemotron_h,
    ),
    "jamba": Family(
        {"approximation": _RECURRENT, "rotary_fraction": 0.0},
        {
            "mamba_expand": 2,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        _jamba,
    ),
    "qwen3_next": Family(
        {"approximation": _RECURRENT, "qk_norm": True, "shared_gate": True, "query_gate": True},
        read=_qwen3_next,
    ),
}

# Text models inside multimodal ones.
ALIASES: Final[Mapping[str, str]] = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
