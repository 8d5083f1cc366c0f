"""The graph that the network sees: kernels as nodes, once for prefill and once for decode.

Node features are the paper's, in log space: type [T], dimensions [S], operations [O], memory bytes
[M], network bytes [I], roofline throughput [P]; beside them the kernel's roofline time, whether it
is bound by arithmetic, and its share of its phase. All are per step and for one of its places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.graph import layer_graph
from llm_carbon_meter.kernels import kernel_table
from llm_carbon_meter.phases import coefficients, phase_sums
from llm_carbon_meter.predictor.estimator import Deployment
from llm_carbon_meter.predictor.physics import TERMS, term_matrix
from llm_carbon_meter.specs import ModelSpec

Floats = NDArray[np.float64]

KINDS: Final = (
    *("embed", "norm", "q_proj", "k_proj", "v_proj", "rope", "fuse_attn", "out_proj", "add"),
    *("gate_proj", "up_proj", "act_mlp", "down_proj", "router", "combine", "recurrent_state"),
    *("allreduce", "lm_head", "logit_gather"),
)
BASIS: Final = ("operations", "memory", "network", "time", "bound", "share")
"""What is computed of each node per batch: four logarithms to 10, whether arithmetic takes longest,
and the kernel's share of its phase."""
DYNAMIC: Final[Mapping[str, Mapping[str, float]]] = {
    "operations": {"operations": 0.1},
    "memory": {"memory": 0.1},
    "network": {"network": 0.1},
    "intensity": {"operations": 1.0, "memory": -1.0},
    "throughput": {"operations": 1 / 15, "time": -1 / 15},
    "time": {"time": 0.25},
    "bound": {"bound": 1.0},
    "share": {"share": 1.0},
}
"""The features made of them, as sums; O/M and P are differences of logarithms."""
EXPAND: Final = np.array([[part.get(one, 0.0) for part in DYNAMIC.values()] for one in BASIS])
NODE_FEATURES: Final = (*KINDS, "input", "output", *DYNAMIC)
GLOBAL_TERMS: Final = TERMS[: TERMS.index("allreduces")]
GLOBAL_FEATURES: Final = (
    *(f"{term}_share" for term in GLOBAL_TERMS),
    *("step_time", "batch", "prompt", "output", "gpus", "hidden", "layers", "quantised"),
    *("experts", "vllm", "transformers", "bandwidth", "board_power", "decode"),
)
TINY_S: Final = 1e-9
# Batch, prompt and output as logarithms around 0.
LOG_SCALE: Final = np.array((0.66, 1.0, 1.0))
LOG_SHIFT: Final = np.array((-1.0, -2.5, -2.5))


class Inputs(NamedTuple):
    """What the predictor is asked, for some batches of one deployment."""

    terms: Floats
    """`physics.TERMS` in seconds, shape (batches, 2, terms)."""
    basis: Floats
    """`BASIS`, kernels first so that all graphs are one product: (kernels, batches, 2, basis)."""
    described: Floats
    """`GLOBAL_FEATURES`, shape (batches, 2, features)."""


@lru_cache(maxsize=64)
def neighbours(model: ModelSpec, tensor_parallel: int) -> Floats:
    """Mean over the nodes that a node is linked to, either way; shape (kernels, kernels)."""
    graph = layer_graph(model, tensor_parallel)
    place = {name: number for number, name in enumerate(graph.nodes)}
    linked = np.zeros((len(place), len(place)))
    for source, target in graph.edges:
        linked[place[source], place[target]] = linked[place[target], place[source]] = 1
    return np.asarray(linked / np.maximum(linked.sum(1, keepdims=True), 1))


@lru_cache(maxsize=64)
def static_nodes(model: ModelSpec, tensor_parallel: int) -> Floats:
    """Type and dimensions of every kernel, shape (kernels, kinds + 2)."""
    table = kernel_table(model, tensor_parallel)
    kinds = np.array([[float(kernel.kind == kind) for kind in KINDS] for kernel in table])
    sizes = np.array([[kernel.d_in, kernel.d_out] for kernel in table])
    return np.concatenate((kinds, np.log10(sizes + 1) / 4), axis=1)


