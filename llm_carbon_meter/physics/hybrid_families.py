"""Families whose layers are not all alike: recurrent layers, experts beside an MLP, no MLP at all.

Sources: the Hugging Face model code of each type.
"""

from collections.abc import Mapping
from typing import Any, Final

from llm_carbon_meter.physics.attention_shapes import LatentAttention
from llm_carbon_meter.physics.config_fields import (
    Config,
    count,
    first,
    num_layers,
    rotary_fraction,
    whole,
)

RECURRENT: Final = "recurrent layers counted as their projections and the state's update"


def nemotron_h(config: Config) -> Mapping[str, Any]:
    """Every layer is one block: Mamba-2, attention, MLP or experts (``M * - E``)."""
    pattern = list(first(config, "", "layers_block_type", "hybrid_override_pattern"))
    inner = whole(config, "mamba_num_heads") * whole(config, "mamba_head_dim")
    states = 2 * whole(config, "n_groups") * whole(config, "ssm_state_size")

    def layers_of(*signs: str) -> int:
        return sum(sign in signs for sign in pattern)

    return {
        "attention_layers": layers_of("*", "attention", "full_attention"),
        "dense_layers": layers_of("-", "mlp"),
        "expert_layers": layers_of("E", "moe"),
        "recurrent_layers": layers_of("M", "mamba", "linear_attention"),
        "recurrent_in": 2 * inner + states + whole(config, "mamba_num_heads"),
        "recurrent_out": inner,
        "recurrent_state": inner * whole(config, "ssm_state_size"),
        **latent_experts(config, "moe_latent_size"),
        **({} if layers_of("E", "moe") else {"num_experts": 0, "experts_per_token": 0}),
    }


def jamba(config: Config) -> Mapping[str, Any]:
    """Mamba with attention in some layers, and experts in others."""
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


def qwen3_next(config: Config) -> Mapping[str, Any]:
    """Gated DeltaNet with gated attention in between."""
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
        "rotary_fraction": rotary_fraction(config, 0.25),
    }


def qwen3_5(config: Config) -> Mapping[str, Any]:
    """As Qwen3-Next, with an MLP or with experts; a config.json may leave the gate out."""
    gated = bool(first(config, True, "attn_output_gate"))
    return {**qwen3_next(config), "query_gate": gated}


def kimi_linear(config: Config) -> Mapping[str, Any]:
    """Kimi Delta Attention beside latent attention, which is without RoPE."""
    nested = config.get("linear_attn_config") or {}
    kinds, layers = config.get("layer_types"), num_layers(config)
    full = kinds.count("full_attention") if kinds else len(nested["full_attn_layers"])
    dim = whole({**config, **nested}, "linear_head_dim", "head_dim")
    heads = whole({**config, **nested}, "linear_num_heads", "num_heads")
    low_rank = dim + heads * dim * dim // whole(config, "hidden_size")
    gate = heads * dim if nested.get("use_full_rank_gate") else low_rank
    return {
        **latent_attention(config),
        **latent_experts(config, "routed_expert_hidden_size"),
        "attention_layers": full,
        "recurrent_layers": layers - full,
        # query, key and value; gates of the input, of decay and of the output
        "recurrent_in": 3 * heads * dim + heads + low_rank + gate,
        "recurrent_out": heads * dim,
        "recurrent_state": heads * dim * dim,
        "rotary_fraction": 0.0,
    }


def granite_hybrid(config: Config) -> Mapping[str, Any]:
    """Mamba-2 or attention, then an MLP for every token, beside experts where there are some."""
    kinds, hidden = config.get("layer_types") or (), whole(config, "hidden_size")
    attention = sum(kind in ("attention", "full_attention") for kind in kinds)
    inner = whole(config, "mamba_expand", default=2) * hidden
    states = whole(config, "mamba_d_state", default=256)
    groups = whole(config, "mamba_n_groups", default=1)
    heads = whole(config, "mamba_n_heads", default=128)
    width = whole(config, "shared_intermediate_size")
    with_experts = count(config, "num_local_experts") > 0
    return {
        "attention_layers": attention,
        "recurrent_layers": num_layers(config) - attention,
        "recurrent_in": 2 * inner + 2 * groups * states + heads,
        "recurrent_out": inner,
        "recurrent_state": inner * states,
        "rotary_fraction": float(config.get("position_embedding_type") == "rope"),
        **({"shared_size": width} if with_experts else _no_experts(width)),
    }


def _no_experts(width: int) -> Mapping[str, Any]:
    return {"intermediate_size": width, "num_experts": 0, "experts_per_token": 0}


def nemotron_nas(config: Config) -> Mapping[str, Any]:
    """Llama thinned out by a search: MLPs of many widths, layers without attention."""
    blocks, hidden = config["block_configs"], whole(config, "hidden_size")
    attention = [block["attention"] for block in blocks if not _is_out(block["attention"])]
    widths = [
        _rounded_up(int(2 * block["ffn"]["ffn_mult"] * hidden / 3), 256)
        for block in blocks
        if not _is_out(block["ffn"])
    ]
    groups = [whole(one, "n_heads_in_group") for one in attention]
    mean_group = max(round(sum(groups) / len(groups)), 1)
    return {
        "attention_layers": len(attention),
        "dense_layers": len(widths),
        "intermediate_size": round(sum(widths) / len(widths)),
        "num_kv_heads": whole(config, "num_attention_heads") // mean_group,
        "approximation": "MLPs of many widths counted at their mean",
    }


def _is_out(part: Config) -> bool:
    return bool(part.get("no_op") or part.get("replace_with_linear"))


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def latent_attention(config: Config) -> Mapping[str, Any]:
    """Multi-head latent attention."""
    sizes = LatentAttention(
        query_rank=count(config, "q_lora_rank"),
        kv_rank=whole(config, "kv_lora_rank"),
        rope_dim=whole(config, "qk_rope_head_dim"),
        nope_dim=whole(config, "qk_nope_head_dim"),
        value_dim=whole(config, "v_head_dim"),
    )
    # its ``head_dim`` is that of the rotary part, not of a head
    return {"latent": sizes, "head_dim": sizes.query_dim}


def latent_experts(config: Config, name: str) -> Mapping[str, Any]:
    """Experts that take a projection of the hidden state."""
    return {"expert_input": count(config, name)}
