"""Operations, memory bytes and network bytes of every kernel of a decoder, per GPU.

First principles, per engine step, so that it fits continuous batching. A step is described by
T tokens, ctx = sum over new tokens of the context each attends to, kv = context read, n_s sampled
positions; every kernel is linear in them, except that experts are touched X(T) times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.specs import ModelSpec

Floats = npt.NDArray[np.float64]

RMS_NORM_OPS, LAYER_NORM_OPS, ROPE_OPS = 4.0, 7.0, 3.0


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel; operations, bytes read + written, and bytes sent over the interconnect."""

    name: str
    count: int
    """How often it stands in the model."""
    ops_per_token: float = 0.0
    ops_per_context: float = 0.0
    ops_per_sample: float = 0.0
    weight_bytes: float = 0.0
    """Read once per step, however many tokens."""
    expert_bytes: float = 0.0
    """Weights of one expert, read for every expert that the step touches."""
    bytes_per_token: float = 0.0
    bytes_per_kv: float = 0.0
    bytes_per_sample: float = 0.0
    network_per_token: float = 0.0
    network_per_sample: float = 0.0
    windowed: bool = False
    """Contexts are those of the sliding window."""
    sampled_only: bool = False
    """Weights are read only in steps that sample."""


def kernel_table(model: ModelSpec, tensor_parallel: int = 1) -> tuple[Kernel, ...]:
    """Every kernel of a model under tensor parallelism."""
    windowed = (model.num_layers + 1) // 2 if model.sliding_window else 0
    layers = model.num_layers
    return (
        *_attention(model, tensor_parallel),
        *_fuse_attention(model, tensor_parallel, layers - windowed, windowed),
        *(_experts if model.num_experts else _mlp)(model, tensor_parallel),
        *_all_reduce(model, tensor_parallel, 2 * layers + 1),
        *_around(model, tensor_parallel),
    )


def _linear(
    model: ModelSpec, name: str, d_in: float, d_out: float, *, store: float, bias: bool
) -> Kernel:
    """A linear kernel of d_in x d_out; ``store`` is the bytes per stored output element."""
    return Kernel(
        name,
        model.num_layers,
        ops_per_token=2 * d_in * d_out + (d_out if bias else 0),
        weight_bytes=d_in * d_out * model.weight_bytes + (2 * d_out if bias else 0),
        bytes_per_token=d_in * model.activation_bytes + d_out * store,
    )


def _attention(model: ModelSpec, tp: int) -> list[Kernel]:
    h, d, element = model.hidden_size, model.head_dim, model.activation_bytes
    query = model.num_heads * d / tp
    key = model.num_kv_heads * d * _kv_share(model, tp)
    kernels = [
        _norm(model, "norm", model.num_layers * model.norms_per_layer),
        _linear(model, "q_proj", h, query, store=element, bias=model.qkv_bias),
        _linear(model, "k_proj", h, key, store=model.kv_bytes, bias=model.qkv_bias),
        _linear(model, "v_proj", h, key, store=model.kv_bytes, bias=model.qkv_bias),
        _linear(model, "out_proj", query, h, store=element, bias=model.linear_bias),
        Kernel("add", 2 * model.num_layers, ops_per_token=h, bytes_per_token=3 * h * element),
    ]
    if model.rope:
        kernels.append(
            Kernel(
                "rope",
                model.num_layers,
                ops_per_token=ROPE_OPS * (query + key),
                bytes_per_token=2 * (query + key) * element,
            )
        )
    return kernels


def _kv_share(model: ModelSpec, tp: int) -> float:
    """KV heads are replicated where there are fewer of them than GPUs."""
    return max(1 / tp, 1 / model.num_kv_heads)


