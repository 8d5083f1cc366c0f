"""The shipped predictor: what it says, and that it is the network that was trained."""

import json
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import dense_to_sparse

from llm_carbon_meter.physics.gpu_specs import at_limit, gpu_spec
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.features import DeploymentGraph, neighbours
from llm_carbon_meter.predictor.fitted_physics import Prior, by_factor
from llm_carbon_meter.predictor.gnn import (
    CARD,
    CORRECTION,
    WEIGHTS,
    BoundGnn,
    GnnModel,
    read_weights,
    shipped_weights,
)
from llm_carbon_meter.records import MeterError, SpecError
from llm_carbon_meter.training.fit.network import Ensemble, RateNetwork
from llm_carbon_meter.training.fit.train import MEMBERS

CASES = [
    ("Llama-3.1-8B", 1),
    ("Llama-3.1-70B", 4),
    ("Qwen3-30B-A3B", 2),
    ("gpt-oss-20b", 1),
    ("Bloom-560m", 1),
    ("Gemma2-9b", 2),
    ("Nemotron-Nano-9B-v2", 1),
]
BATCH = np.array([1.0, 8.0, 64.0])
PROMPT = np.array([20.0, 1000.0, 6000.0])
OUTPUT = np.array([1.0, 150.0, 900.0])


def bound(model: str = "Llama-3.1-8B", gpus: int = 1, gpu: str = "H100", **more: str) -> BoundGnn:
    """The shipped predictor on a deployment."""
    engine = {"engine": "vllm", "engine_version": "0.11.1"} | more
    return GnnModel().bind(Deployment(built_in_model(model), gpu_spec(gpu), gpus, **engine))


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_lower_limit_makes_an_estimate_slower_and_no_dearer(gpus: int) -> None:
    """Where a GPU would draw more; and nobody measured that."""
    place = Deployment(built_in_model("Llama-3.1-70B"), gpu_spec("H100"), gpus, "vllm", "0.11.1")
    limited = replace(place, gpu=at_limit(place.gpu, 500.0))
    free, capped = (GnnModel().bind(one) for one in (place, limited))
    before, after = (one.phases(64.0, 4000.0, 100.0) for one in (free, capped))
    assert after.prefill_joules < 0.9 * before.prefill_joules
    assert after.gpu_seconds > 1.05 * before.gpu_seconds
    assert after.width > before.width
    same = replace(place, gpu=at_limit(place.gpu, 700.0))
    assert GnnModel().bind(same).phases(64.0, 4000.0, 100.0) == before
    assert capped.out_of_domain == "GPU H100 at 500 W not measured"
    assert free.out_of_domain == ""


def test_a_part_of_a_gpu_says_what_is_only_nearly_so() -> None:
    """And that nobody measured it."""
    assert "1 of 7 slices of A100" in bound(gpu="A100 MIG 1g.10gb").out_of_domain
    virtual = bound(gpu="GRID A100DX-40C").out_of_domain
    assert "virtual GPU" in virtual
    assert "GPU A100DX-40C not measured" in virtual


def folder() -> Any:
    """Where the package has its weights."""
    return resources.files("llm_carbon_meter.predictor.weights")


def ensemble() -> Ensemble:
    """The shipped weights in the module that is trained."""
    module = Ensemble([RateNetwork() for _ in range(MEMBERS)]).double()
    tensors = load(folder().joinpath(WEIGHTS).read_bytes())
    names = module.state_dict()
    module.load_state_dict({name: torch.from_numpy(tensors[name]) for name in names})
    return module.eval()


def padded(model: str, gpus: int, missing: int) -> list[torch.Tensor]:
    """Inputs of the module, with some kernels that are none."""
    spec = built_in_model(model)
    graph = DeploymentGraph.of(Deployment(spec, gpu_spec("H100"), gpus, "vllm")).reference()
    nodes = np.pad(graph.nodes, ((0, missing), (0, 0)))
    mask = np.concatenate((np.ones(len(graph.nodes)), np.zeros(missing)))
    arrays = (nodes, np.pad(neighbours(spec, gpus), (0, missing)), mask, graph.described)
    return [torch.from_numpy(array[None]) for array in arrays]


