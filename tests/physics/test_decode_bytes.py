"""Bytes of weights that a decode step of one request reads, against published active parameters."""

import pytest

from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec, in_16_bits
from tests.physics.test_model_list import PUBLISHED

BYTES_IN_16_BITS = 2

# Active parameters [1e9] as the model's own card gives them, mostly rounded to a whole number; some
# count the input embedding.
ACTIVE = [
    ("Mixtral-8x7B", 12.9),
    ("Mixtral-8x22B", 39.0),
    ("Qwen3-30B-A3B", 3.3),
    ("Qwen3-235B-A22B", 22.0),
    ("Qwen3-Coder-480B-A35B", 35.0),
    ("Qwen3-Next-80B-A3B", 3.0),
    ("Qwen3.5-35B-A3B", 3.0),
    ("Qwen3.5-122B-A10B", 10.0),
    ("Qwen3.5-397B-A17B", 17.0),
    ("GLM-4.5", 32.0),
    ("GLM-4.5-Air", 12.0),
    ("GLM-5", 40.0),
    ("MiniMax-M2", 10.0),
    ("DeepSeek-V2-Lite", 2.4),
    ("DeepSeek-V2", 21.0),
    ("DeepSeek-V3", 37.0),
    ("DeepSeek-V3.2", 37.0),
    ("DeepSeek-V4-Flash", 13.0),
    ("DeepSeek-V4-Pro", 49.0),
    ("Kimi-K2", 32.0),
    ("Kimi-K2.5", 32.0),
    ("Kimi-Linear-48B-A3B", 3.0),
    ("MiMo-V2-Flash", 15.0),
    ("Gemma4-26B-A4B", 3.8),
    ("Nemotron-3-Nano-30B-A3B", 3.6),
    ("Nemotron-3-Super-120B-A12B", 12.0),
    ("Nemotron-3-Ultra-550B-A55B", 55.0),
    ("Step-3.5-Flash", 11.0),
    ("OLMoE-1B-7B", 1.3),
    ("gpt-oss-20b", 3.6),
    ("gpt-oss-120b", 5.1),
    ("Granite-4.0-H-Small", 9.0),
    ("Granite-4.0-H-Tiny", 1.0),
    ("Llama-4-Scout", 17.0),
    ("Llama-4-Maverick", 17.0),
]
WHOLE, EXACT = 0.85, 0.06
"""[1e9] How far a whole number may be from what it stands for (some are cut, not rounded), and one
with a decimal."""
DENSE = [
    (name, parameters)
    for name, parameters in PUBLISHED
    if not built_in_model(name).num_experts and not built_in_model(name).layer_embeddings
]


def read_bytes(model: ModelSpec) -> float:
    """Weights that a step of one token streams, as they are stored."""
    costs = step_costs(model)
    experts = costs.expert_bytes * costs.experts_per_token
    return costs.weight_bytes + costs.head_bytes + experts


@pytest.mark.parametrize(("name", "published"), ACTIVE)
def test_experts_read_what_is_published_as_active(name: str, published: float) -> None:
    """With the input embedding or without, which is not read but for a row."""
    model = built_in_model(name)
    active = read_bytes(in_16_bits(model)) / BYTES_IN_16_BITS / 1e9
    embedding = 0.0 if model.tied_head else model.vocab_size * model.hidden_size / 1e9
    error = min(abs(active - published), abs(active + embedding - published))
    assert error <= max(0.04 * published, WHOLE if published.is_integer() else EXACT)


@pytest.mark.parametrize(("name", "parameters"), DENSE)
def test_dense_models_read_all_but_the_input_embedding(name: str, parameters: int) -> None:
    """A head that is tied is the embedding, and is read as a whole."""
    model = built_in_model(name)
    width = model.embedding_size or model.hidden_size
    gathered = 0 if model.tied_head else model.vocab_size * width
    gathered += model.position_rows * model.hidden_size
    expected = BYTES_IN_16_BITS * (parameters - gathered)
    assert read_bytes(in_16_bits(model)) == pytest.approx(expected, rel=0.012)
