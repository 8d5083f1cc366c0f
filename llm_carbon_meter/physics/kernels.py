"""Operations, memory bytes and network bytes of every kernel of a decoder, per GPU.

First principles, per engine step, so that it fits continuous batching. A step is described by
T tokens, ctx = sum over new tokens of the context each attends to, kv = context read, n_s sampled
positions; every kernel is linear in them, except that experts are touched X(T) times.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.physics.attention_shapes import SOFTCAP_OPS, Heads, Indexer, LatentAttention
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.records import SpecError

Floats = npt.NDArray[np.float64]

RMS_NORM_OPS, LAYER_NORM_OPS, ROPE_OPS = 4.0, 7.0, 3.0
STATE_OPS, STATE_BYTES = 6.0, 4.0  # decay, input and output of a recurrent state's element
INDEX_OPS, INDEX_BYTES, INDEX_SCALE_BYTES = 3.0, 1.0, 4.0  # ReLU, weight and sum; FP8 and its scale


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel; operations, bytes read + written, and bytes sent over the interconnect."""

    name: str
    """Where it stands, unique in a model."""
    kind: str
    """What it does, the same in every family and in all its places."""
    count: int
    """How often it stands in the model."""
    peak: str = ""
    """Arithmetic that bounds it, as `GpuSpec.peak` takes it; empty where it only moves bytes."""
    d_in: float = 0.0
    """Elements read per token."""
    d_out: float = 0.0
    """Elements written per token; weights of a linear kernel are d_in x d_out."""
    ops_per_token: float = 0.0
    ops_per_context: float = 0.0
    ops_per_sample: float = 0.0
    weight_element: float = 0.0
    """Bytes of one weight of a linear kernel, as it is stored."""
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


@lru_cache(maxsize=64)
def kernel_table(model: ModelSpec, tensor_parallel: int = 1) -> tuple[Kernel, ...]:
    """Every kernel of a model, as one GPU of a tensor-parallel group runs it.

    Raises:
        SpecError: the heads cannot be divided among the GPUs.
    """
    if tensor_parallel < 1 or model.num_heads % tensor_parallel:
        raise SpecError(f"{model.num_heads} heads of {model.name} on {tensor_parallel} GPUs")
    kernels = (
        *_before(model, tensor_parallel),
        *_attention(model, tensor_parallel),
        *_recurrent(model, tensor_parallel),
        *_closing(model, tensor_parallel, "attn", model.attention_layers + model.recurrent_layers),
        *_mlp(model, tensor_parallel),
        *_experts(model, tensor_parallel),
        *_closing(model, tensor_parallel, "mlp", model.dense_layers + model.expert_layers),
        *_after(model, tensor_parallel),
    )
    return tuple(kernel for kernel in kernels if kernel.count)


def _linear(
    model: ModelSpec,
    name: str,
    count: int,
    d_in: float,
    d_out: float,
    *,
    kind: str = "",
    store: float = 0.0,
    bias: bool = False,
) -> Kernel:
    """A linear kernel of d_in x d_out; ``store`` is the bytes per stored output element."""
    element, stored = model.activation_bytes, model.stored(name)
    return Kernel(
        name,
        kind or name,
        count,
        stored.compute,
        d_in,
        d_out,
        ops_per_token=2 * d_in * d_out + (d_out if bias else 0),
        weight_element=stored.element,
        weight_bytes=d_in * d_out * stored.element
        + (d_out * model.plain_weight_bytes if bias else 0),
        bytes_per_token=d_in * element + d_out * (store or element),
    )


def _vector(
    model: ModelSpec,
    name: str,
    kind: str,
    count: int,
    operations: float,
    d_in: float,
    d_out: float,
) -> Kernel:
    """A kernel without weights; operations and elements are per token."""
    moved = (d_in + d_out) * model.activation_bytes
    return Kernel(
        name, kind, count, "vector", d_in, d_out, ops_per_token=operations, bytes_per_token=moved
    )


def _norm(model: ModelSpec, name: str, count: int, size: float = 0) -> Kernel:
    """A norm over the hidden size, or another one."""
    width, weights = size or model.hidden_size, 2 if model.layer_norm else 1
    per_element = LAYER_NORM_OPS if model.layer_norm else RMS_NORM_OPS
    plain = _vector(model, name, "norm", count, per_element * width, width, width)
    return replace(plain, weight_bytes=weights * width * model.plain_weight_bytes)


# Attention.