@pytest.mark.parametrize(("model", "gpus"), CASES)
def test_numpy_serves_what_torch_geometric_trained(model: str, gpus: int) -> None:
    """The same corrections to 1e-5, padding or not."""
    spec = built_in_model(model)
    graph = DeploymentGraph.of(Deployment(spec, gpu_spec("H100"), gpus, "vllm")).reference()
    linked = neighbours(spec, gpus)
    served = np.mean([one.corrections(graph, linked) for one in shipped_weights().networks], axis=0)
    assert abs(served).max() > 1e-3
    with torch.no_grad():
        for missing in (0, 5):
            trained = ensemble()(*padded(model, gpus, missing))[0].numpy() * CORRECTION
            np.testing.assert_allclose(served, trained, atol=1e-5)


def test_the_layers_are_graphsage() -> None:
    """Dense and sparse layers of torch-geometric agree: a mean over neighbours, and the node."""
    nodes, linked, mask, _ = padded("Llama-3.1-8B", 1, 0)
    dense = ensemble().members[0].sage_1
    sparse = SAGEConv(nodes.shape[-1], dense.out_channels).double()
    sparse.lin_l.weight, sparse.lin_r.weight = dense.lin_rel.weight, dense.lin_root.weight
    sparse.lin_l.bias = dense.lin_root.bias
    edges, _ = dense_to_sparse(linked[0].T)
    with torch.no_grad():
        torch.testing.assert_close(dense(nodes, linked, mask)[0], sparse(nodes[0], edges))


@pytest.mark.parametrize(("model", "gpus"), CASES)
def test_every_request_is_answered_by_itself(model: str, gpus: int) -> None:
    """Positive and finite, and no row depends on its neighbours, as array or plain number."""
    served = bound(model, gpus)
    together = served.phases(BATCH, PROMPT, OUTPUT)
    total = together.prefill_joules + together.decode_joules
    assert np.isfinite(total).all()
    assert (together.prefill_joules > 0).all()
    assert (together.width > 0).all()
    for row, asked in enumerate(zip(BATCH.tolist(), PROMPT.tolist(), OUTPUT.tolist(), strict=True)):
        alone = served.phases(*asked)
        in_array = served.phases(*(np.array([one]) for one in asked))
        for plain, one, all_ in zip(alone, in_array, together, strict=True):
            assert isinstance(plain, float)
            assert plain == pytest.approx(all_[row], rel=1e-5)
            assert one[0] == pytest.approx(all_[row], rel=1e-5)


def test_what_grows_with_what() -> None:
    """Prefill with the prompt, decode with the answer; company makes a request cheaper."""
    served = bound()

    def joules(concurrency: float, prompt: float, output: float) -> tuple[float, float]:
        return served.phases(float(concurrency), float(prompt), float(output))[:2]

    prefill, decode = joules(8, 1000, 200)
    assert joules(8, 4000, 200)[0] > 2.5 * prefill
    assert joules(8, 1000, 800)[1] > 3 * decode
    assert joules(8, 1000, 800)[0] == pytest.approx(prefill, rel=0.2)
    assert joules(8, 1000, 1)[1] == pytest.approx(0, abs=1e-6)
    assert (
        sum(joules(64, 1000, 200))
        < 0.6 * sum(joules(8, 1000, 200))
        < 0.6 * sum(joules(1, 1000, 200))
    )


