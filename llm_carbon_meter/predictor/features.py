"""The graph that the network sees: kernels as nodes, for prefill and for decode.

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

from llm_carbon_meter.physics.kernel_graph import layer_graph
from llm_carbon_meter.physics.kernels import kernel_table
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.phases import SUMS, cost_matrices, mean_steps
from llm_carbon_meter.predictor.energy_model import Deployment, Numbers
from llm_carbon_meter.predictor.step_law import TERMS, term_matrix

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
SIZES: Final = ("sampled", "tokens", "kv")
"""Of `phases.SUMS`: how large a step is."""
STEP_FEATURES: Final = (*(f"{term}_share" for term in GLOBAL_TERMS), "step_time", *SIZES)
"""Of the whole step: what its time consists of, and logarithms to 10 of that and of its sizes."""
GLOBAL_FEATURES: Final = (
    *STEP_FEATURES,
    *("gpus", "hidden", "layers", "quantised", "experts"),
    *("vllm", "transformers", "bandwidth", "board_power", "decode"),
)
REFERENCE_LOADS: Final = ((1.0, 512.0, 256.0), (32.0, 512.0, 256.0), (256.0, 512.0, 256.0))
"""Batch, prompt and output tokens at which the network sees a deployment."""
REFERENCE_FEATURES: Final = (
    *(*KINDS, "input", "output"),
    *(f"{name}_{number}" for number in range(2 * len(REFERENCE_LOADS)) for name in DYNAMIC),
)
"""Of a kernel: its type and dimensions, and `DYNAMIC` of both phases at each of those loads."""
SHARES: Final = [
    place for place, name in enumerate(REFERENCE_FEATURES) if name.startswith("share_")
]
REFERENCE_GLOBALS: Final = (
    *(f"{name}_{number}" for number in range(2 * len(REFERENCE_LOADS)) for name in STEP_FEATURES),
    *GLOBAL_FEATURES[len(STEP_FEATURES) : -1],
)
TINY_S: Final = 1e-9
ABOVE_0: Final = np.array((1.0, 1.0, 1.0, TINY_S), np.float32)
"""Added to O, M, I and seconds before their logarithm."""


class Inputs(NamedTuple):
    """What the predictor is asked, for some batches of one deployment."""

    terms: Floats
    """`step_law.TERMS` of a step in seconds, shape (batches, 2, terms)."""
    basis: Floats
    """`BASIS`, kernels first so that all graphs are one product: (kernels, batches, 2, basis)."""
    described: Floats
    """`STEP_FEATURES`, shape (batches, 2, features)."""


class ReferenceGraph(NamedTuple):
    """A deployment as the network sees it."""

    nodes: Floats
    """`REFERENCE_FEATURES`, shape (kernels, features)."""
    described: Floats
    """`REFERENCE_GLOBALS`, shape (features,)."""


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
    linear: Floats
    """Per unit of each sum: `step_law.TERMS`, the sum of `GLOBAL_TERMS`, `SIZES`, and for
    each kernel O, M, I and their seconds at the GPU's rates, each time it runs; (sums, columns)."""
    counts: Floats
    """How many times each kernel runs in a step, shape (kernels, 1)."""
    constants: Floats
    """`GLOBAL_FEATURES` after `STEP_FEATURES`, for prefill and for decode: (2, features)."""

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentGraph":
        """Prepare a deployment.

        Raises:
            SpecError: heads that cannot be divided among the GPUs.
        """
        model, gpu, parallel = deployment.model, deployment.gpu, deployment.num_gpus
        table, costs = kernel_table(model, parallel), cost_matrices(model, parallel)
        peaks = np.array([1 / gpu.peak(item.peak) if item.peak else 0.0 for item in table])
        operations, moved = costs.operations, costs.weight_bytes + costs.other_bytes
        seconds = (
            operations * peaks[:, None],
            moved / gpu.bandwidth_bytes_per_s,
            costs.network_bytes / gpu.link_bytes_per_s,
        )
        terms = term_matrix(model, gpu, parallel, deployment.engine)
        time = terms[: len(GLOBAL_TERMS)].sum(0, keepdims=True)
        sizes = np.array([[float(name == item) for item in SUMS] for name in SIZES])
        of_kernels = np.stack((operations, moved, costs.network_bytes, *seconds), axis=1)
        rows = (terms, time, sizes, of_kernels.reshape(-1, len(SUMS)))
        return cls(
            deployment,
            np.concatenate(rows).T.astype(np.float32, order="C"),
            np.array([[item.count] for item in table], np.float32),
            _constants(deployment),
        )

    def reference(self) -> ReferenceGraph:
        """The deployment at `REFERENCE_LOADS`."""
        inputs = self.inputs(*np.array(REFERENCE_LOADS).T)
        fixed = static_nodes(self.deployment.model, self.deployment.num_gpus)
        changing = (inputs.basis @ EXPAND).reshape(len(fixed), -1)
        return ReferenceGraph(
            np.concatenate((fixed, changing), axis=1),
            np.concatenate((inputs.described.reshape(-1), self.constants[0, :-1])),
        )

    def inputs(self, batch: Numbers, prompt: Numbers, output: Numbers) -> Inputs:
        """Features of batches of equal requests, each argument one number or shape (batches,)."""
        steps = mean_steps(self.deployment.model, batch, prompt, output)
        sums = np.array(steps, np.float32).reshape(2, len(SUMS), -1).transpose(2, 0, 1)
        per_step = sums.reshape(-1, len(SUMS)).dot(self.linear)
        last = len(TERMS) + 1 + len(SIZES)
        kernels = per_step[:, last:].reshape(len(per_step), -1, len(BASIS))
        basis = self._basis(kernels.transpose(1, 0, 2).copy())
        terms, sizes = per_step[:, : len(TERMS)], per_step[:, len(TERMS) : last]
        shares = terms[:, : len(GLOBAL_TERMS)] / sizes[:, :1]
        return Inputs(
            terms.reshape(-1, 2, len(TERMS)),
            basis.reshape(len(basis), -1, 2, len(BASIS)),
            np.concatenate((shares, np.log10(sizes)), 1).reshape(-1, 2, len(STEP_FEATURES)),
        )

    def _basis(self, costs: Floats) -> Floats:
        """`BASIS`, in place of O, M, I and the seconds that each takes: (kernels, graphs, 6)."""
        computing, moving, sending = costs[..., 3], costs[..., 4], costs[..., 5]
        bound = computing > moving
        np.maximum(computing, moving, out=computing)
        np.maximum(computing, sending, out=computing)
        whole = computing * self.counts
        np.divide(whole, np.add.reduce(whole), out=costs[..., 5])
        costs[..., 4] = bound
        np.log10(costs[..., :4] + ABOVE_0, out=costs[..., :4])
        return costs


def _constants(deployment: Deployment) -> Floats:
    model, gpu = deployment.model, deployment.gpu
    same = [
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
    return np.array([[*same, 0.0], [*same, 1.0]], np.float32)