def _fuse_attention(model: ModelSpec, tp: int, full: int, windowed: int) -> list[Kernel]:
    heads, d = model.num_heads / tp, model.head_dim
    kv_heads = model.num_kv_heads * _kv_share(model, tp)
    return [
        Kernel(
            "fuse_attn",
            count,
            ops_per_context=(4 * d + model.softmax_ops) * heads,
            bytes_per_token=2 * heads * d * model.activation_bytes,
            bytes_per_kv=2 * kv_heads * d * model.kv_bytes,
            windowed=is_windowed,
        )
        for count, is_windowed in ((full, False), (windowed, True))
        if count
    ]


def _norm(model: ModelSpec, name: str, count: int) -> Kernel:
    h, weights = model.hidden_size, 2 if model.layer_norm else 1
    return Kernel(
        name,
        count,
        ops_per_token=(LAYER_NORM_OPS if model.layer_norm else RMS_NORM_OPS) * h,
        weight_bytes=2 * weights * h,
        bytes_per_token=2 * h * model.activation_bytes,
    )


def _mlp(model: ModelSpec, tp: int) -> list[Kernel]:
    h, f, element = model.hidden_size, model.intermediate_size / tp, model.activation_bytes
    bias = model.linear_bias
    up = ("gate_proj", "up_proj") if model.gated_mlp else ("up_proj",)
    return [
        *(_linear(model, name, h, f, store=element, bias=bias) for name in up),
        Kernel(
            "act_mlp",
            model.num_layers,
            ops_per_token=model.activation_ops * f,
            bytes_per_token=(3 if model.gated_mlp else 2) * f * element,
        ),
        _linear(model, "down_proj", f, h, store=element, bias=bias),
    ]


def _experts(model: ModelSpec, tp: int) -> list[Kernel]:
    h, f, element = model.hidden_size, model.intermediate_size / tp, model.activation_bytes
    experts, k, layers = model.num_experts, model.experts_per_token, model.num_layers
    up = ("gate_proj", "up_proj", "down_proj") if model.gated_mlp else ("up_proj", "down_proj")
    return [
        Kernel(
            "router",
            layers,
            ops_per_token=2 * h * experts,
            weight_bytes=h * experts * model.weight_bytes,
            bytes_per_token=(h + experts) * element,
        ),
        *(
            Kernel(
                name,
                layers,
                ops_per_token=2 * k * h * f,
                expert_bytes=h * f * model.weight_bytes,
                bytes_per_token=k * (h + f) * element,
            )
            for name in up
        ),
        Kernel(
            "act_mlp",
            layers,
            ops_per_token=model.activation_ops * k * f,
            bytes_per_token=3 * k * f * element,
        ),
        Kernel("combine", layers, ops_per_token=2 * k * h, bytes_per_token=(k + 1) * h * element),
    ]


def _all_reduce(model: ModelSpec, tp: int, count: int) -> list[Kernel]:
    """Ring all-reduce: two per layer, one after the sharded embedding."""
    if tp == 1:
        return []
    part, h, element = (tp - 1) / tp, model.hidden_size, model.activation_bytes
    return [
        Kernel(
            "allreduce",
            count,
            ops_per_token=part * h,
            bytes_per_token=4 * part * h * element,
            network_per_token=2 * part * h * element,
        ),
        Kernel("logit_gather", 1, network_per_sample=part * model.vocab_size * element),
    ]


