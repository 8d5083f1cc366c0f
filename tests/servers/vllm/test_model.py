"""The model that an engine serves: read from vLLM's configuration, compared with vLLM's figures."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llm_carbon_meter.physics.kernels import context_sum, kernel_table
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.physics.phases import phase_totals
from llm_carbon_meter.servers.vllm.engine_hooks import engine_model, gpu_name
from tests.support.made.families import TINY
from tests.support.made.tiny_configs import tiny_config


def vllm_config(
    config: Mapping[str, Any],
    quantization: str | None = None,
    cache_dtype: str = "auto",
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """As much of a `VllmConfig` as is read."""
    hugging_face = SimpleNamespace(to_dict=lambda: dict(config))
    if "quantization_config" in config:
        hugging_face.quantization_config = config["quantization_config"]
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=hugging_face,
            hf_text_config=hugging_face,
            dtype=dtype,
            served_model_name="tiny",
            model="somewhere/tiny",
            quantization=quantization,
            max_model_len=4096,
        ),
        cache_config=SimpleNamespace(cache_dtype=cache_dtype),
    )


def test_the_engine_decides_on_the_activations_type() -> None:
    """A float32 checkpoint served in BF16 has two bytes everywhere; the context is vLLM's own."""
    spec = engine_model(vllm_config(tiny_config(dtype="float32")))
    assert (spec.name, spec.max_context) == ("tiny", 4096)
    assert (spec.weight_bytes, spec.plain_weight_bytes, spec.kv_bytes) == (2, 2, 2)
    spec = engine_model(vllm_config(tiny_config(), dtype=torch.float32))
    assert (spec.weight_bytes, spec.activation_bytes, spec.compute) == (4, 4, "float32")


def test_the_checkpoints_quantisation_comes_first() -> None:
    """vLLM calls it ``gptq_marlin``, the checkpoint knows bits and groups."""
    stored = {"quant_method": "gptq", "bits": 8, "group_size": 128}
    spec = engine_model(vllm_config(tiny_config(quantization_config=stored), "gptq_marlin"))
    assert spec.weight_bytes == (8 + 24 / 128) / 8
    assert (spec.plain_weight_bytes, spec.activation_bytes) == (2, 2)


def test_vllm_can_quantise_by_itself() -> None:
    """``--quantization fp8`` and an FP8 cache of a checkpoint in 16 bits."""
    spec = engine_model(vllm_config(tiny_config(), "fp8", "fp8_e4m3"))
    assert (spec.weight_bytes, spec.compute) == (1, "fp8")
    assert (spec.plain_weight_bytes, spec.activation_bytes, spec.kv_bytes) == (2, 2, 1)


LLAMA = built_in_model("Llama-3.1-8B")
MIXTRAL = built_in_model("Mixtral-8x7B")
PROMPT = 1020


def vllm_attention(model: ModelSpec, gpus: int) -> Any:
    """vLLM's own figures of attention and its projections."""
    perf = pytest.importorskip("vllm.v1.metrics.perf")
    return perf.AttentionMetrics(
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        activation_byte_size=2,
        weight_byte_size=2,
        cache_byte_size=2,
        tp_size=gpus,
        pp_size=1,
        sliding_window=None,
        num_swa_layers=0,
    )


