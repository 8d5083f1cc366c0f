"""The law of a step: terms of a deployment, and what holds whatever the rates."""

from dataclasses import replace

import numpy as np
import pytest

from llm_carbon_meter.estimate.one_request import make_deployment
from llm_carbon_meter.physics.gpu_specs import GpuSpec, gpu_spec
from llm_carbon_meter.physics.model_list import built_in_config, built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.physics.phases import SUMS, phase_sums, phase_totals
from llm_carbon_meter.predictor.fitted_physics import FittedPhysics
from llm_carbon_meter.predictor.gnn import shipped_weights
from llm_carbon_meter.predictor.step_law import FACTORS, TERMS, constants_of, spent, term_matrix

LLAMA, MIXTRAL, H100 = (
    built_in_model("Llama-3.1-8B"),
    built_in_model("Mixtral-8x7B"),
    gpu_spec("H100"),
)


def terms_of(
    model: ModelSpec, gpu: GpuSpec, gpus: int = 1, engine: str = "vllm", **asked: float
) -> dict[str, np.ndarray]:
    """Seconds of each term in prefill and decode."""
    numbers = {"batch": 4.0, "prompt": 1000.0, "output": 200.0} | asked
    sums = phase_sums(model, *(np.array([one]) for one in numbers.values()))
    seconds = (sums @ term_matrix(model, gpu, gpus, engine).T)[0]
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


def test_only_transformers_repeats_the_cache() -> None:
    """It writes keys and values for every query head: three times more on groups of four."""
    assert not terms_of(LLAMA, H100)["repeated_cache"].any()
    eager = terms_of(LLAMA, H100, engine="hf_transformers", prompt=4000)
    assert eager["repeated_cache"][1] == pytest.approx(3 * eager["cache"][1], rel=0.02)
    alone = terms_of(built_in_model("Llama-2-7B"), H100, engine="hf_transformers")
    assert not alone["repeated_cache"].any()


def test_weights_that_are_unpacked_and_scales_of_blocks_have_terms() -> None:
    """bitsandbytes launches more for each linear kernel; block scales cost in each expert layer."""
    for dtype in ("int8", "nf4"):
        terms = terms_of(make_deployment("Llama-3.1-8B", "H100", 1, dtype).model, H100)
        assert terms[f"{dtype}_layers"].all()
    assert not terms_of(LLAMA, H100)["int8_layers"].any()
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = {**built_in_config("Qwen3-30B-A3B"), "quantization_config": blocks}
    assert terms_of(model_spec(config), H100)["block_scaled_layers"].all()
    plain = make_deployment("Qwen3-30B-A3B", "H100", 1, "fp8").model
    assert not terms_of(plain, H100)["block_scaled_layers"].any()


@pytest.mark.parametrize(
    ("together", "seconds"),
    [
        # what a kernel moves and computes goes on at once: the longer counts most
        (("weights", "products"), 2**0.25),
        (("expert_weights", "expert_products"), 2**0.25),
        (("cache", "attention"), 2**0.25),
        # what one kernel moves is added up, and kernels follow each other
        (("weights", "activations"), 2.0),
        (("weights", "attention"), 2.0),
        (("products", "expert_products"), 2.0),
        (("products", "network"), 2.0),
        # launches hide behind the GPU's time, the host's time between steps does not
        (("weights", "launches"), 2**0.25),
        (("weights", "steps"), 2.0),
    ],
)
def test_what_goes_on_at_once_takes_no_longer(together: tuple[str, str], seconds: float) -> None:
    """Two terms of a second each."""
    size = len(TERMS)
    law = FittedPhysics(np.zeros(size), np.full(size, -50.0), -9.0, -9.0, {}, {})
    terms = np.array([[float(term in together) for term in TERMS]])
    found = spent(constants_of(law, np.zeros(len(FACTORS)), np), terms)
    assert found.seconds[0] == pytest.approx(seconds, rel=1e-6)


def random_law(seed: int, deployments: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of factors, and terms of both phases."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(0, 0.5, (deployments, len(FACTORS)))
    return factors, rng.uniform(0, 0.1, (deployments, 2, len(TERMS)))


def test_the_law_is_the_same_in_torch_and_numpy() -> None:
    """What is fitted is what is served."""
    torch = pytest.importorskip("torch")
    physics, (factors, terms) = shipped_weights().physics, random_law(0)

    class Tensors:
        time, energy = torch.from_numpy(physics.time), torch.from_numpy(physics.energy)
        static, active = physics.static, physics.active

    in_torch = spent(
        constants_of(Tensors, torch.from_numpy(factors), torch), torch.from_numpy(terms)
    )
    in_numpy = spent(constants_of(physics, factors, np), terms)
    for ours, theirs in zip(in_numpy, in_torch, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12)


def test_no_gpu_draws_more_than_its_board_power() -> None:
    """However much is computed and moved, neither phase gets above board power x time."""
    factors, terms = random_law(1, 200)
    factors[:, FACTORS.index("dynamic")] += 3.0
    seconds, boards = spent(constants_of(shipped_weights().physics, factors, np), terms)
    assert (boards <= 1.0001 * seconds).all()
    assert (boards > 0.9 * seconds).mean() > 0.5


@pytest.mark.parametrize("term", TERMS)
def test_more_of_anything_never_costs_less(term: str) -> None:
    """Time and energy rise with every term, whatever the factors, below and at the limit."""
    factors, terms = random_law(2, 200)
    factors[::2, FACTORS.index("dynamic")] += 3.0
    constants = constants_of(shipped_weights().physics, factors, np)
    more = terms.copy()
    more[..., TERMS.index(term)] *= 1.5
    for before, after in zip(spent(constants, terms), spent(constants, more), strict=True):
        assert (after >= before).all()


def test_beyond_the_limit_a_step_takes_longer() -> None:
    """Power stays at the board's, time goes up, energy by less than was asked for."""
    factors, terms = random_law(3, 50)
    greedy = factors.copy()
    greedy[:, FACTORS.index("dynamic")] += 3.0
    physics = shipped_weights().physics
    free, limited = (spent(constants_of(physics, some, np), terms) for some in (factors, greedy))
    assert (limited.seconds > free.seconds).all()
    assert (limited.boards / free.boards < np.exp(3.0)).all()


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