def _attention(model: ModelSpec, tp: int) -> list[Kernel]:
    """From the norm to the output projection."""
    opening = _norm(model, "norm_attn", model.attention_layers + model.recurrent_layers)
    if model.latent:
        own = _latent_attention(model, model.latent, tp)
    elif model.windowed_heads:
        full = model.attention_layers - model.windowed_layers
        alone = replace(model, attention_layers=full, windowed_layers=0, kv_shared_windowed=0)
        windowed = replace(
            model,
            attention_layers=model.windowed_layers,
            kv_shared_layers=0,
            num_heads=model.windowed_heads.num_heads,
            num_kv_heads=model.windowed_heads.num_kv_heads,
        )
        own = [
            *_of_heads(alone, model.heads, tp),
            *(_windowed(kernel) for kernel in _of_heads(windowed, model.windowed_heads, tp)),
        ]
    else:
        own = _of_heads(model, model.heads, tp)
    return [opening, *own, *_indexer(model, model.indexer), *_extra(model)]


def _windowed(kernel: Kernel) -> Kernel:
    """The same under the name that it has in windowed layers."""
    return replace(kernel, name=f"{kernel.name.removesuffix('_windowed')}_windowed")


def _of_heads(model: ModelSpec, heads: Heads, tp: int) -> list[Kernel]:
    """Attention layers that all have the same heads."""
    count, h = model.attention_layers, model.hidden_size
    made = count - model.kv_shared_layers - model.kv_shared_windowed
    query = heads.num_heads * heads.head_dim / tp
    share = heads.num_kv_heads * _kv_share(heads.num_kv_heads, tp)
    key, value = share * heads.head_dim, share * heads.value_dim
    bias, own_value = model.qkv_bias, 0 if heads.shared_kv else made
    vectors = 2 * heads.head_dim if model.qk_norm else query + key
    normed = replace(
        _norm(model, "qk_norm", count if model.qk_norm or model.full_qk_norm else 0, query + key),
        weight_bytes=vectors * model.plain_weight_bytes,  # one vector serves all heads
    )
    return [
        *_queries(model, count, query, bias=bias),
        _linear(model, "k_proj", made, h, key, store=model.kv_bytes, bias=bias),
        _linear(model, "v_proj", own_value, h, value, store=model.kv_bytes, bias=bias),
        normed,
        _rope(model, (query + key) * model.rotary_fraction),
        *_fuse_attention(
            model,
            heads=heads.num_heads / tp,
            query_dim=heads.head_dim,
            value_dim=heads.value_dim,
            kv_elements=key if heads.shared_kv else key + value,
        ),
        *_output(model, count, heads.num_heads * heads.value_dim / tp, tp),
    ]


def _queries(model: ModelSpec, count: int, query: float, *, bias: bool) -> list[Kernel]:
    """Queries, with a gate where the model has one, perhaps through a rank."""
    h, rank = model.hidden_size, model.query_rank
    if rank:
        return [
            _linear(model, "q_down_proj", count, h, rank, kind="down_to_rank"),
            _norm(model, "q_norm", count, rank),
            _linear(model, "q_proj", count, rank, query),
        ]
    gates = query if model.query_gate else 0
    gates += query / model.head_dim if model.head_gates else 0
    return [_linear(model, "q_proj", count, h, query + gates, bias=bias)]


def _output(model: ModelSpec, count: int, value: float, tp: int) -> list[Kernel]:
    """The output projection, perhaps through a rank for each group of heads."""
    h, groups = model.hidden_size, model.out_groups
    if not model.out_rank:
        return [_linear(model, "out_proj", count, value, h, bias=model.out_bias)]
    down = model.out_rank * groups / tp
    return [
        _linear(model, "out_down_proj", count, value * tp / groups, down, kind="down_to_rank"),
        _linear(model, "out_proj", count, down, h),
    ]


def _indexer(model: ModelSpec, indexer: Indexer | None) -> list[Kernel]:
    """Small heads that score every token before: the same on every GPU of a group."""
    if not indexer:
        return []
    h, dim, count = model.hidden_size, indexer.head_dim, indexer.layers
    queries = indexer.num_heads * dim
    scores = (2 * dim + INDEX_OPS) * indexer.num_heads / indexer.stride
    return [
        _linear(model, "index_q_proj", count, indexer.query_rank or h, queries, kind="q_proj"),
        _linear(model, "index_k_proj", count, h, dim, kind="k_proj", store=INDEX_BYTES),
        _linear(model, "index_gates", count, h, indexer.num_heads, kind="k_proj"),
        Kernel(
            "index_attn",
            "fuse_attn",
            count,
            model.plain_compute,
            queries,
            indexer.num_heads,
            ops_per_context=scores,
            bytes_per_token=queries * INDEX_BYTES,
            bytes_per_kv=(dim * INDEX_BYTES + INDEX_SCALE_BYTES) / indexer.stride,
        ),
    ]