def vllm_mlp(model: ModelSpec, gpus: int) -> Any:
    """vLLM's own figures of dense MLP and experts."""
    perf = pytest.importorskip("vllm.v1.metrics.perf")
    return perf.FfnMetrics(
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_experts=model.num_experts,
        num_experts_per_tok=model.experts_per_token or 1,
        moe_intermediate_size=model.expert_size,
        num_shared_experts=0,
        num_moe_layers=model.expert_layers,
        activation_byte_size=2,
        weight_byte_size=2,
        ffn_tp_size=gpus,
        ffn_ep_size=1,
        pp_size=1,
    )


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("model", [LLAMA, MIXTRAL], ids=lambda model: model.name)
def test_operations_are_those_of_vllm(model: ModelSpec, gpus: int) -> None:
    """Projections, MLP, experts and head to the last operation.

    Attention as well, softmax aside: vLLM multiplies every new token with the whole context, so
    that a prompt counts L x L instead of the causal L (L + 1) / 2; decode is the same.
    """
    perf = pytest.importorskip("vllm.v1.metrics.perf")
    prompt = perf.ExecutionContext.from_single_request(PROMPT, PROMPT, is_prefill=True)
    table = {one.name: one for one in kernel_table(model, gpus)}
    layers = model.num_layers

    def projected(*names: str) -> float:
        return sum(layers * PROMPT * table[name].ops_per_token for name in names)

    attention = vllm_attention(model, gpus).get_num_flops_breakdown(prompt)
    assert attention["qkv_proj"] == projected("q_proj", "k_proj", "v_proj")
    assert attention["out_proj"] == projected("out_proj")
    softmax = model.softmax_ops * model.num_heads / gpus
    product = layers * (table["fuse_attn"].ops_per_context - softmax)
    assert attention["attn_qk"] + attention["attn_av"] == product * PROMPT**2
    one = perf.ExecutionContext.from_single_request(1, PROMPT + 1, is_prefill=False)
    decode = vllm_attention(model, gpus).get_num_flops_breakdown(one)
    causal = float(context_sum(np.array(1.0), np.array(float(PROMPT))))
    assert decode["attn_qk"] + decode["attn_av"] == product * causal

    mlp = vllm_mlp(model, gpus).get_num_flops(prompt)
    place = "expert_" if model.num_experts else ""
    assert mlp == projected(*(f"{place}{name}_proj" for name in ("gate", "up", "down")))
    head = perf.UnembedMetrics(
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        weight_byte_size=2,
        activation_byte_size=2,
        tp_size=gpus,
    )
    assert head.get_num_flops(prompt) == table["lm_head"].ops_per_sample


def test_latent_attention_is_that_of_vllm() -> None:
    """Every projection of DeepSeek's attention, and products with expanded keys and values."""
    perf = pytest.importorskip("vllm.v1.metrics.perf")
    kind, sizes = TINY["deepseek_v3"]
    model = model_spec({"model_type": kind, **sizes})
    assert model.latent is not None
    theirs = perf.MLAAttentionMetrics(
        num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_heads,
        activation_byte_size=2,
        weight_byte_size=2,
        cache_byte_size=2,
        tp_size=1,
        pp_size=1,
        kv_lora_rank=model.latent.kv_rank,
        qk_nope_head_dim=model.latent.nope_dim,
        qk_rope_head_dim=model.latent.rope_dim,
        v_head_dim=model.latent.value_dim,
        q_lora_rank=model.latent.query_rank,
    ).get_num_flops(perf.ExecutionContext.from_single_request(PROMPT, PROMPT, is_prefill=True))
    table = {one.name: one for one in kernel_table(model)}
    names = ("q_down_proj", "q_proj", "kv_down_proj", "kv_proj", "out_proj")
    ours = sum(table[name].ops_per_token * PROMPT for name in names)
    ours += (table["fuse_attn"].ops_per_context - model.softmax_ops * 4) * PROMPT**2
    assert theirs == model.num_layers * ours


def test_weights_of_a_dense_step_are_those_of_vllm() -> None:
    """The bytes that vLLM reads as weights, per step and GPU."""
    perf = pytest.importorskip("vllm.v1.metrics.perf")
    prompt = perf.ExecutionContext.from_single_request(PROMPT, PROMPT, is_prefill=True)
    attention = vllm_attention(LLAMA, 4).get_read_bytes_breakdown(prompt)
    mlp = vllm_mlp(LLAMA, 4).get_read_bytes_breakdown(prompt)
    theirs = sum(
        value
        for name, value in {**attention, **mlp}.items()
        if name.endswith(("weight", "weights"))
    )
    totals = phase_totals(LLAMA, 4, 1, PROMPT, 1).prefill
    linear = [one for one in totals if one.kind.endswith("_proj")]
    assert theirs == sum(one.count * one.weight_bytes for one in linear)


@pytest.mark.parametrize(
    ("platform", "name", "expected"),
    [
        ("cuda", "NVIDIA H20", "NVIDIA H20"),
        ("rocm", "AMD_Instinct_MI300X", "AMD_Instinct_MI300X"),
        ("xpu", "Intel(R) Data Center GPU Max 1550", "Intel(R) Data Center GPU Max 1550"),
        ("cpu", "cpu", ""),
    ],
)
def test_a_gpu_has_its_platform_s_name(
    monkeypatch: pytest.MonkeyPatch, platform: str, name: str, expected: str
) -> None:
    """Also one that is no NVIDIA's: an estimate then says that it is not known."""
    fake = SimpleNamespace(
        is_cuda_alike=lambda: platform in ("cuda", "rocm"),
        is_xpu=lambda: platform == "xpu",
        get_device_name=lambda: name,
    )
    monkeypatch.setattr("vllm.platforms.current_platform", fake)
    assert gpu_name() == expected
