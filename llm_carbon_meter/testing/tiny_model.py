"""A Qwen2-shaped model small enough for two CPU cores: random weights, trained tokenizer.

Written file by file, so that transformers is not needed to make it. Its text is nonsense; its
steps, phases and token counts are those of any model.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

VOCABULARY: Final = 2048
HIDDEN: Final = 128
INTERMEDIATE: Final = 256
LAYERS: Final = 2
HEADS: Final = 4
KV_HEADS: Final = 2
MAX_POSITIONS: Final = 1024
SEED: Final = 0

_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# transformers gives every model of type qwen2 this split, whatever its tokenizer.json says.
_QWEN_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tiny_model(directory: Path) -> Path:
    """Make the model in ``directory`` unless it is there already; the same bytes every time."""
    if (directory / "config.json").is_file():
        return directory
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_tokenizer(unfinished)
    _write_weights(unfinished)
    _write_json(unfinished / "config.json", _config())
    _write_json(
        unfinished / "generation_config.json", {"eos_token_id": _SPECIAL.index("<|im_end|>")}
    )
    # Renamed when whole: a demo that was interrupted here starts from nothing.
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)
    return directory


def _config() -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "bos_token_id": _SPECIAL.index("<|endoftext|>"),
        "eos_token_id": _SPECIAL.index("<|im_end|>"),
        "torch_dtype": "float32",
        "use_cache": True,
    }


def _write_weights(directory: Path) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(SEED)
    tensors = {
        name: torch.ones(shape)
        if name.endswith("norm.weight")
        else torch.randn(shape, generator=generator) * 0.02
        for name, shape in _shapes()
    }
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of Qwen2ForCausalLM."""
    head = HIDDEN // HEADS
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            yield prefix + f"self_attn.{name}_proj.weight", (heads * head, HIDDEN)
            yield prefix + f"self_attn.{name}_proj.bias", (heads * head,)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, HEADS * head)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        yield prefix + "mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield prefix + "mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield prefix + "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
            "chat_template": _CHAT_TEMPLATE,
        },
    )


def _training_text() -> list[str]:
    """English prose that every Python carries: docstrings of its standard library."""
    import argparse
    import asyncio
    import email.message
    import logging
    import pathlib
    import random
    import statistics
    import subprocess
    import textwrap
    import unittest

    texts: list[str] = []
    for module in (argparse, asyncio, email.message, logging, pathlib, random, statistics,
                   subprocess, textwrap, unittest):  # fmt: skip
        # Only what __all__ names: other members depend on what was imported before.
        members = [getattr(module, name) for name in sorted(module.__all__)]
        texts += [m.__doc__ for m in [module, *members] if callable(m) and m.__doc__]
    return texts


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