def _extra(model: ModelSpec) -> list[Kernel]:
    """Small projections of every layer, the same on every GPU of a group."""
    count = model.num_layers if model.extra_width else 0
    return [
        _linear(model, "extra_proj", count, model.hidden_size, model.extra_width, kind="up_proj")
    ]


def _latent_attention(model: ModelSpec, latent: LatentAttention, tp: int) -> list[Kernel]:
    """Keys and values are expanded per head; the cache holds what they are expanded from."""
    h, heads, count = model.hidden_size, model.num_heads / tp, model.attention_layers
    rank, query, cached = latent.query_rank, heads * latent.query_dim, latent.cached_dim
    expanded, value = heads * (latent.nope_dim + latent.value_dim), heads * latent.value_dim
    queries = [_linear(model, "q_proj", count, h, query)]
    if rank:
        queries = [
            _linear(model, "q_down_proj", count, h, rank, kind="down_to_rank"),
            _norm(model, "q_norm", count, rank),
            _linear(model, "q_proj", count, rank, query),
        ]
    return [
        *queries,
        _linear(model, "kv_down_proj", count, h, cached, kind="down_to_rank", store=model.kv_bytes),
        _norm(model, "kv_norm", count, latent.kv_rank),
        _linear(model, "kv_proj", count, latent.kv_rank, expanded),
        _rope(model, (heads + 1) * latent.rope_dim),
        *_fuse_attention(
            model,
            heads=heads,
            query_dim=latent.query_dim,
            value_dim=latent.value_dim,
            kv_elements=cached,
        ),
        _linear(model, "out_proj", count, value, h),
    ]


def _kv_share(kv_heads: int, tp: int) -> float:
    """KV heads are replicated where there are fewer of them than GPUs."""
    return max(1 / tp, 1 / kv_heads)


def _rope(model: ModelSpec, turned: float) -> Kernel:
    count = model.attention_layers if turned else 0
    return _vector(model, "rope", "rope", count, ROPE_OPS * turned, turned, turned)


def _fuse_attention(
    model: ModelSpec, *, heads: float, query_dim: int, value_dim: int, kv_elements: float
) -> list[Kernel]:
    """Attention without scores in memory, in layers that see everything and windowed ones."""
    full = Kernel(
        "fuse_attn",
        "fuse_attn",
        model.attention_layers - model.windowed_layers,
        model.plain_compute,
        heads * query_dim,
        heads * value_dim,
        ops_per_context=(2 * (query_dim + value_dim) + model.softmax_ops) * heads,
        weight_bytes=heads * model.plain_weight_bytes if model.sinks else 0.0,
        bytes_per_token=heads * (query_dim + value_dim) * model.activation_bytes,
        bytes_per_kv=kv_elements * model.kv_bytes,
    )
    windowed = replace(full, name="fuse_attn_windowed", count=model.windowed_layers, windowed=True)
    return [full, windowed]


def _recurrent(model: ModelSpec, tp: int) -> list[Kernel]:
    """Projections of Mamba and linear attention, and the state between them.

    A request's state (float32) is read and written once per step, however many tokens.
    """
    h, count, state = model.hidden_size, model.recurrent_layers, model.recurrent_state / tp
    return [
        _linear(model, "recurrent_in_proj", count, h, model.recurrent_in / tp, kind="up_proj"),
        Kernel(
            "recurrent_state",
            "recurrent_state",
            count,
            "vector",
            state,
            state,
            ops_per_token=STATE_OPS * state,
            bytes_per_sample=2 * STATE_BYTES * state,
        ),
        _linear(model, "recurrent_out_proj", count, model.recurrent_out / tp, h, kind="out_proj"),
    ]


# MLP.


def _mlp(model: ModelSpec, tp: int) -> list[Kernel]:
    """The norm before every MLP, and the dense one."""
    layers = model.dense_layers + model.expert_layers
    # a layer with a single norm has it before the attention, or is an MLP and nothing else
    alone = model.attention_layers + model.recurrent_layers < model.num_layers
    width, opened = (
        model.intermediate_size / tp,
        layers if model.norms_per_layer > 1 or alone else 0,
    )
    return [
        _norm(model, "norm_mlp", opened),
        *_gated_mlp(model, "", model.dense_layers, width),
    ]


