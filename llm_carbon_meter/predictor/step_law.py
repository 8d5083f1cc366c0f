"""The law of a step: its time and energy, of what its kernels need of a data sheet.

    seconds = |GPU time, launch time| + host time
    energy  = static power x seconds + active power x GPU time + what is moved and computed

GPU, launch and host time are sums of terms (`TERMS`) times rates, but that a kernel moves while it
computes: of both, the longer counts (`KERNELS`). A step that would draw more than the board's power
takes longer and spends less; where the GPU's limit is lower, that power is the limit
(`FittedPhysics.at_limit`). The rates are fitted (fitted_physics.py); a deployment's own differ from
them by its `FACTORS`.

Operators only, so that the same lines are fitted in torch and served in numpy. Every term raises
time and energy, whatever the rates: longer requests never cost less, larger batches never cost more
per request, and power never exceeds the limit.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.kernels import Kernel, kernel_table
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.phases import SUMS, cost_matrices

Floats = NDArray[np.float64]

MICRO: Final = 1e-6
TINY_S: Final = 1e-12
"""Keeps the root of an empty phase differentiable."""
SHARPNESS: Final = 16.0
"""How abruptly the board's limit sets in."""
SLOWED: Final = 0.45
"""Beyond the limit by a factor x a GPU takes x^0.45 times as long, at lower voltage: dynamic power
goes with about the 2.2nd power of the clock."""
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
    "repeated_cache",
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
    "block_scaled_layers",
    "launches",
    "int8_layers",
    "nf4_layers",
    "steps",
    "sequence_steps",
)
KERNELS: Final = (
    (("weights", "packed_weights", "fp8_weights", "activations"), ("products",)),
    (("expert_weights", "fp8_expert_weights"), ("expert_products",)),
    (("cache", "repeated_cache"), ("attention",)),
)
"""Kinds of kernels, one after the other: what each moves, and what it computes meanwhile."""
LAUNCH_TERMS: Final = ("launches", "int8_layers", "nf4_layers")
"""Time in which the host launches kernels, while the GPU works on earlier ones."""
HOST_TERMS: Final = ("steps", "sequence_steps")
"""Time in which the GPU waits for the host, between two steps; the other terms are the GPU's."""
COUNTS: Final = TERMS[TERMS.index("allreduces") :]
"""Terms that take time; what they draw is static or active power."""
FACTORS: Final = (
    *("weights", "products", "cache", "launches", "steps", "sequence_steps"),
    *("static", "dynamic"),
)
"""What a deployment's own law is multiplied by: the times of groups of terms, and two powers."""
GROUPS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("weights", "expert_weights", "packed_weights", "fp8_weights"), "weights"),
    **dict.fromkeys(("fp8_expert_weights", "activations", "vector"), "weights"),
    **dict.fromkeys(("products", "expert_products", "attention"), "products"),
    **dict.fromkeys(("cache", "repeated_cache"), "cache"),
    **dict.fromkeys(("launches", "int8_layers", "nf4_layers", "allreduces"), "launches"),
    **dict.fromkeys(("expert_layers", "block_scaled_layers"), "launches"),
    **dict.fromkeys(("steps",), "steps"),
    **dict.fromkeys(("sequence_steps", "logits"), "sequence_steps"),
}
"""The factor of a term's time; the network has none."""
_STATIC, _DYNAMIC = FACTORS.index("static"), FACTORS.index("dynamic")
SCALED: Final = np.array(
    [[float(GROUPS.get(term) == factor) for term in TERMS] for factor in FACTORS]
)
"""Which factor multiplies which term's time, shape (factors, terms)."""
IS_LAUNCH: Final = np.array([float(term in LAUNCH_TERMS) for term in TERMS])
IS_HOST: Final = np.array([float(term in HOST_TERMS) for term in TERMS])
IS_GPU: Final = 1 - IS_LAUNCH - IS_HOST


def _columns() -> Floats:
    """Which terms are added up first, shape (columns, terms): what kinds of kernels move, what they
    compute, what else takes GPU time, launch and host time."""
    sides = [terms for side in range(2) for terms in (kind[side] for kind in KERNELS)]
    kernels = np.array([[float(term in side) for term in TERMS] for side in sides])
    return np.stack((*kernels, IS_GPU - kernels.sum(0), IS_LAUNCH, IS_HOST))


COLUMNS: Final = _columns()
_QUANTISED: Final = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "out_proj", "down_to_rank"),
        *("gate_proj", "up_proj", "down_proj"),
    )
)
"""Linear kernels in the number format of the model's weights."""
_LINEAR: Final = _QUANTISED | {"router", "lm_head"}


def repeats_cache(engine: str) -> bool:
    """Whether an engine writes keys and values out for every query head before it attends.

    transformers does (``repeat_kv`` in its modelling code); serving engines have kernels that share
    them.
    """
    return "transformers" in engine.casefold()


