"""Modules that a checkpoint leaves as they are, or stores in a format of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.physics.kernels import kernel_table, weight_memory_bytes
from llm_carbon_meter.physics.model_list import built_in_config, built_in_model, named_config
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.physics.number_formats import NVFP4_BYTES, StoredAs
from llm_carbon_meter.records import SpecError
from tests.support.made.tiny_configs import tiny_config

PLAIN, FP4, FP8 = StoredAs(2.0, "bfloat16"), StoredAs(NVFP4_BYTES, "fp4"), StoredAs(1.0, "fp8")
WEIGHT_ONLY_FP4 = StoredAs(NVFP4_BYTES, "bfloat16")
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def quantised(section: dict[str, Any], **changes: Any) -> ModelSpec:
    """A small model of four layers, with a section on quantisation."""
    return model_spec(
        tiny_config(num_hidden_layers=4, quantization_config=section, **changes), "small"
    )


def nvfp4(*left_out: str) -> dict[str, Any]:
    """ModelOpt's section, as its hf_quant_config.json has it."""
    return {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": list(left_out)}


@pytest.mark.parametrize(
    ("pattern", "kernels"),
    [
        ("lm_head", ()),
        ("gate", ()),
        ("self_attn", ATTENTION),
        ("*.self_attn.*", ATTENTION),
        ("model.layers.*.self_attn", ATTENTION),
        ("re:.*self_attn.*", ATTENTION),
        ("re:.*mlp\\.(gate|up|gate_up|down)_proj.*", MLP),
        ("re:model\\.language_model\\.layers.*mlp.*", MLP),
        ("o_proj", ("out_proj",)),
        ("mlp.down_proj", ("down_proj",)),
        ("vision_tower", ()),
    ],
)
def test_patterns_of_all_layers(pattern: str, kernels: tuple[str, ...]) -> None:
    """A name is a whole module or what is part of it, not a piece of a longer name."""
    assert dict(quantised(nvfp4(pattern)).exceptions) == dict.fromkeys(kernels, PLAIN)


@pytest.mark.parametrize(
    ("field", "section"),
    [
        ("modules_to_not_convert", {"quant_method": "fp8"}),
        ("ignored_layers", {"quant_method": "fp8"}),
        ("ignore", {"quant_method": "compressed-tensors"}),
        ("llm_int8_skip_modules", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("modules_to_not_convert", {"quant_method": "awq", "bits": 4}),
    ],
)
def test_every_method_has_a_field_for_them(field: str, section: dict[str, Any]) -> None:
    """What is left out is in 16 bits, and computes so."""
    spec = quantised({**section, field: ["self_attn"]})
    assert {spec.stored(kernel) for kernel in ATTENTION} == {PLAIN}
    assert spec.stored("up_proj").element < 2


def test_layers_that_differ_count_with_their_mean() -> None:
    """One of four layers is left out: its bytes are read as they are."""
    spec = quantised(nvfp4("model.layers.0*", "model.layers.1.self_attn.q_proj"))
    assert spec.stored("up_proj") == StoredAs((2.0 + 3 * NVFP4_BYTES) / 4, "fp4")
    assert spec.stored("q_proj").element == (2 * 2.0 + 2 * NVFP4_BYTES) / 4


def test_experts_and_dense_layers_are_looked_up_where_they_are() -> None:
    """The first layer has an MLP: leaving it out concerns no expert."""
    sizes = {"model_type": "glm4_moe", "n_routed_experts": 8, "first_k_dense_replace": 1}
    spec = quantised(nvfp4("model.layers.0.*"), **{**EXPERTS, **sizes, "num_experts": None})
    assert spec.stored("up_proj") == PLAIN
    assert spec.stored("expert_up_proj") == FP4


def test_formats_of_single_modules() -> None:
    """MIXED_PRECISION: experts by number, attention in FP8, and what is not listed in 16 bits."""
    experts = {
        f"model.layers.{layer}.mlp.experts.{expert}.{half}": {"quant_algo": "W4A16_NVFP4"}
        for layer in range(4)
        for expert in range(8)
        for half in MLP
    }
    attention = {
        f"model.layers.{layer}.self_attn.o_proj": {"quant_algo": "FP8"} for layer in range(4)
    }
    section = {"quant_algo": "MIXED_PRECISION", "quantized_layers": {**experts, **attention}}
    spec = quantised(section, **{**EXPERTS, "model_type": "qwen3_moe"})
    assert spec.stored("expert_up_proj") == WEIGHT_ONLY_FP4
    assert (spec.stored("out_proj"), spec.stored("q_proj")) == (FP8, PLAIN)
    peaks = {kernel.name: kernel.peak for kernel in kernel_table(spec)}
    assert (peaks["expert_up_proj"], peaks["out_proj"]) == ("bfloat16", "fp8")


def test_groups_of_modules() -> None:
    """compressed-tensors: attention in FP8, the MLP in 4 bits."""
    fp8 = {"num_bits": 8, "type": "float"}
    fp4 = {"num_bits": 4, "type": "float", "group_size": 16}
    groups = {
        "group_0": {"targets": ["re:.*self_attn.*"], "weights": fp8, "input_activations": fp8},
        "group_1": {"targets": ["Linear"], "weights": fp4, "input_activations": fp4},
    }
    spec = quantised({"quant_method": "compressed-tensors", "config_groups": groups})
    assert {spec.stored(kernel) for kernel in ATTENTION} == {FP8}
    assert {spec.stored(kernel) for kernel in MLP} == {FP4}
    assert spec.number_format == "fp4, weights of 4 bits, attention of 8 bits"


def test_experts_beside_the_mlp() -> None:
    """Gemma 4 leaves its MLPs out; its experts, which are not part of them, stay quantised."""
    config = {
        **built_in_config("Gemma4-26B-A4B"),
        "quantization_config": nvfp4("model.language_model.layers.*.mlp*"),
    }
    spec = model_spec(config)
    assert (spec.stored("shared_up_proj"), spec.stored("expert_up_proj")) == (PLAIN, FP4)


def test_a_checkpoint_in_4_bits_with_exceptions_has_its_published_size() -> None:
    """Kimi K2.5: 595 GB, its attention, shared experts and first layer in 16 bits."""
    spec = built_in_model("Kimi-K2.5")
    assert weight_memory_bytes(spec, 1) == pytest.approx(595e9, rel=0.01)
    assert spec.number_format.endswith("experts of 4 bits, attention of 16 bits")


@pytest.mark.parametrize("nested", [True, False])
def test_the_second_file_of_a_checkpoint(tmp_path: Path, nested: bool) -> None:
    """hf_quant_config.json beside a config.json that says nothing, as ModelOpt writes it."""
    config = tiny_config(num_hidden_layers=4)
    if nested:
        config = {"model_type": "outer", "text_config": config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    section = {**nvfp4("*self_attn*"), "kv_cache_quant_algo": "FP8"}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))
    spec = model_spec(named_config(str(tmp_path)))
    assert (spec.stored("up_proj"), spec.stored("q_proj"), spec.kv_bytes) == (FP4, PLAIN, 1.0)


def test_a_section_that_is_none() -> None:
    """The error says what was found."""
    with pytest.raises(SpecError, match="quantization_config is a str; expected an object"):
        model_spec(tiny_config(quantization_config="fp8"))