def _around(model: ModelSpec, tp: int) -> list[Kernel]:
    """What stands once in the model: embedding, last norm, LM head."""
    h, vocab, element = model.hidden_size, model.vocab_size / tp, model.activation_bytes
    return [
        Kernel("embed", 1, bytes_per_token=h * (model.weight_bytes + element)),
        _norm(model, "final_norm", 2 if model.embedding_norm else 1),
        Kernel(
            "lm_head",
            1,
            ops_per_sample=2 * h * vocab + (3 * vocab if model.logit_softcap else 0),
            weight_bytes=h * vocab * model.weight_bytes,
            bytes_per_sample=(h + vocab) * element,
            sampled_only=True,
        ),
    ]


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The kernel table summed up: what a request adds to a step, and what the step pays once."""

    ops_per_token: float
    ops_per_context: float
    ops_per_windowed_context: float
    ops_per_sample: float
    weight_bytes: float
    head_bytes: float
    """LM head weights, read in steps that sample."""
    expert_bytes: float
    num_experts: int
    experts_per_token: int
    bytes_per_token: float
    bytes_per_kv: float
    bytes_per_windowed_kv: float
    bytes_per_sample: float
    network_per_token: float
    network_per_sample: float
    sliding_window: int | None

    def operations(self, new: Floats, cached: Floats, sampled: Floats) -> Floats:
        """Operations of each request of a step.

        Args:
            new: tokens scheduled [q_r], shape (requests,).
            cached: tokens already in the KV cache [k_r].
            sampled: positions whose logits are computed.
        """
        context = context_sum(new, cached)
        ops = self.ops_per_token * new + self.ops_per_context * context
        if self.sliding_window:
            ops += self.ops_per_windowed_context * windowed_sum(new, cached, self.sliding_window)
        return ops + self.ops_per_sample * sampled

    def own_bytes(self, new: Floats, cached: Floats, sampled: Floats) -> Floats:
        """Activation and KV bytes of each request of a step; shapes as in `operations`."""
        total = self.bytes_per_token * new + self.bytes_per_kv * (cached + new)
        if self.sliding_window:
            seen = np.minimum(cached + new, self.sliding_window + new - 1)
            total = total + self.bytes_per_windowed_kv * seen
        return total + self.bytes_per_sample * sampled

    def touched_experts(self, tokens: Floats) -> Floats:
        """Expected distinct experts per layer and step, X(T) = E (1 - (1 - k/E)^T)."""
        if not self.num_experts:
            return np.zeros_like(tokens)
        missed = 1 - self.experts_per_token / self.num_experts
        return self.num_experts * (1 - missed**tokens)


def context_sum(new: Floats, cached: Floats) -> Floats:
    """Sum over the new tokens of the context each attends to, itself included (causal)."""
    return new * cached + new * (new + 1) / 2


def windowed_sum(new: Floats, cached: Floats, window: int) -> Floats:
    """As `context_sum`, each context cut at ``window``."""
    below = np.clip(window - cached, 0, new)  # tokens whose context still fits
    return context_sum(below, cached) + (new - below) * window


def step_costs(model: ModelSpec, tensor_parallel: int = 1) -> StepCosts:
    """Sum the kernel table of one GPU of the group."""
    table = kernel_table(model, tensor_parallel)

    def total(field: str, kernels: Sequence[Kernel] = table) -> float:
        return float(sum(kernel.count * getattr(kernel, field) for kernel in kernels))

    full = [kernel for kernel in table if not kernel.windowed]
    windowed = [kernel for kernel in table if kernel.windowed]
    head = [kernel for kernel in table if kernel.sampled_only]
    body = [kernel for kernel in table if not kernel.sampled_only]
    return StepCosts(
        ops_per_token=total("ops_per_token"),
        ops_per_context=total("ops_per_context", full),
        ops_per_windowed_context=total("ops_per_context", windowed),
        ops_per_sample=total("ops_per_sample"),
        weight_bytes=total("weight_bytes", body),
        head_bytes=total("weight_bytes", head),
        expert_bytes=total("expert_bytes"),
        num_experts=model.num_experts,
        experts_per_token=model.experts_per_token,
        bytes_per_token=total("bytes_per_token"),
        bytes_per_kv=total("bytes_per_kv", full),
        bytes_per_windowed_kv=total("bytes_per_kv", windowed),
        bytes_per_sample=total("bytes_per_sample"),
        network_per_token=total("network_per_token"),
        network_per_sample=total("network_per_sample"),
        sliding_window=model.sliding_window,
    )
