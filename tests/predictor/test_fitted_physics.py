"""The physics behind the estimate: terms of a deployment, and the law that both libraries share."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_carbon_meter.estimate.one_request import make_deployment
from llm_carbon_meter.physics.gpu_specs import GpuSpec, gpu_spec
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.phases import SUMS, phase_sums, phase_totals
from llm_carbon_meter.predictor.fitted_physics import (
    ENGINE_FACTORS,
    TERMS,
    Constants,
    board_seconds,
    constants_of,
    phase_seconds,
    term_matrix,
)
from llm_carbon_meter.predictor.gnn import shipped_weights

LLAMA, MIXTRAL, H100 = (
    built_in_model("Llama-3.1-8B"),
    built_in_model("Mixtral-8x7B"),
    gpu_spec("H100"),
)


def terms_of(
    model: ModelSpec, gpu: GpuSpec, gpus: int = 1, **asked: float
) -> dict[str, np.ndarray]:
    """Seconds of each term in prefill and decode."""
    numbers = {"batch": 4.0, "prompt": 1000.0, "output": 200.0} | asked
    sums = phase_sums(model, *(np.array([one]) for one in numbers.values()))
    seconds = (sums @ term_matrix(model, gpu, gpus).T)[0]
    return dict(zip(TERMS, seconds.T, strict=True))


@pytest.mark.parametrize("model", [LLAMA, MIXTRAL, built_in_model("Gemma2-9b")])
@pytest.mark.parametrize("gpus", [1, 2])
def test_terms_add_up_to_the_kernels(model: ModelSpec, gpus: int) -> None:
    """No byte and no operation of the kernel table is lost between the terms."""
    found = terms_of(model, H100, gpus)
    memory = ("weights", "expert_weights", "cache", "activations")
    for phase, kernels in enumerate(phase_totals(model, gpus, 4, 1000, 200)):
        moved = sum(one.count * one.moved_bytes for one in kernels)
        seconds = sum(float(found[name][phase]) for name in memory)
        assert seconds == pytest.approx(moved / H100.bandwidth_bytes_per_s, rel=1e-9)
        sent = sum(one.count * one.network_bytes for one in kernels)
        assert found["network"][phase] == pytest.approx(sent / H100.link_bytes_per_s, rel=1e-9)


def test_prefill_and_decode_are_not_exchanged() -> None:
    """Prefill reads the weights once and works on the prompt; decode reads them every step."""
    found = terms_of(LLAMA, H100, batch=1, prompt=1000, output=200)
    assert found["steps"].tolist() == pytest.approx([1e-6, 199e-6])
    assert found["weights"][1] / found["weights"][0] == pytest.approx(199)
    assert found["products"][0] > 4 * found["products"][1]
    longer = terms_of(LLAMA, H100, batch=1, prompt=2000, output=200)
    assert longer["products"][0] / found["products"][0] == pytest.approx(2, rel=0.1)
    assert longer["products"][1] == pytest.approx(found["products"][1])
    assert longer["cache"][1] > 1.5 * found["cache"][1]


def test_a_faster_memory_halves_what_moves_and_nothing_else() -> None:
    """Terms are seconds at the rates of the data sheet."""
    fast = replace(H100, bandwidth_bytes_per_s=2 * H100.bandwidth_bytes_per_s)
    before, after = terms_of(LLAMA, H100), terms_of(LLAMA, fast)
    for name in ("weights", "cache", "activations", "logits"):
        assert after[name] == pytest.approx(before[name] / 2)
    for name in ("products", "attention", "vector", "steps", "sequence_steps", "launches"):
        assert after[name] == pytest.approx(before[name])


def test_experts_and_number_formats_have_terms_of_their_own() -> None:
    """Only a mixture has experts, only FP8 experts their own term, only MXFP4 is packed."""
    dense, mixture = terms_of(LLAMA, H100), terms_of(MIXTRAL, H100)
    assert not dense["expert_weights"].any()
    assert not dense["expert_layers"].any()
    assert mixture["expert_weights"].all()
    for name in ("fp8_weights", "fp8_expert_weights"):
        assert not mixture[name].any()
    in_fp8 = terms_of(make_deployment("Mixtral-8x7B", "H100", 1, "fp8").model, H100)
    assert in_fp8["fp8_weights"].all()
    assert in_fp8["fp8_expert_weights"].all()
    assert terms_of(built_in_model("gpt-oss-20b"), H100)["packed_weights"].all()
    assert not mixture["packed_weights"].any()


def test_the_law_is_the_same_in_torch_and_numpy() -> None:
    """What is fitted is what is served."""
    physics = shipped_weights().physics
    rng = np.random.default_rng(0)
    terms = rng.uniform(0, 0.1, (5, 2, len(TERMS)))
    factors = rng.normal(0, 0.2, (5, len(ENGINE_FACTORS)))

    class Tensors:
        time, energy = torch.from_numpy(physics.time), torch.from_numpy(physics.energy)
        decode_time, decode_energy = physics.decode_time, physics.decode_energy
        static = torch.tensor(physics.static, dtype=torch.float64)

    fitted = constants_of(Tensors, torch.from_numpy(factors), torch)
    in_torch = board_seconds(fitted, torch.from_numpy(terms))
    rows = [constants_of(physics, one, np) for one in factors]
    in_numpy = board_seconds(Constants(*map(np.stack, zip(*rows, strict=True))), terms)
    np.testing.assert_allclose(in_numpy, in_torch.numpy(), rtol=1e-12)


def test_no_gpu_draws_more_than_its_board_power() -> None:
    """However much is computed and moved, neither phase gets above board power x time."""
    physics = shipped_weights().physics
    constants = physics.constants("vllm", "0.11.1", "H100")
    greedy = constants._replace(rates=constants.rates * np.array([1.0, 1.0, 1.0, 50.0]))
    terms = np.random.default_rng(1).uniform(0, 0.1, (50, 2, len(TERMS)))
    energy, seconds = board_seconds(greedy, terms), phase_seconds(greedy, terms)
    assert (np.asarray(energy) <= 1.0001 * np.asarray(seconds)).all()


def test_sums_have_their_names() -> None:
    """The columns of a batch of one are what their names say."""
    prefill, decode = phase_sums(LLAMA, np.array([1.0]), np.array([3.0]), np.array([3.0]))[0]
    assert dict(zip(SUMS, prefill.tolist(), strict=True)) == {
        **dict.fromkeys(SUMS, 0.0),
        **{"steps": 1, "tokens": 3, "context": 6, "kv": 3, "sampled": 1},
    }
    assert dict(zip(SUMS, decode.tolist(), strict=True)) == {
        **dict.fromkeys(SUMS, 0.0),
        **{"steps": 2, "tokens": 2, "context": 9, "kv": 9, "sampled": 2},
    }
