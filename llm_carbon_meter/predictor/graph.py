"""The graph that the network sees: kernels as nodes, once for prefill and once for decode.

Node features are the paper's, in log space: type [T], dimensions [S], operations [O], memory bytes
[M], network bytes [I], roofline throughput [P]; beside them the kernel's roofline time, whether it
is bound by arithmetic, and its share of its phase. All are per step and for one of its places.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.graph import layer_graph
from llm_carbon_meter.kernels import kernel_table
from llm_carbon_meter.phases import coefficients
from llm_carbon_meter.predictor.estimator import Deployment
from llm_carbon_meter.predictor.physics import TERMS, phase_sums, term_matrix
from llm_carbon_meter.specs import ModelSpec

Floats = NDArray[np.float64]

KINDS: Final = (
    *("embed", "norm", "q_proj", "k_proj", "v_proj", "rope", "fuse_attn", "out_proj", "add"),
    *("gate_proj", "up_proj", "act_mlp", "down_proj", "router", "combine", "recurrent_state"),
    *("allreduce", "lm_head", "logit_gather"),
)
DYNAMIC: Final = ("operations", "memory", "network", "intensity", "throughput", "time", "bound")
NODE_FEATURES: Final = (*KINDS, "input", "output", *DYNAMIC, "share")
GLOBAL_TERMS: Final = TERMS[: TERMS.index("allreduces")]
GLOBAL_FEATURES: Final = (
    *(f"{term}_share" for term in GLOBAL_TERMS),
    *("step_time", "batch", "prompt", "output", "gpus", "hidden", "layers", "quantised"),
    *("experts", "vllm", "transformers", "bandwidth", "board_power", "decode"),
)
TINY: Final = 1e-12


class Inputs(NamedTuple):
    """What the predictor is asked, for some batches of one deployment."""

    terms: Floats
    """`physics.TERMS` in seconds, shape (batches, 2, terms)."""
    nodes: Floats
    """`DYNAMIC` and share, shape (batches, 2, kernels, features)."""
    globals: Floats
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
    """O, M, I of each kernel, each time it runs, per unit of each sum; shape (sums, 3 kernels)."""
    counts: Floats
    peaks: Floats
    """Seconds per operation, shape (kernels,)."""
    constants: Floats
    """The last of `GLOBAL_FEATURES`, except the phase."""

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentGraph":
        """Prepare a deployment.

        Raises:
            SpecError: heads that cannot be divided among the GPUs.
        """
        model, gpu, parallel = deployment.model, deployment.gpu, deployment.num_gpus
        table, costs = kernel_table(model, parallel), coefficients(model, parallel)
        moved = costs.weight_bytes + costs.other_bytes
        return cls(
            deployment,
            term_matrix(model, gpu, parallel).T,
            np.concatenate((costs.operations, moved, costs.network_bytes)).T,
            np.array([float(kernel.count) for kernel in table]),
            np.array([1 / gpu.peak(kernel.peak) if kernel.peak else 0.0 for kernel in table]),
            _constants(deployment),
        )

    def inputs(self, batch: Floats, prompt: Floats, output: Floats) -> Inputs:
        """Features of batches of equal requests, each argument of shape (batches,)."""
        sums = phase_sums(self.deployment.model, batch, prompt, output)
        terms = sums @ self.term_matrix
        steps = np.maximum(sums[..., :1], 1.0)
        return Inputs(
            terms, self._nodes(sums / steps), self._globals(terms / steps, batch, prompt, output)
        )

    def _nodes(self, sums: Floats) -> Floats:
        gpu, kernels = self.deployment.gpu, len(self.counts)
        costs = (sums @ self.costs).reshape(*sums.shape[:2], 3, kernels)
        operations, moved, sent = costs[..., 0, :], costs[..., 1, :], costs[..., 2, :]
        computing = operations * self.peaks
        moving = moved * (1 / gpu.bandwidth_bytes_per_s)
        seconds = np.maximum(np.maximum(computing, moving), sent * (1 / gpu.link_bytes_per_s))
        whole = seconds * self.counts
        logs = np.log10(costs + 1)
        return np.stack(
            (
                logs[..., 0, :] / 10,
                logs[..., 1, :] / 10,
                logs[..., 2, :] / 10,
                logs[..., 0, :] - logs[..., 1, :],
                np.log10(operations / (seconds + TINY) + 1) / 15,
                np.log10(seconds + 1e-9) / 4 + 1,
                (computing > moving).astype(np.float64),
                whole / (whole.sum(-1, keepdims=True) + TINY),
            ),
            axis=-1,
        )

    def _globals(self, terms: Floats, batch: Floats, prompt: Floats, output: Floats) -> Floats:
        seconds = terms[..., : len(GLOBAL_TERMS)]
        step = seconds.sum(-1, keepdims=True) + TINY
        features = np.empty((len(batch), 2, len(GLOBAL_FEATURES)))
        changing = len(GLOBAL_TERMS) + 4
        features[..., : len(GLOBAL_TERMS)] = seconds / step
        features[..., len(GLOBAL_TERMS)] = np.log10(step[..., 0]) / 3 + 1
        features[..., len(GLOBAL_TERMS) + 1] = np.log2(batch)[:, None] / 5 - 1
        features[..., len(GLOBAL_TERMS) + 2] = np.log10(prompt)[:, None] - 2.5
        features[..., len(GLOBAL_TERMS) + 3] = np.log10(output)[:, None] - 2.5
        features[..., changing:-1] = self.constants
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