def _gated_mlp(model: ModelSpec, place: str, count: int, width: float) -> list[Kernel]:
    """One MLP for every token, with or without a gate."""
    h, bias = model.hidden_size, model.mlp_bias
    up = ("gate_proj", "up_proj") if model.gated_mlp else ("up_proj",)
    loaded = len(up) * width
    return [
        *(_linear(model, place + name, count, h, width, kind=name, bias=bias) for name in up),
        _vector(
            model, f"{place}act_mlp", "act_mlp", count, model.activation_ops * width, loaded, width
        ),
        _linear(model, f"{place}down_proj", count, width, h, kind="down_proj", bias=bias),
    ]


def _experts(model: ModelSpec, tp: int) -> list[Kernel]:
    """Router, the experts that it chooses, shared experts, and the sum of what they give."""
    h, num, k = model.hidden_size, model.num_experts, model.experts_per_token
    count, element = model.expert_layers, model.plain_weight_bytes
    bias = num if model.router_bias else 0
    router = Kernel(
        "router",
        "router",
        count,
        model.plain_compute,
        h,
        num,
        ops_per_token=2 * h * num + bias,
        weight_bytes=(h * num + bias) * element,
        bytes_per_token=(h + num) * model.activation_bytes,
    )
    taken = model.expert_input or h
    projected = count if model.expert_input else 0
    routed = _gated_mlp(
        replace(model, hidden_size=taken),
        "expert_",
        count,
        model.expert_size / tp,
    )
    return [
        router,
        _linear(model, "latent_in_proj", projected, h, taken, kind="down_to_rank"),
        *(_routed(kernel, k) for kernel in routed),
        *_shared_experts(model, count if model.shared_size else 0, tp),
        _vector(model, "combine", "combine", count, 2 * k * taken, k * taken, taken),
        _linear(model, "latent_out_proj", projected, taken, h, kind="up_proj"),
    ]


def _routed(kernel: Kernel, experts: int) -> Kernel:
    """A kernel of one expert as a token meets it ``experts`` times."""
    return replace(
        kernel,
        ops_per_token=experts * kernel.ops_per_token,
        bytes_per_token=experts * kernel.bytes_per_token,
        expert_bytes=kernel.weight_bytes,
        weight_bytes=0.0,
    )


def _shared_experts(model: ModelSpec, count: int, tp: int) -> list[Kernel]:
    gated = count if model.shared_gate else 0
    gate = _linear(model, "shared_gate", gated, model.hidden_size, 1, kind="router")
    return [*_gated_mlp(model, "shared_", count, model.shared_size / tp), gate]


# Around.


def _closing(model: ModelSpec, tp: int, block: str, count: int) -> list[Kernel]:
    """What ends an attention or MLP block: sum over the GPUs, norm, residual."""
    h = model.hidden_size
    number = {"attn": 1, "mlp": 2}[block]
    return [
        _all_reduce(model, tp, f"allreduce_{number}", count),
        _norm(model, f"post_norm_{block}", count if model.norms_per_layer >= 4 else 0),
        _vector(model, f"add_{block}", "add", count, h, 2 * h, h),
    ]


def _all_reduce(model: ModelSpec, tp: int, name: str, count: int) -> Kernel:
    """Ring all-reduce."""
    h = model.hidden_size
    part, moved = (tp - 1) / tp, 2 * (tp - 1) / tp * h * model.activation_bytes
    return Kernel(
        name,
        "allreduce",
        count if tp > 1 else 0,
        "vector",
        h,
        h,
        ops_per_token=part * h,
        bytes_per_token=2 * moved,
        network_per_token=moved,
    )


def _before(model: ModelSpec, tp: int) -> list[Kernel]:
    """Embedding."""
    h, width = model.hidden_size, model.embedding_size or model.hidden_size
    rows = width + (h if model.position_rows else 0) + model.layer_embeddings
    projected = 1 if width != h else 0
    return [
        Kernel(
            "embed",
            "embed",
            1,
            "",
            model.vocab_size,
            width,
            bytes_per_token=rows * model.plain_weight_bytes + width * model.activation_bytes,
        ),
        _all_reduce(model, tp, "embed_allreduce", 1),
        _linear(model, "embed_proj", projected, width, h, kind="up_proj"),
        _norm(model, "embed_norm", int(model.embedding_norm)),
    ]