def test_outside_its_domain_it_says_so_and_widens() -> None:
    """A GPU or engine that was not measured, and an approximated model, are named."""
    assert bound().out_of_domain == ""
    assert "T4" in bound(gpu="T4").out_of_domain
    assert "sglang 1" in bound(engine="sglang", engine_version="1").out_of_domain
    assert "recurrent" in bound("Nemotron-Nano-9B-v2").out_of_domain
    assert bound(engine_version="").out_of_domain == ""
    widths = [one.phases(8.0, 500.0, 200.0).width for one in (bound(), bound(gpu="H200"))]
    assert widths[1] > 1.2 * widths[0]


def test_heads_that_cannot_be_divided() -> None:
    """vLLM would not start either."""
    with pytest.raises(SpecError, match="32 heads"):
        bound(gpus=3)


def test_the_weights_are_those_of_the_card() -> None:
    """One changed byte, or another card, is refused by name."""
    data, card = folder().joinpath(WEIGHTS).read_bytes(), folder().joinpath(CARD).read_text("utf-8")
    assert read_weights(data, card).gates == shipped_weights().gates
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(MeterError, match=r"gnn\.safetensors.*checksum"):
        read_weights(damaged, card)
    other = json.dumps({**json.loads(card), "sha256": "0" * 64})
    with pytest.raises(MeterError, match="checksum"):
        read_weights(data, other)
    with pytest.raises(MeterError, match="cannot be used"):
        read_weights(data, "{")


def test_the_network_is_switched_on_where_it_earns_it() -> None:
    """Inner cross-validation decides by itself for what was measured and for the rest."""
    weights = shipped_weights()
    assert weights.gates.measured > 0
    place = Deployment(built_in_model("Llama-3.1-70B"), gpu_spec("H100"), 4, "vllm", "0.11.1")
    kin = weights.physics.prior("vllm", "0.11.1", "H100").mean
    assert abs(weights.prior(place).mean - kin).max() > 0.01
    elsewhere = replace(place, engine_version="0.32.0")
    moved = weights.prior(elsewhere).mean - weights.physics.prior("vllm", "0.32.0", "H100").mean
    assert (abs(moved).max() > 0) == (weights.gates.elsewhere > 0)


def test_what_a_deployment_shows_moves_its_estimates() -> None:
    """Twice the static power costs more, and the estimate says by how much it was corrected."""
    served = bound()
    before = served.phases(4.0, 500.0, 200.0)
    assert before.calibration == pytest.approx(1.0)
    dearer = served.prior.mean + by_factor({"static": np.log(2.0)})
    served.adopt(Prior(dearer, served.prior.covariance / 100))
    after = served.phases(4.0, 500.0, 200.0)
    total = after.prefill_joules + after.decode_joules
    raw = before.prefill_joules + before.decode_joules
    assert after.calibration == pytest.approx(total / raw)
    assert after.calibration > 1.1
    assert after.width < before.width


@pytest.mark.parametrize(("model", "gpus"), [("Llama-3.1-8B", 1), ("Mixtral-8x7B", 4)])
def test_a_batch_is_all_of_its_requests(model: str, gpus: int) -> None:
    """Its joules and seconds are those of a request, times how many there are."""
    law, concurrency = bound(model, gpus), np.array([1.0, 7.5, 64.0])
    lengths = np.full(3, 1500.0), np.full(3, 300.0)
    batches, energy = law.batches(concurrency, *lengths), law.phases(concurrency, *lengths)
    assert batches.joules / concurrency == pytest.approx(
        energy.prefill_joules + energy.decode_joules
    )
    seconds = batches.prefill_s + batches.decode_s
    assert seconds * gpus / concurrency == pytest.approx(energy.gpu_seconds)
    assert batches.decode_s == pytest.approx(299 * batches.decode_step_s)
    assert batches.energy_width == pytest.approx(energy.width)
    assert (batches.time_width > 0).all()


def test_measured_is_what_the_card_knows() -> None:
    """GPU and engine both; one whose kernels alone were measured is none."""
    assert bound().measured
    assert bound(gpu="A40").measured
    assert not bound(gpu="B200").measured
    assert not bound(engine="tgi").measured
    assert not bound(engine_version="0.0.1").measured
