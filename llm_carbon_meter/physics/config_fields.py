"""Fields of a Hugging Face ``config.json`` that many families share, and how each may be called."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_carbon_meter.records import SpecError

Config = Mapping[str, Any]


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


def count(config: Config, *names: str, default: int = 0) -> int:
    """The first of some fields, a whole number of at least 0; the default where none is there.

    Raises:
        SpecError: it is something else.
    """
    return 0 if first(config, default, *names) == 0 else whole(config, *names, default=default)


def num_layers(config: Config) -> int:
    """Decoder layers; patterns of hybrids have one sign or word for each."""
    pattern = first(config, None, "layers_block_type", "hybrid_override_pattern")
    return len(pattern) if pattern else whole(config, "num_hidden_layers", "n_layer")


def of_kind(config: Config, kind: str) -> Config:
    """The config with what transformers' ``per_layer_config`` says of a kind of ``layer_types``."""
    own = config.get("per_layer_config") or {}
    kinds = config.get("layer_types") or ()
    changes = (own[layer] for layer in own if kinds[int(layer)] == kind)
    return {**config, **next(changes, {})}


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


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k")


def experts(config: Config) -> Mapping[str, Any]:
    """Routed and shared experts, and how many layers have them."""
    num = count(config, *_EXPERTS)
    per_token = count(config, *_PER_TOKEN)
    if not num:
        return {"experts_per_token": per_token}
    layers = num_layers(config)
    with_experts = len(expert_layer_numbers(config))
    width = whole(config, "moe_intermediate_size", "intermediate_size")
    return {
        "num_experts": num,
        "experts_per_token": per_token,
        "expert_layers": with_experts,
        "dense_layers": layers - with_experts,
        "expert_size": width,
        "shared_size": count(
            config,
            "shared_expert_intermediate_size",
            default=count(config, "n_shared_experts", "num_shared_experts")
            * whole(config, "moe_shared_expert_intermediate_size", default=width),
        ),
    }


def expert_layer_numbers(config: Config) -> Sequence[int]:
    """Layers whose MLP is made of experts; none where the model has no experts."""
    layers = num_layers(config)
    if not count(config, *_EXPERTS):
        return ()
    if config.get("mlp_layer_types"):
        kinds = config["mlp_layer_types"][:layers]
        return [layer for layer, kind in enumerate(kinds) if kind != "dense"]
    if config.get("moe_layers") is not None:
        return list(config["moe_layers"])
    if config.get("moe_layers_enum"):
        return [int(layer) for layer in str(config["moe_layers_enum"]).split(",")]
    frequency = config.get("moe_layer_freq") or 1
    if isinstance(frequency, list):
        return [layer for layer, one in enumerate(frequency) if one]
    dense_first = count(config, "first_k_dense_replace")
    step = config.get("decoder_sparse_step") or config.get("interleave_moe_layer_step") or 1
    dense = set(config.get("mlp_only_layers") or ())
    return [
        layer
        for layer in range(layers)
        if layer >= dense_first
        and layer % frequency == 0
        and (layer + 1) % step == 0
        and layer not in dense
    ]


# RoPE.


def rotary_fraction(config: Config, default: float) -> float:
    """Share of a head that RoPE turns."""
    if config.get("rotary_dim") and config.get("head_dim"):
        return whole(config, "rotary_dim") / whole(config, "head_dim")
    rope = config.get("rope_parameters") or {}
    nested = first(rope, default, "partial_rotary_factor")
    return float(first(config, nested, "partial_rotary_factor", "rotary_pct"))