def term_matrix(model: ModelSpec, gpu: GpuSpec, tensor_parallel: int, engine: str) -> Floats:
    """Seconds of every term per unit of every sum, on one GPU of a group, shape (terms, sums).

    Raises:
        SpecError: heads that cannot be divided among the GPUs.
    """
    matrix = dict.fromkeys(TERMS, np.zeros(len(SUMS)))
    costs, memory = cost_matrices(model, tensor_parallel), 1 / gpu.bandwidth_bytes_per_s
    for number, kernel in enumerate(kernel_table(model, tensor_parallel)):
        operations, *moved = (kernel.count * table[number] for table in costs[:3])
        computing = operations / gpu.peak(kernel.peak) if kernel.peak else 0 * operations
        weights, other = (part * memory for part in moved)
        for term, seconds in _terms(model, kernel, computing, weights, other):
            matrix[term] = matrix[term] + seconds
        sent = kernel.count * costs.network_bytes[number]
        matrix["network"] = matrix["network"] + sent / gpu.link_bytes_per_s
        launched = MICRO * kernel.count * _unit("steps")
        matrix["launches"] = matrix["launches"] + launched
        if sent.any():
            matrix["allreduces"] = matrix["allreduces"] + launched
        if kernel.kind in _QUANTISED and model.unpacked_as:
            name = f"{model.unpacked_as}_layers"
            matrix[name] = matrix[name] + launched
    if repeats_cache(engine):
        group = model.num_heads / model.num_kv_heads
        matrix["repeated_cache"] = (group - 1) * _of_contexts(matrix["cache"])
    experts = MICRO * model.expert_layers * _unit("steps")
    matrix["expert_layers"] = experts
    matrix["block_scaled_layers"] = experts * model.block_scaled
    matrix["steps"] = MICRO * _unit("steps")
    matrix["sequence_steps"] = MICRO * _unit("sampled")
    matrix["logits"] = model.vocab_size * LOGIT_BYTES * memory * _unit("sampled")
    return np.stack([matrix[term] for term in TERMS])


def _unit(name: str) -> Floats:
    return np.array([float(name == sum_name) for sum_name in SUMS])


def _of_contexts(row: Floats) -> Floats:
    """The part of a term that goes with the context read, not with new tokens."""
    return row * (_unit("kv") + _unit("windowed_kv"))


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
    if kernel.kind not in _QUANTISED:
        return places
    if kernel.peak == "fp8":
        places.append(("fp8_expert_weights" if expert else "fp8_weights", weights))
    if kernel.weight_element < PACKED_BYTES:
        places.append(("packed_weights", weights))
    return places


class Constants(NamedTuple):
    """The law of a deployment, or of a column of them."""

    rates: Any
    """Per second of each term: its seconds in each of the `COLUMNS`, and joules per board watt
    beyond static and active power; shape (…, terms, columns + 1)."""
    static: Any
    """Share of the board's power that is drawn all the time, shape (…, 1)."""
    active: Any
    """Share that is drawn besides while the GPU works, shape (…, 1)."""


def constants_of(fitted: Any, factors: Any, library: Any) -> Constants:
    """Constants of the logarithms of factors, shape (…, factors), in numpy or in torch."""
    masks = (SCALED, IS_GPU, *COLUMNS)
    scaled, gpu, *columns = (
        masks if library is np else [fitted.time.new_tensor(mask) for mask in masks]
    )
    time = library.exp(fitted.time + factors @ scaled)
    dynamic = library.exp(fitted.energy + factors[..., _DYNAMIC, None]) * gpu
    return Constants(
        rates=library.stack((*(time * column for column in columns), dynamic), -1),
        static=library.exp(fitted.static + factors[..., _STATIC])[..., None],
        active=library.exp(fitted.active + factors[..., _DYNAMIC])[..., None],
    )


class Spent(NamedTuple):
    """What steps take, per GPU."""

    seconds: Any
    boards: Any
    """Energy in units of board power x 1 s."""


def spent(constants: Constants, terms: Any) -> Spent:
    """Time and energy of phases or steps of the terms (…, phases, terms), shapes (…, phases)."""
    parts, kinds = terms @ constants.rates, len(KERNELS)
    kernels = longer(parts[..., :kinds], parts[..., kinds : 2 * kinds])
    other, launch, host, dynamic = (parts[..., place] for place in range(2 * kinds, 2 * kinds + 4))
    gpu = kernels.sum(-1) + other
    seconds = longer(gpu, launch) + host
    boards = constants.static * seconds + constants.active * gpu + dynamic
    beyond = (1 + (boards / seconds) ** SHARPNESS) ** (1 / SHARPNESS)
    return Spent(seconds * beyond**SLOWED, boards * beyond ** (SLOWED - 1))


def longer(one: Any, other: Any) -> Any:
    """What two that go on at once take: |a, b| = (a^4 + b^4)^(1/4)."""
    one, other = one * one, other * other
    return (one * one + other * other + TINY_S**4) ** 0.25
