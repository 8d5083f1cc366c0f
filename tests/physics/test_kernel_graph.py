"""The graph of kernels of every family."""

from collections.abc import Iterable
from graphlib import TopologicalSorter

import pytest

from llm_carbon_meter.physics.kernel_graph import LayerGraph, layer_graph
from llm_carbon_meter.physics.kernels import kernel_table
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from tests.support.made.families import MAMBA, TINY
from tests.support.made.tiny_configs import tiny_config


def tiny(case: str) -> ModelSpec:
    """A family's small model."""
    kind, sizes = TINY[case]
    return model_spec({"model_type": kind, **sizes})


def into(graph: LayerGraph, node: str) -> set[str]:
    """What a node reads."""
    return {source for source, target in graph.edges if target == node}


def order(graph: LayerGraph) -> Iterable[str]:
    """Sources before targets; fails on a cycle."""
    return TopologicalSorter({node: into(graph, node) for node in graph.nodes}).static_order()


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("case", TINY)
def test_every_family_is_one_connected_graph(case: str, gpus: int) -> None:
    """From the embedding to the LM head, no cycle, nothing loose, nodes as in the table."""
    model = tiny(case)
    graph = layer_graph(model, gpus)
    table = kernel_table(model, gpus)
    assert [*zip(graph.nodes, graph.counts, strict=True)] == [(k.name, k.count) for k in table]
    assert {end for edge in graph.edges for end in edge} == set(graph.nodes)
    assert [node for node in graph.nodes if not into(graph, node)] == ["embed"]
    last = "logit_gather" if gpus > 1 else "lm_head"
    assert set(graph.nodes) - {source for source, _ in graph.edges} == {last}
    assert set(order(graph)) == set(graph.nodes)
    assert len(set(graph.edges)) == len(graph.edges)


def test_llama_on_two_gpus() -> None:
    """Rotated queries and keys, values as they are; residuals around both blocks."""
    graph = layer_graph(built_in_model("Llama-3.1-8B"), 2)
    assert into(graph, "rope") == {"q_proj", "k_proj"}
    assert into(graph, "fuse_attn") == {"rope", "v_proj"}
    assert into(graph, "add_attn") == {"allreduce_1", "embed_allreduce"}
    assert into(graph, "add_mlp") == {"allreduce_2", "add_attn"}
    assert into(graph, "lm_head") == {"final_norm"}


def test_missing_kernels_are_bypassed_not_shortcut() -> None:
    """Bloom has neither gate nor RoPE: its activation reads ``up_proj`` and nothing else."""
    graph = layer_graph(built_in_model("Bloom-560m"))
    assert into(graph, "act_mlp") == {"up_proj"}
    assert into(graph, "fuse_attn") == {"q_proj", "k_proj", "v_proj"}
    assert into(graph, "norm_attn") == {"embed_norm"}
    assert into(graph, "add_attn") == {"out_proj", "embed_norm"}


def test_gemma2_has_two_attentions_side_by_side() -> None:
    """Windowed and full, each once, and norms behind both blocks."""
    graph = layer_graph(built_in_model("Gemma2-2b"))
    assert into(graph, "out_proj") == {"fuse_attn", "fuse_attn_windowed"}
    assert into(graph, "post_norm_attn") == {"out_proj"}
    assert into(graph, "add_attn") == {"post_norm_attn", "embed"}


def test_experts_beside_dense_layers() -> None:
    """Routed, shared and dense paths meet behind the MLP."""
    graph = layer_graph(tiny("qwen2_moe"))
    assert into(graph, "combine") == {
        "router",
        "expert_down_proj",
        "shared_down_proj",
        "shared_gate",
    }
    assert into(graph, "add_mlp") == {"combine", "down_proj", "add_attn"}
    assert into(graph, "expert_up_proj") == {"norm_mlp", "router"}


def test_parallel_attention() -> None:
    """Falcon-7b's MLP reads the attention's norm, GPT-NeoX has one of its own."""
    assert into(layer_graph(tiny("falcon 7b")), "up_proj") == {"norm_attn"}
    assert into(layer_graph(tiny("gpt_neox")), "norm_mlp") == {"embed"}


def test_recurrent_layers_stand_beside_attention() -> None:
    """Nemotron-H: both read the norm, and both end in the same residual."""
    config = {**tiny_config(model_type="nemotron_h", num_hidden_layers=None), **MAMBA}
    graph = layer_graph(model_spec({**config, "hybrid_override_pattern": "M-M*-"}))
    assert into(graph, "recurrent_in_proj") == {"norm_attn"}
    assert into(graph, "add_attn") == {"out_proj", "recurrent_out_proj", "embed"}
    assert [node for node in graph.nodes if not into(graph, node)] == ["embed"]


def test_latent_attention() -> None:
    """Down to the ranks and up again; the rotary part bypasses the expansion."""
    graph = layer_graph(tiny("deepseek_v3"))
    assert into(graph, "q_proj") == {"q_norm"}
    assert into(graph, "rope") == {"q_proj", "kv_down_proj"}
    assert into(graph, "fuse_attn") == {"rope", "kv_proj"}
    assert into(layer_graph(tiny("deepseek_v2")), "q_proj") == {"norm_attn"}