@dataclass(frozen=True, slots=True)
class DeploymentGraph:
    """Everything of a deployment that does not change from batch to batch."""

    deployment: Deployment
    term_matrix: Floats
    """Shape (sums, terms)."""
    costs: Floats
    """O, M, I of each kernel and their seconds at the GPU's rates, each time it runs, per unit of
    each sum; shape (6 x kernels, sums)."""
    counts: Floats
    """Shape (kernels, 1)."""
    constants: Floats
    """`GLOBAL_FEATURES` that are the same for all batches, except the phase."""

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentGraph":
        """Prepare a deployment.

        Raises:
            SpecError: heads that cannot be divided among the GPUs.
        """
        model, gpu, parallel = deployment.model, deployment.gpu, deployment.num_gpus
        table, costs = kernel_table(model, parallel), coefficients(model, parallel)
        peaks = np.array([1 / gpu.peak(one.peak) if one.peak else 0.0 for one in table])
        operations, moved = costs.operations, costs.weight_bytes + costs.other_bytes
        seconds = (
            operations * peaks[:, None],
            moved / gpu.bandwidth_bytes_per_s,
            costs.network_bytes / gpu.link_bytes_per_s,
        )
        return cls(
            deployment,
            np.ascontiguousarray(term_matrix(model, gpu, parallel).T),
            np.concatenate((operations, moved, costs.network_bytes, *seconds)),
            np.array([[float(one.count)] for one in table]),
            _constants(deployment),
        )

    def inputs(self, batch: Floats, prompt: Floats, output: Floats) -> Inputs:
        """Features of batches of equal requests, each argument of shape (batches,)."""
        sums = phase_sums(self.deployment.model, batch, prompt, output)
        steps = np.maximum(sums[..., :1], 1.0)
        terms, per_step = sums @ self.term_matrix, (sums / steps).reshape(-1, sums.shape[-1])
        described = self._globals(terms / steps, batch, prompt, output)
        return Inputs(terms, self._basis(per_step, len(batch)), described)

    def _basis(self, sums: Floats, batches: int) -> Floats:
        kernels = len(self.counts)
        costs = (self.costs @ sums.T).reshape(6, kernels, -1)
        computing, moving, sending = costs[3:]
        seconds = np.maximum(np.maximum(computing, moving), sending)
        whole = seconds * self.counts
        basis = np.empty((kernels, len(sums), len(BASIS)))
        basis[..., :3] = np.log10(costs[:3] + 1).transpose(1, 2, 0)
        basis[..., 3] = np.log10(seconds + TINY_S)
        basis[..., 4] = computing > moving
        basis[..., 5] = whole / (whole.sum(0) + TINY_S)
        return basis.reshape(kernels, batches, 2, -1)

    def _globals(self, terms: Floats, batch: Floats, prompt: Floats, output: Floats) -> Floats:
        place = len(GLOBAL_TERMS)
        seconds = terms[..., :place]
        step = seconds.sum(-1)
        features = np.empty((len(batch), 2, len(GLOBAL_FEATURES)))
        features[..., :place] = seconds / (step[..., None] + TINY_S)
        features[..., place] = np.log10(step + TINY_S) / 3 + 1
        logs = np.log10((batch, prompt, output)).T
        features[..., place + 1 : place + 4] = logs[:, None] * LOG_SCALE + LOG_SHIFT
        features[..., place + 4 : -1] = self.constants
        features[..., -1] = (0.0, 1.0)
        return features


def _constants(deployment: Deployment) -> Floats:
    model, gpu = deployment.model, deployment.gpu
    return np.array(
        [
            np.log2(deployment.num_gpus),
            np.log10(model.hidden_size) - 3.5,
            np.log2(model.num_layers) - 5,
            float(model.weight_bytes < 1.5),
            float(model.num_experts > 0),
            float(deployment.engine.casefold() == "vllm"),
            float("transformers" in deployment.engine.casefold()),
            np.log10(gpu.bandwidth_bytes_per_s) - 12.5,
            np.log10(gpu.board_watts) - 2.5,
        ]
    )
