"""Energy of a batch by physics: what its kernels need of a data sheet, times fitted constants.

Each phase takes time = |GPU time, launch time| + host time, draws static power for that time and
spends energy on what it computes and moves, at no more than board power. The network (gnn.py)
learns what this leaves over.

The law uses operators only, so that the same lines are fitted in torch and served in numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.kernels import Kernel, kernel_table
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.phases import SUMS, cost_matrices
from llm_carbon_meter.predictor.measured_engines import nearest_engines

Floats = NDArray[np.float64]

MICRO: Final = 1e-6
TINY_S: Final = 1e-12
"""Keeps the root of an empty phase differentiable."""
LOGIT_BYTES: Final = 4.0
"""Sampling reads logits in float32."""
PACKED_BYTES: Final = 0.9
"""Weights below this size are unpacked before use."""

TERMS: Final = (
    # seconds at the data sheet's rates
    "weights",
    "expert_weights",
    "packed_weights",
    "fp8_weights",
    "fp8_expert_weights",
    "cache",
    "activations",
    "products",
    "expert_products",
    "attention",
    "vector",
    "network",
    "logits",
    # counts, a microsecond each
    "allreduces",
    "expert_layers",
    "fp8_expert_layers",
    "launches",
    "steps",
    "sequence_steps",
)
LAUNCH_TERMS: Final = ("launches",)
"""Time in which the host launches kernels, while the GPU works on earlier ones."""
HOST_TERMS: Final = ("steps", "sequence_steps")
"""Time in which the GPU waits for the host, between two steps; the other terms are the GPU's."""
GROUPS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("weights", "expert_weights", "packed_weights"), "weights"),
    **dict.fromkeys(("products", "expert_products"), "products"),
    **dict.fromkeys(("cache", "activations", "attention", "vector"), "cache"),
    **dict.fromkeys(("launches",), "launches"),
    **dict.fromkeys(("steps",), "steps"),
    **dict.fromkeys(("sequence_steps",), "sequence_steps"),
}
"""Terms whose time an engine scales by a factor of its own."""
ENGINE_FACTORS: Final = (*dict.fromkeys(GROUPS.values()), "static", "dynamic")
GPU_FACTORS: Final = np.array([float(one in ("static", "dynamic")) for one in ENGINE_FACTORS])
"""What a GPU's own deviation from its data sheet multiplies."""
IS_PRODUCT: Final = np.array([float(GROUPS.get(term) == "products") for term in TERMS])
IS_LAUNCH: Final = np.array([float(term in LAUNCH_TERMS) for term in TERMS])
IS_HOST: Final = np.array([float(term in HOST_TERMS) for term in TERMS])
_LINEAR: Final = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "out_proj"),
        *("gate_proj", "up_proj", "down_proj", "router", "lm_head"),
    )
)


def term_matrix(model: ModelSpec, gpu: GpuSpec, tensor_parallel: int) -> Floats:
    """Seconds of every term per unit of every sum, on one GPU of a group, shape (terms, sums).

    Raises:
        SpecError: heads that cannot be divided among the GPUs.
    """
    matrix = dict.fromkeys(TERMS, np.zeros(len(SUMS)))
    costs = cost_matrices(model, tensor_parallel)
    memory = 1 / gpu.bandwidth_bytes_per_s
    for number, kernel in enumerate(kernel_table(model, tensor_parallel)):
        costs_of = [kernel.count * table[number] for table in costs]
        operations = costs_of[0] / gpu.peak(kernel.peak) if kernel.peak else 0 * costs_of[0]
        for term, seconds in _terms(
            model, kernel, operations, costs_of[1] * memory, costs_of[2] * memory
        ):
            matrix[term] = matrix[term] + seconds
        matrix["network"] = matrix["network"] + costs_of[3] / gpu.link_bytes_per_s
        matrix["launches"] = matrix["launches"] + MICRO * kernel.count * _unit("steps")
        if costs_of[3].any():
            matrix["allreduces"] = matrix["allreduces"] + MICRO * kernel.count * _unit("steps")
    experts = MICRO * model.expert_layers * _unit("steps")
    matrix["expert_layers"] = experts
    matrix["fp8_expert_layers"] = experts * (model.compute == "fp8")
    matrix["steps"] = MICRO * _unit("steps")
    matrix["sequence_steps"] = MICRO * _unit("sampled")
    matrix["logits"] = model.vocab_size * LOGIT_BYTES * memory * _unit("sampled")
    return np.stack([matrix[term] for term in TERMS])


def _unit(name: str) -> Floats:
    return np.array([float(name == sum_name) for sum_name in SUMS])


