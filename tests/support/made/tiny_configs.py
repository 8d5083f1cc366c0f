"""A small config.json."""

from typing import Any


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A small valid Llama config.json with some fields changed; None removes a field."""
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
    }
    config.update(changes)
    return {name: value for name, value in config.items() if value is not None}
