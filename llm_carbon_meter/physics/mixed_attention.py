"""Families whose layers attend in several ways: heads of two shapes, or to chosen tokens alone.

Sources: the Hugging Face model code of each type.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from llm_carbon_meter.physics.attention_shapes import Heads, Indexer
from llm_carbon_meter.physics.config_fields import (
    Config,
    count,
    first,
    num_layers,
    of_kind,
    rotary_fraction,
    whole,
)
from llm_carbon_meter.physics.hybrid_families import latent_attention
from llm_carbon_meter.physics.number_formats import MXFP4_BYTES


def minimax_m3(config: Config) -> Mapping[str, Any]:
    """The first layers see everything, the others blocks that small heads choose."""
    sparse_config = {**config, **(config.get("sparse_attention_config") or {})}
    kinds = config.get("layer_types") or first(sparse_config, (), "sparse_attention_freq")
    layers = sum(kind not in ("full_attention", 0) for kind in kinds)
    chosen = whole(sparse_config, "sparse_topk_blocks", "index_topk_blocks")
    return {
        "intermediate_size": whole(config, "dense_intermediate_size"),
        "sliding_window": chosen * whole(sparse_config, "sparse_block_size", "index_block_size"),
        "windowed_layers": layers,
        "indexer": Indexer(
            whole(sparse_config, "sparse_num_index_heads", "index_n_heads"),
            whole(sparse_config, "sparse_index_dim", "index_head_dim"),
            layers,
            query_rank=0,
        ),
        "shared_size": whole(config, "shared_intermediate_size"),
        "rotary_fraction": rotary_fraction(config, 1.0),
    }


def sparse(config: Config) -> Mapping[str, Any]:
    """Latent attention to what an indexer chooses, which some layers share."""
    layers = num_layers(config)
    kinds = config.get("indexer_types")
    own = sum(kind != "shared" for kind in kinds) if kinds else layers
    return {
        **latent_attention(config),
        "sliding_window": whole(config, "index_topk"),
        "windowed_layers": layers,
        "indexer": Indexer(
            whole(config, "index_n_heads"),
            whole(config, "index_head_dim"),
            own,
            whole(config, "q_lora_rank"),
        ),
    }


def deepseek_v4(config: Config) -> Mapping[str, Any]:
    """One key and value head, which is both; a window, and what was compressed before it."""
    layers, streams = num_layers(config), whole(config, "hc_mult", default=4)
    ratios = _compression(config, layers)
    fine = [ratio for ratio in ratios if 0 < ratio < COARSE]
    dim, index = whole(config, "head_dim"), whole(config, "index_head_dim")
    compressors = 4 * dim * len(fine) + 2 * dim * sum(ratio >= COARSE for ratio in ratios)
    indexers = 4 * index * len(fine)
    return {
        "shared_kv": True,
        "query_rank": whole(config, "q_lora_rank"),
        "out_rank": whole(config, "o_lora_rank"),
        "out_groups": whole(config, "o_groups"),
        "sinks": True,
        "rotary_fraction": whole(config, "qk_rope_head_dim", default=64) / dim,
        "intermediate_size": whole(config, "moe_intermediate_size"),
        "sliding_window": whole(config, "sliding_window") + whole(config, "index_topk"),
        "windowed_layers": layers,
        "extra_width": (compressors + indexers) // layers + 2 * streams**2 * (streams + 2),
        "indexer": Indexer(
            whole(config, "index_n_heads"),
            index,
            len(fine),
            whole(config, "q_lora_rank"),
            stride=min(fine, default=1),
        ),
        **({"expert_weight_bytes": MXFP4_BYTES} if config.get("expert_dtype") == "fp4" else {}),
    }


COARSE: Final = 32
"""Tokens to one key from which on a layer attends to all of them, without an indexer."""


def _compression(config: Config, layers: int) -> Sequence[int]:
    """Tokens to one key, of each layer; 0 where there is only the window."""
    kinds = config.get("layer_types")
    if kinds:
        rates = config.get("compress_rates") or {}
        return [int(rates.get(kind, 0)) for kind in kinds]
    return [int(ratio) for ratio in first(config, (), "compress_ratios")[:layers]]


def mimo_v2(config: Config) -> Mapping[str, Any]:
    """Windowed layers have heads of their own."""
    kinds = config.get("layer_types")
    windowed = kinds.count("sliding_attention") if kinds else sum(config["hybrid_layer_pattern"])
    heads = Heads(
        whole(config, "swa_num_attention_heads", "num_attention_heads"),
        whole(config, "swa_num_key_value_heads", "num_key_value_heads"),
        whole(config, "swa_head_dim", "head_dim"),
        whole(config, "swa_v_head_dim", "v_head_dim"),
    )
    bias = bool(config.get("attention_bias"))
    return {
        "value_dim": whole(config, "v_head_dim"),
        "qkv_bias": bias,
        "windowed_heads": heads,
        "windowed_layers": windowed,
        "sliding_window": whole(config, "sliding_window"),
        "rotary_fraction": rotary_fraction(config, 1.0),
    }


GEMMA4_MODULES: Final[Mapping[str, Sequence[str]]] = {
    f"{place}_{half}": (f"{module}{half}",)
    for half in ("gate_proj", "up_proj", "down_proj")
    for place, module in (("expert", "experts.0."), ("shared", "mlp."))
}
"""Its experts stand beside the MLP, not in it."""


def gemma4(config: Config) -> Mapping[str, Any]:
    """Layers that see everything have wide heads, whose values may be their keys."""
    heads, dim = whole(config, "num_attention_heads"), whole(config, "head_dim")
    windowed = Heads(heads, whole(config, "num_key_value_heads"), dim, dim)
    shared_kv, full = bool(config.get("attention_k_eq_v")), of_kind(config, "full_attention")
    names = ("num_global_key_value_heads",) if shared_kv else ()
    wide, mixed = whole(full, "global_head_dim", "head_dim"), bool(config.get("enable_moe_block"))
    return {
        "logit_softcap": bool(config.get("final_logit_softcapping")),
        "num_kv_heads": whole(full, *names, "num_key_value_heads"),
        "head_dim": wide,
        "shared_kv": shared_kv,
        "windowed_heads": windowed,
        "norms_per_layer": 7 if mixed else 4,
        **({"shared_size": whole(config, "intermediate_size"), "dense_layers": 0} if mixed else {}),
        **({} if mixed else {"num_experts": 0, "experts_per_token": 0, "expert_layers": 0}),
        **_per_layer_inputs(config),
    }


def gemma3n(config: Config) -> Mapping[str, Any]:
    """Four residual streams (AltUp), low-rank updates (LAuReL), an embedding for every layer."""
    layers, hidden = num_layers(config), whole(config, "hidden_size")
    widths = first(config, hidden, "intermediate_size")
    streams = whole(config, "altup_num_inputs", default=4)
    inputs = _per_layer_inputs(config)
    mixing = 2 * (streams - 1) * hidden // layers + streams
    return {
        **inputs,
        "intermediate_size": widths[0] if isinstance(widths, list) else widths,
        "extra_width": inputs["extra_width"]
        + 2 * whole(config, "laurel_rank", default=64)
        + mixing,
        "logit_softcap": bool(config.get("final_logit_softcapping")),
    }


def _per_layer_inputs(config: Config) -> Mapping[str, Any]:
    """Gemma's embeddings for every layer, and keys and values that late layers share."""
    width, layers = count(config, "hidden_size_per_layer_input"), num_layers(config)
    shared = count(config, "num_kv_shared_layers")
    kinds = list(config.get("layer_types") or ())[layers - shared :] if shared else []
    doubled = shared if config.get("use_double_wide_mlp") else 0
    mlp = first(config, 0, "intermediate_size")
    wider = {"intermediate_size": mlp * (layers + doubled) // layers} if doubled else {}
    return {
        # a gate and a projection in every layer, and one for all of them together
        "extra_width": 3 * width,
        "layer_embeddings": width * layers,
        "kv_shared_layers": sum(kind != "sliding_attention" for kind in kinds),
        "kv_shared_windowed": sum(kind == "sliding_attention" for kind in kinds),
        **wider,
    }


def step3(config: Config) -> Mapping[str, Any]:
    """Step 3.5 and 3.7: windowed layers have more query heads; a gate for every head."""
    own = {**of_kind(config, "sliding_attention"), **(config.get("attention_other_setting") or {})}
    kv_names, dim = ("num_attention_groups", "num_key_value_heads"), whole(config, "head_dim")
    heads = whole(own, "num_sliding_attention_heads", "num_attention_heads")
    # the list goes on with layers that predict further tokens
    kinds = list(config.get("layer_types") or ())[: num_layers(config)]
    return {
        "num_kv_heads": whole(config, *kv_names),
        "head_gates": True,
        "windowed_heads": Heads(heads, whole(own, *kv_names), dim, dim),
        "windowed_layers": kinds.count("sliding_attention"),
        "shared_size": whole(config, "share_expert_dim", "share_expert_dims"),
    }
