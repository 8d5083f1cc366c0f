"""Tiny configurations of every decoder family, for tests against the real model code."""

from collections.abc import Mapping
from typing import Any, Final

_SIZES: Final = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_ALL_HEADS: Final = {**_SIZES, "num_key_value_heads": None}
_EXPERTS: Final = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_QWEN_MOE: Final = {**_EXPERTS, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
_LATENT: Final = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_group": 1,
    "topk_group": 1,
}
_INDEXED: Final = {
    **_LATENT,
    "q_lora_rank": 24,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 8,
}
_LAYER_KINDS: Final = ["sliding_attention", "full_attention"] * 2
_GPT2: Final = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "vocab_size": 100}

TINY: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "llama": ("llama", _SIZES),
    "llama with biases": ("llama", {**_SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama tied": ("llama", {**_SIZES, "tie_word_embeddings": True}),
    "granite": ("granite", _SIZES),
    "seed_oss": ("seed_oss", {**_SIZES, "head_dim": 32}),
    "mistral": ("mistral", {**_SIZES, "head_dim": 32, "sliding_window": 8}),
    "qwen2": ("qwen2", _SIZES),
    "qwen2 with a window": (
        "qwen2",
        {**_SIZES, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {**_SIZES, **_QWEN_MOE, "num_experts": 8, "shared_expert_intermediate_size": 80},
    ),
    "qwen3": ("qwen3", {**_SIZES, "head_dim": 32}),
    "qwen3_moe": ("qwen3_moe", {**_SIZES, **_QWEN_MOE, "num_experts": 8, "head_dim": 32}),
    "mixtral": ("mixtral", {**_SIZES, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "gemma": ("gemma", {**_SIZES, "head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {**_SIZES, "head_dim": 32, "sliding_window": 8}),
    "gemma3_text": (
        "gemma3_text",
        {**_SIZES, "num_hidden_layers": 7, "head_dim": 32, "sliding_window": 8},
    ),
    "bloom": ("bloom", {"hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 100}),
    "falcon 7b": ("falcon", {**_SIZES, "ffn_hidden_size": 256}),
    "falcon 40b": (
        "falcon",
        {**_SIZES, "ffn_hidden_size": 256, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon rw": (
        "falcon",
        {
            **_SIZES,
            "ffn_hidden_size": 256,
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
            "num_kv_heads": 4,
        },
    ),
    "phi3": ("phi3", _SIZES),
    "starcoder2": ("starcoder2", _SIZES),
    "gpt_neox": ("gpt_neox", {**_ALL_HEADS, "intermediate_size": 256}),
    "opt": ("opt", {**_ALL_HEADS, "ffn_dim": 160, "word_embed_proj_dim": 64}),
    "opt with projections": (
        "opt",
        {**_ALL_HEADS, "ffn_dim": 160, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "gpt2": ("gpt2", _GPT2),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gpt_oss": (
        "gpt_oss",
        {**_SIZES, "head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "llama4_text": (
        "llama4_text",
        {
            **_SIZES,
            "head_dim": 16,
            "intermediate_size_mlp": 176,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "moe_layers": None,
        },
    ),
    "ernie4_5": ("ernie4_5", {**_SIZES, "head_dim": 16}),
    "dots1": (
        "dots1",
        {
            **_SIZES,
            **_EXPERTS,
            "head_dim": 16,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
        },
    ),
    "exaone4": ("exaone4", {**_SIZES, "head_dim": 16, "sliding_window": 8}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {**_SIZES, "head_dim": 16}),
    "phimoe": ("phimoe", {**_SIZES, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "nemotron": ("nemotron", _SIZES),
    "solar_open": (
        "solar_open",
        {**_SIZES, **_EXPERTS, "head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1},
    ),
    "glm": ("glm", {**_SIZES, "head_dim": 16, "attention_bias": True}),
    "glm4": ("glm4", {**_SIZES, "head_dim": 16}),
    "glm4_moe": (
        "glm4_moe",
        {
            **_SIZES,
            **_EXPERTS,
            "head_dim": 16,
            "attention_bias": True,
            "use_qk_norm": True,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "minimax_m2": (
        "minimax_m2",
        {**_SIZES, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "olmo2": ("olmo2", _SIZES),
    "olmo3": ("olmo3", {**_SIZES, "sliding_window": 8}),
    "olmoe": ("olmoe", {**_SIZES, "num_experts": 8, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", _SIZES),
    "arcee": ("arcee", _SIZES),
    "cohere": ("cohere", _SIZES),
    "cohere with norms": ("cohere", {**_SIZES, "use_qk_norm": True}),
    "cohere2": ("cohere2", {**_SIZES, "sliding_window": 8}),
    "ministral3": ("ministral3", {**_SIZES, "head_dim": 32}),
    "granitemoe": ("granitemoe", {**_SIZES, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "gemma4_text dense": (
        "gemma4_text",
        {
            **_SIZES,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "layer_types": _LAYER_KINDS,
            "sliding_window": 8,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
    ),
    "deepseek_v2": ("deepseek_v2", {**_SIZES, **_LATENT, "q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", {**_SIZES, **_LATENT, "q_lora_rank": 24}),
}
"""Name of a case: ``model_type`` and its configuration."""

MAMBA: Final = {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 32}
"""Sizes of a tiny Mamba-2 layer."""
