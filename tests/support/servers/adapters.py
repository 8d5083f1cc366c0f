"""LoRA adapters that were not trained."""

import json
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save_file

RANK: Final = 4


def make_adapter(folder: Path, model: Path) -> Path:
    """A LoRA adapter of the first layer's query projection."""
    sizes = json.loads((model / "config.json").read_text())
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    width = heads * sizes.get("head_dim", hidden // heads)
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {
            name.format("A"): np.full((RANK, hidden), 0.01, np.float32),
            name.format("B"): np.full((width, RANK), 0.01, np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