def _after(model: ModelSpec, tp: int) -> list[Kernel]:
    """Last norm and LM head."""
    h, width = model.hidden_size, model.embedding_size or model.hidden_size
    vocab, element = model.vocab_size / tp, model.activation_bytes
    return [
        _norm(model, "final_norm", int(model.final_norm)),
        _linear(model, "head_proj", 1 if width != h else 0, h, width, kind="down_proj"),
        Kernel(
            "lm_head",
            "lm_head",
            1,
            model.plain_compute,
            width,
            vocab,
            ops_per_sample=2 * width * vocab + (SOFTCAP_OPS * vocab if model.logit_softcap else 0),
            weight_bytes=width * vocab * model.plain_weight_bytes,
            bytes_per_sample=(width + vocab) * element,
            sampled_only=True,
        ),
        Kernel(
            "logit_gather",
            "logit_gather",
            1 if tp > 1 else 0,
            network_per_sample=(tp - 1) / tp * model.vocab_size * element,
        ),
    ]


@dataclass(frozen=True, slots=True)
class KernelTotals:
    """What one kernel costs over a whole phase, on one GPU and each time it stands in the model."""

    name: str
    kind: str
    count: int
    peak: str
    """As in `Kernel`."""
    d_in: float
    d_out: float
    operations: float
    weight_bytes: float
    other_bytes: float
    """Activations and KV cache."""
    network_bytes: float

    @property
    def moved_bytes(self) -> float:
        """Everything read and written in GPU memory."""
        return self.weight_bytes + self.other_bytes


class Phases(NamedTuple):
    """Kernels of a model in one order, once for each phase."""

    prefill: tuple[KernelTotals, ...]
    decode: tuple[KernelTotals, ...]


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
        linear = self.ops_per_token * new + self.ops_per_sample * sampled
        return linear + self.attention_operations(new, cached)

    def attention_operations(self, new: Floats, cached: Floats) -> Floats:
        """Those of attention; shapes as in `operations`."""
        ops = self.ops_per_context * context_sum(new, cached)
        if self.sliding_window:
            ops = ops + self.ops_per_windowed_context * windowed_sum(
                new, cached, self.sliding_window
            )
        return ops

    def activation_bytes(self, new: Floats, sampled: Floats) -> Floats:
        """Of each request of a step; shapes as in `operations`."""
        return self.bytes_per_token * new + self.bytes_per_sample * sampled

    def kv_bytes(self, new: Floats, cached: Floats) -> Floats:
        """Of the KV cache, read and written by each request; shapes as in `operations`."""
        total = self.bytes_per_kv * (cached + new)
        if self.sliding_window:
            seen = np.minimum(cached + new, self.sliding_window + new - 1)
            total = total + self.bytes_per_windowed_kv * seen
        return total

    def touched_experts(self, tokens: Floats) -> Floats:
        """Expected distinct experts per layer and step, X(T) = E (1 - (1 - k/E)^T)."""
        return touched_experts(self.num_experts, self.experts_per_token, tokens)


def touched_experts(experts: int, per_token: int, tokens: Floats) -> Floats:
    """X(T): every token draws its experts by itself, all of them equally likely."""
    if not experts:
        return np.zeros_like(tokens)
    return experts * (1 - (1 - per_token / experts) ** tokens)


def context_sum(new: Floats, cached: Floats | float) -> Floats:
    """Sum over the new tokens of the context each attends to, itself included (causal)."""
    return new * cached + new * (new + 1) / 2


def windowed_sum(new: Floats, cached: Floats | float, window: int) -> Floats:
    """As `context_sum`, each context cut at ``window``."""
    below: Floats = np.clip(window - cached, 0, new)  # tokens whose context still fits
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


def weight_memory_bytes(model: ModelSpec, num_gpus: int) -> float:
    """Bytes of the weights on one GPU of a group; KV cache and activations come on top."""
    kernels = sum(
        kernel.count * (kernel.weight_bytes + kernel.expert_bytes * model.num_experts)
        for kernel in kernel_table(model, num_gpus)
    )
    # A head that is tied to the embedding is that kernel's weight already.
    rows = 0 if model.tied_head else model.vocab_size * (model.embedding_size or model.hidden_size)
    rows += model.position_rows * model.hidden_size + model.vocab_size * model.layer_embeddings
    return kernels + rows * model.plain_weight_bytes / num_gpus