def _terms(
    model: ModelSpec, kernel: Kernel, operations: Floats, weights: Floats, other: Floats
) -> list[tuple[str, Floats]]:
    """Where a kernel's seconds of arithmetic, of weights and of other bytes belong."""
    if kernel.kind == "fuse_attn":
        return [("attention", operations), ("cache", other)]
    if kernel.kind == "recurrent_state":
        return [("vector", operations), ("cache", other)]
    expert = kernel.name.startswith("expert_")
    linear = kernel.kind in _LINEAR
    product = "expert_products" if expert else "products"
    places = [
        (product if linear else "vector", operations),
        ("expert_weights" if expert else "weights", weights),
        ("activations", other),
    ]
    if model.compute == "fp8":
        places.append(("fp8_expert_weights" if expert else "fp8_weights", weights))
    if (model.expert_weight_bytes if expert else model.weight_bytes) < PACKED_BYTES:
        places.append(("packed_weights", weights))
    return places


class Constants(NamedTuple):
    """What is fitted, for one engine or a column of them."""

    rates: Any
    """Per second of each term in prefill and in decode: seconds of GPU, launch and host time, and
    joules above static per board watt; shape (…, 2, terms, 4)."""
    static: Any
    """Share of the board's power that is drawn all the time, shape (…, 1)."""


def seconds_and_energy(static: Any, gpu: Any, launch: Any, host: Any, dynamic: Any) -> Any:
    """Of one phase, the latter in units of board power x 1 s, of its terms times their rates."""
    seconds = (gpu * gpu + launch * launch + TINY_S**2) ** 0.5 + host
    return seconds, static * seconds + dynamic


def throttled(seconds: Any, energy: Any) -> Any:
    """The part of a phase's energy that a GPU spends: it slows before it exceeds board power."""
    return (1 + (energy / seconds) ** 8) ** -0.125


def phase_seconds(constants: Constants, terms: Any) -> Any:
    """Seconds of prefill and decode of a batch, shape (batches, 2), of its terms (…, 2, terms)."""
    return _seconds_and_energy(constants, terms)[0]


def board_seconds(constants: Constants, terms: Any) -> Any:
    """Energy of both phases per GPU in units of board power x 1 s, shape (batches, 2)."""
    seconds, energy = _seconds_and_energy(constants, terms)
    return energy * throttled(seconds, energy)


def _seconds_and_energy(constants: Constants, terms: Any) -> Any:
    parts = (terms[..., None, :] @ constants.rates)[..., 0, :]
    return seconds_and_energy(constants.static, *(parts[..., place] for place in range(4)))


@dataclass(frozen=True, slots=True)
class FittedPhysics:
    """The constants of all engines that were measured, as logarithms."""

    time: Floats
    """Shape (terms,)."""
    energy: Floats
    decode_time: float
    """Of products in decode against prefill, where they have few rows."""
    decode_energy: float
    static: float
    engines: Mapping[str, Floats]
    """``engine version`` -> logarithm of each of `ENGINE_FACTORS`."""
    gpus: Mapping[str, float]
    """GPU -> logarithm of its energy against what its data sheet says; none where not measured."""

    def constants(self, engine: str, version: str, gpu: str) -> Constants:
        """For an engine on a GPU; an engine that was not measured is like its nearest kin."""
        weights = nearest_engines(engine, version, tuple(self.engines))
        factors = sum(weight * self.engines[name] for name, weight in weights.items())
        return constants_of(self, factors + self.gpus.get(gpu, 0.0) * GPU_FACTORS, np)


def constants_of(fitted: Any, factors: Any, library: Any) -> Constants:
    """Effective constants of the factors (…, engine factors), in numpy or in torch."""
    by_name = {name: factors[..., place] for place, name in enumerate(ENGINE_FACTORS)}
    none = factors[..., 0] * 0
    scale = library.stack([by_name.get(GROUPS.get(term, ""), none) for term in TERMS], -1)
    sorts = (IS_PRODUCT, IS_LAUNCH, IS_HOST)
    product, launch, host = sorts if library is np else map(library.from_numpy, sorts)
    gpu = 1 - launch - host
    both = library.stack([product * 0, product])
    time = library.exp((fitted.time + scale)[..., None, :] + fitted.decode_time * both)
    energy = (fitted.energy + by_name["dynamic"][..., None])[..., None, :]
    dynamic = library.exp(energy + fitted.decode_energy * both) * gpu
    return Constants(
        rates=library.stack((time * gpu, time * launch, time * host, dynamic), -1),
        static=library.exp(fitted.static + by_name["static"])[..., None],
    )
