"""A model of true shape with random weights, for hosts whose GPU can serve it: text is nonsense."""

import shutil
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter.data.azure_trace import conversation_quantiles, quantile
from llm_carbon_meter.physics.model_list import built_in_config, built_in_model
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.testing.tiny_model import make_tiny_model

TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
SEED: Final = 0


def make_shaped_model(name: str, directory: Path) -> Path:
    """Make a model of the built-in list in ``directory`` unless it is there already.

    Weights are normal at the scale of the model's own initialiser, in its own number format; the
    tokenizer is that of the tiny model.

    Raises:
        SpecError: the list has no such model.
        MeterError: transformers is not installed.
    """
    config = built_in_config(name)
    if (directory / "config.json").is_file():
        return directory
    tokenizer = make_tiny_model(directory.with_name("tiny-qwen2"))
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _random(dict(config)).save_pretrained(unfinished)
    for file in TOKENIZER:
        shutil.copy(tokenizer / file, unfinished / file)
    unfinished.rename(directory)
    return directory


def _random(config: dict[str, Any]) -> Any:
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise MeterError(f"--model needs transformers ({error}): pip install it") from error
    dtype = getattr(torch, str(config.get("torch_dtype", "bfloat16")))
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)


def longest(name: str) -> tuple[int, int]:
    """The trace's longest prompts and answers but one in a hundred, as far as the context goes."""
    trace, context = conversation_quantiles(), built_in_model(name).max_context
    prompt, output = (
        round(quantile(lengths, 0.99)) for lengths in (trace.prompt_tokens, trace.output_tokens)
    )
    return min(prompt, context // 2), min(output, context // 4)
