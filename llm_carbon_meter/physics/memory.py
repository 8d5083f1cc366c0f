"""What fits in the memory of the GPUs: weights, and the cache of so many requests beside them.

Per GPU of a tensor-parallel group, as vLLM divides its memory: a share of the GPU is the engine's;
of that, weights and the activations of its largest step are taken, and the cache has the rest.
Pages round every request up to `BLOCK_TOKENS`. Requests under way are of all ages, so that many of
them hold their prompts and half of their outputs on average; a single one must fit to its end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Final, NamedTuple

from llm_carbon_meter.physics.gpu_specs import GIGA, GpuSpec
from llm_carbon_meter.physics.kernels import (
    STATE_BYTES,
    kernel_table,
    step_costs,
    weight_memory_bytes,
)
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.parallel import group_sizes
from llm_carbon_meter.records import SpecError

UTILISATION: Final = 0.92
"""Share of a GPU's memory that an engine uses: the default of vLLM's ``gpu_memory_utilization``."""
FIXED_BYTES: Final = 0.5 * GIGA
"""CUDA context, CUDA graphs and buffers of collectives, whatever the model."""
LOGIT_BYTES: Final = 4.0
"""Sampling holds the logits in float32."""
BLOCK_TOKENS: Final = 16
"""Of a page of the cache, vLLM's default."""
GIBI: Final = 2.0**30
FEWER_BITS: Final = {"8-bit": 1.0, "4-bit": 0.5625}
"""Bytes of a weight, its scales included, in formats that a model can be quantised to."""


class ServerLimits(NamedTuple):
    """What a server takes on at once unless told otherwise."""

    step_tokens: int
    """vLLM's ``max_num_batched_tokens``."""
    sequences: int
    """vLLM's ``max_num_seqs``."""


def server_limits(gpu: GpuSpec) -> ServerLimits:
    """The defaults of vLLM's server on a GPU, which go with its memory."""
    if gpu.total_bytes >= 160 * GIBI:
        return ServerLimits(16384, 1024)
    if gpu.total_bytes >= 70 * GIBI and not gpu.name.startswith("A100"):
        return ServerLimits(8192, 1024)
    return ServerLimits(2048, 256)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the memory of each GPU of a deployment holds, in bytes."""

    model: ModelSpec
    gpu: GpuSpec
    num_gpus: int
    """Of the tensor-parallel group."""
    weight_bytes: float
    reserved_bytes: float
    """For activations of the largest step, and `FIXED_BYTES`."""
    token_bytes: float
    """Of a cached token, in the layers that see everything."""
    windowed_token_bytes: float
    """In the layers with a sliding window."""
    sequence_bytes: float
    """Recurrent state of a request, float32."""

    @property
    def usable_bytes(self) -> float:
        """What the engine takes of the GPU."""
        return UTILISATION * self.gpu.total_bytes

    @property
    def cache_bytes(self) -> float:
        """What is left for the cache; negative where the weights do not fit."""
        return self.usable_bytes - self.weight_bytes - self.reserved_bytes

    def request_bytes(self, tokens: float) -> float:
        """Cache of a request of so many tokens, prompt and output together."""
        held = ceil(tokens / BLOCK_TOKENS) * BLOCK_TOKENS
        seen = min(held, self.model.sliding_window or held)
        return self.token_bytes * held + self.windowed_token_bytes * seen + self.sequence_bytes

    def most(self, prompt_tokens: float, output_tokens: float) -> int:
        """The largest number of such requests that fit at once; 0 where none does."""
        if self.cache_bytes < self.request_bytes(prompt_tokens + output_tokens):
            return 0
        held = self.request_bytes(prompt_tokens + output_tokens / 2)
        return int(self.cache_bytes // held)


def memory_of(model: ModelSpec, gpu: GpuSpec, num_gpus: int, num_stages: int = 1) -> Memory:
    """Divide the memory of a deployment.

    Args:
        model: its shape.
        gpu: its data sheet.
        num_gpus: of the tensor-parallel group.
        num_stages: of pipeline parallelism, each with its part of the layers.

    Raises:
        SpecError: the heads cannot be divided among the GPUs.
    """
    needs, limits = _needs(model, num_gpus), server_limits(gpu)
    activations = limits.step_tokens * needs.token_activation_bytes
    logits = limits.sequences * model.vocab_size / num_gpus * LOGIT_BYTES
    return Memory(
        model,
        gpu,
        num_gpus,
        needs.weight_bytes / num_stages,
        FIXED_BYTES + activations + logits,
        needs.token_bytes / num_stages,
        needs.windowed_token_bytes / num_stages,
        needs.sequence_bytes / num_stages,
    )


class _Needs(NamedTuple):
    """Bytes on each GPU of a group, whatever the GPU."""

    weight_bytes: float
    token_activation_bytes: float
    """Of a step's token in the widest kernel, with the residual beside it."""
    token_bytes: float
    windowed_token_bytes: float
    sequence_bytes: float


