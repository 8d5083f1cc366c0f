"""The paper's graph and roofline, against its figure and hand-worked examples."""

import pytest

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.training.study.paper_form import PEAKS, paper_graph, paper_throughput
from llm_carbon_meter.training.study.paper_kernels import paper_totals

PAPER = {
    "norm_attn": set(),
    "k_proj": {"norm_attn"},
    "q_proj": {"norm_attn"},
    "v_proj": {"norm_attn"},
    "fuse_attn": {"k_proj", "q_proj", "v_proj"},
    "out_proj": {"fuse_attn"},
    "allreduce_1": {"out_proj"},
    "add_attn": {"allreduce_1"},
    "norm_mlp": {"add_attn"},
    "up_proj": {"norm_mlp"},
    "gate_proj": {"norm_mlp"},
    "act_mlp": {"up_proj", "gate_proj"},
    "down_proj": {"act_mlp"},
    "allreduce_2": {"down_proj"},
    "add_mlp": {"allreduce_2", "add_attn"},
}


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Bloom-560m", "Mixtral-8x7B"])
def test_graph_of_the_paper(name: str) -> None:
    """Fifteen nodes in the order of Figure 8, the same for every family."""
    model = built_in_model(name)
    graph = paper_graph(model)
    assert {
        node: {source for source, target in graph.edges if target == node} for node in graph.nodes
    } == PAPER
    assert list(graph.nodes) == list(PAPER)
    assert set(graph.counts) == {model.num_layers}
    assert set(graph.nodes) == {one.name for one in paper_totals(model, 4, 1, 9, 9)[0]}


# kernel, GPUs: A100 prefill, decode, H100 prefill, decode, T4 prefill, decode [OP/s]
ROOFLINE: list[tuple[str, int, tuple[float, ...]]] = [
    (
        "q_proj",
        1,
        (6.24e14, 2.038004880e12, 1.955845724e15, 3.348365056e12, 6.5e13, 3.198438263e11),
    ),
    ("fuse_attn", 1, (6.24e14, 4.114060117e12, 1.979e15, 6.759245411e12, 6.5e13, 6.456592631e11)),
    ("norm_attn", 1, (3.56825e12, 3.56825e12, 5.8625e12, 5.8625e12, 5.6e11, 5.6e11)),
    ("allreduce_1", 1, (6.24e14, 6.24e14, 1.979e15, 1.979e15, 6.5e13, 6.5e13)),
    ("allreduce_1", 4, (1e11, 1e11, 1.5e11, 1.5e11, 1.0666666667e10, 1.0666666667e10)),
]


@pytest.mark.parametrize(("name", "gpus", "expected"), ROOFLINE)
def test_throughput(name: str, gpus: int, expected: tuple[float, ...]) -> None:
    """Compute, memory or network bound, with the paper's peaks."""
    phases = paper_totals(built_in_model("Llama-3.1-8B"), gpus, 1, 1020, 129)
    kernels = [next(one for one in phase if one.name == name) for phase in phases]
    throughputs = [
        paper_throughput(kernel, gpu_spec(gpu))
        for gpu in ("A100", "H100", "T4")
        for kernel in kernels
    ]
    assert throughputs == pytest.approx(expected, rel=1e-9)


def test_kernels_without_operations_have_no_throughput() -> None:
    """Decode of a single token computes nothing at all."""
    decode = paper_totals(built_in_model("Llama-3.1-8B"), 1, 1, 1020, 1).decode
    (normed, *_) = [kernel for kernel in decode if kernel.name == "norm_attn"]
    assert normed.operations == 0
    assert paper_throughput(normed, gpu_spec("A100")) == 0


@pytest.mark.parametrize("name", PEAKS)
def test_printed_peaks_are_those_of_the_data_sheet_or_twice_as_much(name: str) -> None:
    """Sparsity at most doubles the FP16 peak; a link counts in both directions."""
    gpu, printed = gpu_spec(name), PEAKS[name]
    assert gpu.compute_ops_per_s <= printed.ops_per_s <= 2.03 * gpu.compute_ops_per_s
    assert printed.link_bytes_per_s in (2 * gpu.link_bytes_per_s, 4 * gpu.link_bytes_per_s)
