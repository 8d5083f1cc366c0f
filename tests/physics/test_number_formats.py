"""Bytes per weight of the formats that a config.json can name."""

from typing import Any

import pytest

from llm_carbon_meter.physics.kernels import kernel_table
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import model_spec
from llm_carbon_meter.physics.number_formats import StoredAs, weight_format, with_dtype
from llm_carbon_meter.records import SpecError
from tests.support.made.tiny_configs import tiny_config

INT4 = 0.51953125
GROUP_4_BIT = {"num_bits": 4, "type": "int", "group_size": 128, "symmetric": False}


def compressed(weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    """A compressed-tensors section with one group."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("section", "element", "compute"),
    [
        ({}, 2.0, "bfloat16"),
        ({"quant_method": "fp8"}, 1.0, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 1 + 4 / 128**2, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, 1.0, "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, INT4, "bfloat16"),
        ({"quant_method": "awq_marlin"}, INT4, "bfloat16"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0, "bfloat16"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, 0.5390625, "bfloat16"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5625, "bfloat16"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 1.0, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5625, "fp4"),
        ({"quant_method": "modelopt_fp4"}, 0.5625, "fp4"),
        ({"quant_method": "compressed-tensors"}, 1.0, "fp8"),
        (compressed(GROUP_4_BIT, None), INT4, "bfloat16"),
        (compressed({**GROUP_4_BIT, "symmetric": True}, None), 0.515625, "bfloat16"),
        (
            compressed({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"}),
            1.0,
            "int8",
        ),
        (
            compressed({"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "float"}),
            1.0,
            "fp8",
        ),
        (
            compressed(
                {"num_bits": 4, "type": "float", "group_size": 16},
                {"num_bits": 4, "type": "float"},
            ),
            0.5625,
            "fp4",
        ),
    ],
)
def test_formats(section: dict[str, Any], element: float, compute: str) -> None:
    """Scales and zero points are in the bytes; weight-only formats compute in 16 bits."""
    weights = weight_format(section, "bfloat16")
    assert weights.linear == weights.experts == StoredAs(element, compute)
    assert weights.plain == StoredAs(2.0, "bfloat16")
    assert not weights.approximation


def test_mxfp4_is_for_experts_alone() -> None:
    """gpt-oss leaves attention, router, embedding and head in 16 bits."""
    weights = weight_format({"quant_method": "mxfp4"}, "bfloat16")
    assert weights.experts == StoredAs(0.53125, "bfloat16")
    assert weights.linear == weights.plain == StoredAs(2.0, "bfloat16")


def test_an_unknown_method_is_refused_or_labelled() -> None:
    """A server goes on: its weights count as not quantised, and the spec says so."""
    config = tiny_config(quantization_config={"quant_method": "gguf"})
    with pytest.raises(SpecError, match=r"'gguf' is not known; known: awq, .*mxfp8\. Name the"):
        model_spec(config)
    spec = model_spec(config, any_format=True)
    assert spec.weight_bytes == 2.0
    assert spec.approximation == "gguf weights counted as not quantised"


def test_float32_computes_without_tensor_cores() -> None:
    """PyTorch's default; attention and LM head follow."""
    spec = model_spec(tiny_config(dtype="float32"))
    assert {kernel.peak for kernel in kernel_table(spec)} == {"float32", "vector", ""}


def test_fp8_leaves_norms_embedding_and_head_alone() -> None:
    """The sum over the kernels: one byte per linear weight, two of everything else."""
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "quantization_config": {"quant_method": "fp8"},
    }
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    total = sum(kernel.count * kernel.weight_bytes for kernel in kernel_table(model_spec(config)))
    assert total == 15009849344 - linear
    peaks = {kernel.kind: kernel.peak for kernel in kernel_table(model_spec(config))}
    assert (peaks["q_proj"], peaks["fuse_attn"], peaks["lm_head"]) == (
        "fp8",
        "bfloat16",
        "bfloat16",
    )
    assert built_in_model("Llama-3.1-8B").compute == "bfloat16"


OWN_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("own", "dtype"),
    [
        (OWN_FP8, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "int4"),
        (compressed(GROUP_4_BIT, None), "int4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        (OWN_FP8, "bfloat16"),
        ({"quant_method": "mxfp4"}, ""),
    ],
)
def test_a_checkpoint_keeps_its_own_format(own: dict[str, Any], dtype: str) -> None:
    """Asked for the format that it has, or for a type of activations, its weights stay so."""
    config = tiny_config(quantization_config=own)
    assert with_dtype(config, dtype)["quantization_config"] == own


def test_another_format_replaces_the_checkpoint_s() -> None:
    """FP8 weights that are served in 4 bits are 4 bits, not both."""
    asked = with_dtype(tiny_config(quantization_config=OWN_FP8), "nf4")
    assert model_spec(asked).weight_bytes == 0.5625


@pytest.mark.parametrize(("dtype", "element"), [("float32", 4.0), ("fp8", 1.0), ("bfloat16", 2.0)])
def test_the_text_part_of_a_multimodal_model_gets_it(dtype: str, element: float) -> None:
    """Where the inner configuration has a type of its own, too; nothing is changed in place."""
    inner = {**tiny_config(), "torch_dtype": "float16"}
    outer = {"model_type": "vision", "text_config": inner, "torch_dtype": "float16"}
    assert model_spec(with_dtype(outer, dtype)).weight_bytes == element
    assert "dtype" not in inner


def test_an_unknown_format_is_named() -> None:
    """With those that are known."""
    with pytest.raises(SpecError, match=r"'fp7' is not known; known: bfloat16, .*mxfp4"):
        with_dtype(tiny_config(), "fp7")
