"""The kernels of a model as a graph: what feeds what, residual edges included.

One layer of each kind stands for all of that kind, between embedding and LM head. Plain data;
what a kernel costs is in `phases`.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from llm_carbon_meter.physics.kernels import kernel_table
from llm_carbon_meter.physics.model_specs import ModelSpec

Edge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class LayerGraph:
    """Kernels by the names that `phases.phase_totals` gives them."""

    nodes: tuple[str, ...]
    counts: tuple[int, ...]
    """How often each stands in the model."""
    edges: tuple[Edge, ...]
    """(from, to)"""


def chain(*names: str) -> list[Edge]:
    """Edges from each node to the next."""
    return list(pairwise(names))


def fan(sources: Iterable[str], targets: Sequence[str]) -> list[Edge]:
    """Edges from every source to every target."""
    return [(source, target) for source in sources for target in targets]


# Windowed layers share the projections of the others, or have heads of their own.
_SAME_HEADS: Final[Sequence[Edge]] = (
    *fan(["rope", "v_proj", "kv_proj"], ["fuse_attn_windowed"]),
    ("fuse_attn_windowed", "out_down_proj"),
)
_OWN_HEADS: Final[Sequence[Edge]] = (
    *fan(["norm_attn"], ["q_proj_windowed", "k_proj_windowed", "v_proj_windowed"]),
    *fan(["q_proj_windowed", "k_proj_windowed"], ["qk_norm_windowed"]),
    *chain("qk_norm_windowed", "rope_windowed", "fuse_attn_windowed"),
    *chain("v_proj_windowed", "fuse_attn_windowed", "out_proj_windowed", "allreduce_1"),
)
# Every kernel of every family. `layer_input` and `layer_sum` only hold edges together.
_EDGES: Final[Sequence[Edge]] = (
    *chain("embed", "embed_allreduce", "embed_proj", "embed_norm", "layer_input", "norm_attn"),
    *fan(["norm_attn"], ["k_proj", "v_proj"]),
    *chain("norm_attn", "q_down_proj", "q_norm", "q_proj"),
    *chain("norm_attn", "kv_down_proj", "kv_norm", "kv_proj"),
    ("kv_down_proj", "rope"),
    *fan(["q_proj", "k_proj"], ["qk_norm"]),
    ("qk_norm", "rope"),
    *fan(["rope", "v_proj", "kv_proj"], ["fuse_attn"]),
    *chain("fuse_attn", "out_down_proj", "out_proj"),
    *fan(["norm_attn"], ["index_q_proj", "index_k_proj", "index_gates"]),
    *fan(["index_q_proj", "index_k_proj", "index_gates"], ["index_attn"]),
    ("index_attn", "fuse_attn_windowed"),
    *chain("norm_attn", "extra_proj", "add_attn"),
    *chain("norm_attn", "recurrent_in_proj", "recurrent_state", "recurrent_out_proj"),
    *fan(["out_proj", "recurrent_out_proj"], ["allreduce_1"]),
    *chain("allreduce_1", "post_norm_attn", "add_attn"),
    *fan(["norm_mlp"], ["gate_proj", "up_proj", "router", "latent_in_proj"]),
    *fan(["latent_in_proj"], ["expert_gate_proj", "expert_up_proj"]),
    *fan(["norm_mlp"], ["shared_gate_proj", "shared_up_proj", "shared_gate"]),
    *fan(["gate_proj", "up_proj"], ["act_mlp"]),
    *chain("act_mlp", "down_proj", "layer_sum"),
    *fan(["router"], ["expert_gate_proj", "expert_up_proj", "combine"]),
    *fan(["expert_gate_proj", "expert_up_proj"], ["expert_act_mlp"]),
    *chain("expert_act_mlp", "expert_down_proj", "combine"),
    *fan(["shared_gate_proj", "shared_up_proj"], ["shared_act_mlp"]),
    *chain("shared_act_mlp", "shared_down_proj", "combine"),
    *chain("shared_gate", "combine", "latent_out_proj", "layer_sum"),
    *chain("layer_sum", "allreduce_2", "post_norm_mlp", "add_mlp"),
    # residuals
    ("layer_input", "add_attn"),
    ("add_attn", "add_mlp"),
    *chain("add_mlp", "final_norm", "head_proj", "lm_head", "logit_gather"),
)
_BYPASSED: Final = frozenset(
    (
        *("embed_allreduce", "embed_proj", "embed_norm", "layer_input", "layer_sum"),
        *("q_down_proj", "q_norm", "qk_norm", "rope", "qk_norm_windowed", "rope_windowed"),
        *("out_down_proj", "latent_in_proj", "latent_out_proj"),
        *("allreduce_1", "allreduce_2", "post_norm_attn", "post_norm_mlp", "norm_mlp"),
        *("final_norm", "head_proj"),
    )
)
"""Where one of these is missing its input goes straight on; no path leads over others."""


def layer_graph(model: ModelSpec, tensor_parallel: int = 1) -> LayerGraph:
    """The graph of a model on one GPU of a tensor-parallel group."""
    counts = {kernel.name: kernel.count for kernel in kernel_table(model, tensor_parallel)}
    windowed = _OWN_HEADS if model.windowed_heads else _SAME_HEADS
    edges = _without_missing([*_EDGES, *windowed, *_mlp_input(model, counts)], counts)
    return LayerGraph(tuple(counts), tuple(counts.values()), edges)


def _mlp_input(model: ModelSpec, names: Collection[str]) -> list[Edge]:
    """A parallel MLP reads the layer's input, by its own norm or the attention's."""
    if not model.parallel_attention:
        return [("add_attn", "norm_mlp")]
    return [("layer_input" if "norm_mlp" in names else "norm_attn", "norm_mlp")]


def _without_missing(edges: Iterable[Edge], names: Collection[str]) -> tuple[Edge, ...]:
    """Edges between kernels that are there, bypassing the ones that are not."""
    present = [edge for edge in edges if all(end in names or end in _BYPASSED for end in edge)]
    for missing in sorted(_BYPASSED - set(names)):
        sources = [source for source, target in present if target == missing]
        targets = [target for source, target in present if source == missing]
        present = [edge for edge in present if missing not in edge] + fan(sources, targets)
    return tuple(dict.fromkeys(present))