@lru_cache(maxsize=64)
def _needs(model: ModelSpec, num_gpus: int) -> _Needs:
    costs = step_costs(model, num_gpus)
    full, windowed = _stored(model, costs.bytes_per_kv, costs.bytes_per_windowed_kv)
    widths = [
        kernel.d_in + kernel.d_out
        for kernel in kernel_table(model, num_gpus)
        if kernel.ops_per_token and kernel.kind != "recurrent_state"
    ]
    return _Needs(
        weight_memory_bytes(model, num_gpus),
        (max(widths) + 2 * model.hidden_size) * model.activation_bytes,
        full,
        windowed,
        STATE_BYTES * model.recurrent_state * model.recurrent_layers / num_gpus,
    )


def _stored(model: ModelSpec, full: float, windowed: float) -> tuple[float, float]:
    """Of the bytes that a step reads of a cached token, those that are kept: layers that share an
    earlier one's keys and values keep none, and a sparse attention chooses from all of them."""
    layers = model.attention_layers - model.windowed_layers
    full *= 1 - model.kv_shared_layers / max(layers, 1)
    windowed *= 1 - model.kv_shared_windowed / max(model.windowed_layers, 1)
    return (full + windowed / model.indexer.stride, 0.0) if model.indexer else (full, windowed)


def check_context(model: ModelSpec, prompt_tokens: float, output_tokens: float) -> None:
    """Refuse a request that is longer than the model's context.

    Raises:
        SpecError: says how long it is and how long it may be.
    """
    tokens = prompt_tokens + output_tokens
    if model.max_context and tokens > model.max_context:
        raise SpecError(
            f"{prompt_tokens:g} prompt and {output_tokens:g} output tokens are {tokens:g}; "
            f"the context of {model.name} holds {model.max_context}"
        )


def check_weights(memory: Memory) -> None:
    """Refuse a deployment whose GPUs do not hold the weights.

    Raises:
        SpecError: says what they need and have, and what would work.
    """
    if memory.cache_bytes <= 0:
        raise SpecError(
            f"{memory.model.name} does not fit on {_gpus(memory)}: "
            f"{_gigabytes(memory.weight_bytes)} of weights on each, room for "
            f"{_gigabytes(memory.usable_bytes - memory.reserved_bytes)}; "
            f"{_remedy(memory, BLOCK_TOKENS)}"
        )


def check_memory(
    memory: Memory, concurrency: float, prompt_tokens: float, output_tokens: float
) -> None:
    """Refuse requests whose weights and cache the GPUs do not hold.

    Args:
        memory: of the deployment.
        concurrency: requests at once.
        prompt_tokens: of each.
        output_tokens: of each.

    Raises:
        SpecError: says what they need and have, and what would work.
    """
    check_weights(memory)
    most = memory.most(prompt_tokens, output_tokens)
    if most < concurrency:
        tokens = prompt_tokens + output_tokens
        need = (
            f"the cache of {tokens:g} tokens takes {_gigabytes(memory.request_bytes(tokens))} on "
            f"each, {_gigabytes(memory.cache_bytes)} are left beside the weights"
        )
        if not most:
            raise SpecError(
                f"no such request of {memory.model.name} fits on {_gpus(memory)}: {need}; "
                f"{_remedy(memory, tokens)}"
            )
        raise SpecError(
            f"concurrency is {concurrency:g}; at most {most} such requests of "
            f"{memory.model.name} fit on {_gpus(memory)} at once: {need}"
        )


def _remedy(memory: Memory, tokens: float) -> str:
    """Which other deployments of the model hold a request."""
    found = list(_remedies(memory, tokens))
    return "it fits " + " or ".join(found) if found else "no group of these GPUs holds it"


def _remedies(memory: Memory, tokens: float) -> Iterator[str]:
    model, gpu, num_gpus = memory.model, memory.gpu, memory.num_gpus
    whole = gpu.part == 1  # GPUs exchange results, parts of one do not
    larger = [size for size in group_sizes(model) if size > num_gpus and whole]
    fitting = (size for size in larger if memory_of(model, gpu, size).most(tokens, 0))
    for size in fitting:
        yield f"on {size} GPUs"
        break
    for words, element in FEWER_BITS.items():
        if model.weight_bytes > element or model.expert_weight_bytes > element:
            fewer = replace(
                model,
                weight_bytes=min(model.weight_bytes, element),
                expert_weight_bytes=min(model.expert_weight_bytes, element),
            )
            if memory_of(fewer, gpu, num_gpus).most(tokens, 0):
                yield f"with {words} weights"
                return


def _gpus(memory: Memory) -> str:
    return f"{memory.num_gpus} x {memory.gpu.name}"


def _gigabytes(amount: float) -> str:
    return f"{amount / GIGA:.3g} GB"
