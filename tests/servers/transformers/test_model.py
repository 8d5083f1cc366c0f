"""The shape of a model that transformers has loaded, compared with its own weights."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaConfig

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.servers.transformers.model import spec_of
from tests.support.made.tiny_configs import tiny_config

SEES = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def multimodal(tied: bool) -> Any:
    """A small LLaVA in BF16, of which no weight is kept."""
    text = tiny_config(tie_word_embeddings=None)
    config = LlavaConfig(
        text_config=text, vision_config=SEES, tie_word_embeddings=tied, dtype="bfloat16"
    )
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("tied", [True, False])
def test_the_whole_model_decides_on_its_head(tied: bool) -> None:
    """The text part of a multimodal model says by default that its head is not tied."""
    model = multimodal(tied)
    assert model.config.get_text_config().tie_word_embeddings is False
    spec = spec_of(model, "tiny", Faults())
    weights = {*model.model.language_model.parameters(), model.lm_head.weight}
    assert spec is not None
    assert (spec.tied_head, spec.weight_bytes) == (tied, 2)
    assert spec.parameters == sum(weight.numel() for weight in weights)
    # As it reads the file that `save_pretrained` writes of it.
    assert model_spec(model.config.to_dict(), "tiny").tied_head == tied


def test_quantisation_is_told_outside() -> None:
    """Its text part knows nothing of it."""
    model = multimodal(tied=False)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    spec = spec_of(model, "tiny", Faults())
    assert spec is not None
    assert (spec.weight_bytes, spec.plain_weight_bytes) == ((4 + 20 / 128) / 8, 2)
