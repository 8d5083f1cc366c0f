"""What the physics needs of a model: its shape, from a Hugging Face ``config.json``."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from llm_carbon_meter.physics.attention_shapes import (
    SILU_OPS,
    SOFTMAX_OPS,
    Heads,
    Indexer,
    LatentAttention,
)
from llm_carbon_meter.physics.config_fields import experts, first, num_layers, whole, window
from llm_carbon_meter.physics.families import ALIASES, FAMILIES, Family
from llm_carbon_meter.physics.number_formats import (
    StoredAs,
    has_fp8_cache,
    quantisation_of,
    weight_format,
)
from llm_carbon_meter.physics.stored_weights import exceptions
from llm_carbon_meter.records import SpecError

FLOAT32_BYTES: Final = 4.0
PLAIN_KERNELS: Final = frozenset(("shared_gate", "index_gates", "extra_proj"))
"""Linear kernels that no format quantises."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only model; the usual symbols are in brackets."""

    name: str
    hidden_size: int
    """[h]"""
    intermediate_size: int
    """[f] of a dense MLP"""
    num_layers: int
    num_heads: int
    """[n_h]"""
    num_kv_heads: int
    """[n_kv]"""
    head_dim: int
    """[d] of a query and a key"""
    vocab_size: int
    """[V]"""
    tied_head: bool
    attention_layers: int
    """The others are recurrent or have an MLP alone."""
    dense_layers: int
    """Layers with one MLP for every token."""
    expert_layers: int = 0
    recurrent_layers: int = 0
    approximation: str = ""
    """What is not counted as the model computes it; empty where it is."""
    gated_mlp: bool = True
    activation_ops: float = SILU_OPS
    """[c_act] operations per element"""
    layer_norm: bool = False
    """LayerNorm with bias instead of RMSNorm"""
    norms_per_layer: int = 2
    parallel_attention: bool = False
    """Attention and MLP read the same layer input."""
    embedding_norm: bool = False
    final_norm: bool = True
    value_dim: int = 0
    """Of a head's value; 0 where it is that of the key."""
    shared_kv: bool = False
    """Values are the keys."""
    query_rank: int = 0
    """What a query is projected through; 0 for none. Latent attention has its own."""
    out_rank: int = 0
    """What each of the `out_groups` of heads is projected to before the output; 0 for none."""
    out_groups: int = 1
    qk_norm: bool = False
    """Each head of query and key is normalised."""
    full_qk_norm: bool = False
    """Query and key are normalised as a whole."""
    query_gate: bool = False
    """The query projection also makes a gate of its width."""
    head_gates: bool = False
    """A gate for each head."""
    extra_width: int = 0
    """Of small projections that every layer has besides."""
    rotary_fraction: float = 1.0
    """Share of a head that RoPE turns; 0 without RoPE."""
    softmax_ops: float = SOFTMAX_OPS
    """[c_soft]"""
    logit_softcap: bool = False
    sinks: bool = False
    """One learned logit per head."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    router_bias: bool = False
    sliding_window: int | None = None
    """[W]"""
    windowed_layers: int = 0
    windowed_heads: Heads | None = None
    """Of windowed layers, where the others' are different."""
    kv_shared_layers: int = 0
    """Layers that see everything with keys and values of an earlier one."""
    kv_shared_windowed: int = 0
    indexer: Indexer | None = None
    """Chooses what layers with a window attend to: the cache keeps everything for them."""
    latent: LatentAttention | None = None
    num_experts: int = 0
    """[E]"""
    experts_per_token: int = 0
    """[k]"""
    expert_size: int = 0
    """[f] of one expert"""
    shared_size: int = 0
    """[f] of all shared experts together"""
    shared_gate: bool = False
    expert_input: int = 0
    """What the hidden state is projected to for the routed experts; 0 where they take it itself."""
    recurrent_in: int = 0
    """Width of a recurrent layer's input projection."""
    recurrent_out: int = 0
    """What its output projection reads."""
    recurrent_state: int = 0
    """Elements of one request's state in one recurrent layer."""
    embedding_size: int = 0
    """Width of an embedding that is projected to the hidden size; 0 where it has that size."""
    position_rows: int = 0
    """Learned positions."""
    layer_embeddings: int = 0
    """Width of embeddings for the layers, all together."""
    max_context: int = 0
    weight_bytes: float = 2.0
    """[D_W] per element of a linear kernel"""
    expert_weight_bytes: float = 2.0
    """Bytes of an expert's weight."""
    plain_weight_bytes: float = 2.0
    """[D_W,emb, D_W,head] embedding, LM head, router, norms and biases"""
    compute: str = "bfloat16"
    """Type of the linear kernels' products, a key of `GpuSpec.peak`."""
    expert_compute: str = ""
    """Of the experts' products; empty where it is the same."""
    exceptions: tuple[tuple[str, StoredAs], ...] = ()
    """Kernels that are stored otherwise."""
    block_scaled: bool = False
    """FP8 weights with a scale for every block."""
    unpacked_as: str = ""
    """int8 or nf4 where bitsandbytes unpacks the weights in every step."""
    activation_bytes: float = 2.0
    """[D_A]"""
    kv_bytes: float = 2.0
    """[D_KV]"""

    @property
    def number_format(self) -> str:
        """How weights are stored and multiplied, in words: ``bfloat16, weights of 16 bits``."""
        words = f"{self.compute}, weights of {8 * self.weight_bytes:.0f} bits"
        if self.num_experts:
            words += f", experts of {8 * self.expert_weight_bytes:.0f} bits"
        words += " in blocks" if self.block_scaled else ""
        attention = self.stored("out_proj")
        if attention.element != self.weight_bytes:
            words += f", attention of {8 * attention.element:.0f} bits"
        return words + (f", {self.unpacked_as} of bitsandbytes" if self.unpacked_as else "")

    def stored(self, kernel: str) -> StoredAs:
        """How a linear kernel's weights are stored, by its name."""
        if kernel in PLAIN_KERNELS:
            return StoredAs(self.plain_weight_bytes, self.plain_compute)
        if kernel.startswith("expert_"):
            usual = StoredAs(self.expert_weight_bytes, self.expert_compute or self.compute)
        else:
            usual = StoredAs(self.weight_bytes, self.compute)
        return dict(self.exceptions).get(kernel, usual)

    @property
    def plain_compute(self) -> str:
        """Of what is not quantised: attention, router and LM head."""
        return "float32" if self.plain_weight_bytes == FLOAT32_BYTES else "bfloat16"

    @property
    def parameters(self) -> int:
        """All weights, biases and embeddings."""
        return self._count(self.num_experts, embeddings=1 if self.tied_head else 2)

    @property
    def active_parameters(self) -> int:
        """Parameters that a token meets, both embeddings counted, as the LLM-BENCH note does."""
        return self._count(self.experts_per_token, embeddings=2)

    @property
    def heads(self) -> Heads:
        """Of layers that see everything."""
        value = self.value_dim or self.head_dim
        return Heads(self.num_heads, self.num_kv_heads, self.head_dim, value, self.shared_kv)

    def _count(self, experts: int, embeddings: int) -> int:
        norm = self.hidden_size * (2 if self.layer_norm else 1)
        norms = self.num_layers * self.norms_per_layer + self.embedding_norm + self.final_norm
        return (
            self._all_attention_parameters
            + self.dense_layers * self._mlp_parameters(self.intermediate_size)
            + self.expert_layers * self._expert_parameters(experts)
            + self.recurrent_layers * self.hidden_size * (self.recurrent_in + self.recurrent_out)
            + self.num_layers * self.extra_width * self.hidden_size
            + norms * norm
            + self._embedding_parameters(embeddings)
        )

    @property
    def _all_attention_parameters(self) -> int:
        if self.latent:
            layers = self.attention_layers * self._latent_parameters(self.latent)
        else:
            full = self.attention_layers - self.windowed_layers
            windowed = self.windowed_heads or self.heads
            layers = full * self._attention_parameters(self.heads)
            layers += self.windowed_layers * self._attention_parameters(windowed)
            layers -= self.kv_shared_layers * self._key_value_parameters(self.heads)
            layers -= self.kv_shared_windowed * self._key_value_parameters(windowed)
        return layers + (self._indexer_parameters(self.indexer) if self.indexer else 0)

    def _attention_parameters(self, heads: Heads) -> int:
        h, query, out = (
            self.hidden_size,
            heads.num_heads * heads.head_dim,
            self._out_parameters(heads),
        )
        gates = (2 if self.query_gate else 1) * query + (heads.num_heads if self.head_gates else 0)
        asked = h * gates + (query if self.qkv_bias else 0)
        if self.query_rank:
            asked = h * self.query_rank + self.query_rank + self.query_rank * query
        extra = (heads.head_dim if self.qk_norm else 0) + (heads.num_heads if self.sinks else 0)
        extra += query if self.full_qk_norm else 0
        return asked + extra + out + self._key_value_parameters(heads)

    def _out_parameters(self, heads: Heads) -> int:
        h, value = self.hidden_size, heads.num_heads * heads.value_dim
        if self.out_rank:
            return value * self.out_rank + self.out_groups * self.out_rank * h
        return value * h + (h if self.out_bias else 0)

    def _key_value_parameters(self, heads: Heads) -> int:
        """Projections of keys and values, with what normalises the keys."""
        key, value = heads.num_kv_heads * heads.head_dim, heads.num_kv_heads * heads.value_dim
        made = key + (0 if heads.shared_kv else value)
        norm = (heads.head_dim if self.qk_norm else 0) + (key if self.full_qk_norm else 0)
        return self.hidden_size * made + (made if self.qkv_bias else 0) + norm

    def _indexer_parameters(self, indexer: Indexer) -> int:
        """Queries, one key, a weight for each head, and a norm of the key."""
        h, queries = self.hidden_size, indexer.num_heads * indexer.head_dim
        asked = (indexer.query_rank or h) * queries
        return indexer.layers * (asked + h * indexer.head_dim + h * indexer.num_heads)

    def _latent_parameters(self, latent: LatentAttention) -> int:
        """Projections down to the ranks with a norm each, and up again."""
        h, heads, rank = self.hidden_size, self.num_heads, latent.query_rank
        query = heads * latent.query_dim
        down = h * rank + rank + rank * query if rank else h * query
        expanded = heads * (latent.nope_dim + latent.value_dim)
        keys = h * latent.cached_dim + latent.kv_rank + latent.kv_rank * expanded
        return down + keys + heads * latent.value_dim * h

    def _mlp_parameters(self, width: int, taken: int = 0) -> int:
        """Of an MLP that takes the hidden state, or another width."""
        up, outside = 2 if self.gated_mlp else 1, taken or self.hidden_size
        bias = up * width + outside if self.mlp_bias else 0
        return (up + 1) * outside * width + bias

    def _expert_parameters(self, experts: int) -> int:
        """Some routed experts, the shared ones, router and shared gate."""
        h, routed = self.hidden_size, self.num_experts
        router = h * routed + (routed if self.router_bias else 0)
        shared = self._mlp_parameters(self.shared_size) if self.shared_size else 0
        gate = h if self.shared_gate and self.shared_size else 0
        taken = self.expert_input or h
        projected = 2 * h * self.expert_input
        one = self._mlp_parameters(self.expert_size, taken)
        return experts * one + router + shared + gate + projected

    def _embedding_parameters(self, embeddings: int) -> int:
        h, width = self.hidden_size, self.embedding_size or self.hidden_size
        projections = 2 * width * h if width != h else 0
        rows = embeddings * width + self.layer_embeddings
        return self.vocab_size * rows + self.position_rows * h + projections


def in_16_bits(model: ModelSpec) -> ModelSpec:
    """The same shape with all weights in 16 bits."""
    return replace(
        model,
        weight_bytes=2.0,
        expert_weight_bytes=2.0,
        compute="bfloat16",
        expert_compute="",
        exceptions=(),
        block_scaled=False,
        unpacked_as="",
    )


def model_spec(
    config: Mapping[str, Any],
    name: str = "",
    *,
    approximate: bool = False,
    any_format: bool = False,
) -> ModelSpec:
    """Read a Hugging Face ``config.json``; of a multimodal model its text part.

    Args:
        config: the parsed file.
        name: how to call the model; by default as the file does.
        approximate: count an unknown architecture as Llama and say so in ``approximation``.
        any_format: count weights in an unknown format as not quantised, and say so there.

    Raises:
        SpecError: unknown architecture, or a field is missing or contradicts another.
    """
    text = _text_config(config)
    kind = str(text.get("model_type", ""))
    family, approximation = _family(kind, approximate)
    try:
        fields = _fields({**family.defaults, **text}, family, approximate or any_format)
    except KeyError as error:
        raise SpecError(f"config.json of a {kind} model lacks {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"config.json of a {kind} model cannot be read: {error!r}") from error
    remarks = (approximation, fields["approximation"])
    fields["approximation"] = "; ".join(filter(None, remarks))
    return _checked(ModelSpec(name=name or str(text.get("_name_or_path") or kind), **fields))


def _fields(config: Mapping[str, Any], family: Family, any_format: bool) -> dict[str, Any]:
    """Every field of the spec but its name."""
    dtype = str(first(config, "bfloat16", "dtype", "torch_dtype"))
    quantisation = quantisation_of(config)
    weights = weight_format(quantisation, dtype, any_format=any_format)
    own = family.read(config)
    fields = {
        **_sizes(config),
        **({} if "intermediate_size" in own else {"intermediate_size": _mlp_width(config)}),
        **window(config),
        **experts(config),
        "weight_bytes": weights.linear.element,
        "expert_weight_bytes": weights.experts.element,
        "plain_weight_bytes": weights.plain.element,
        "compute": weights.linear.compute,
        "expert_compute": weights.experts.compute,
        "block_scaled": weights.block_scaled,
        "unpacked_as": weights.unpacked_as,
        "activation_bytes": weights.plain.element,
        "kv_bytes": 1.0 if has_fp8_cache(quantisation) else weights.plain.element,
        **family.traits,
        **own,
    }
    fields["exceptions"] = exceptions(
        config, quantisation, weights, _quantised_kernels(fields), family.modules
    )
    remarks = (fields.get("approximation"), weights.approximation)
    return {**fields, "approximation": "; ".join(filter(None, remarks))}


def _quantised_kernels(fields: Mapping[str, Any]) -> Iterator[str]:
    """The kernels that a format may quantise, of those that the model has."""
    halves = ("gate_proj", "up_proj") if fields.get("gated_mlp", True) else ("up_proj",)
    mlp = (*halves, "down_proj")
    if fields.get("latent"):
        yield from ("q_proj", "kv_down_proj", "kv_proj", "out_proj")
        yield from ("q_down_proj",) if fields["latent"].query_rank else ()
    elif fields["attention_layers"]:
        yield from ("q_proj", "k_proj", "v_proj", "out_proj")
        yield from ("q_down_proj",) if fields.get("query_rank") else ()
        yield from ("out_down_proj",) if fields.get("out_rank") else ()
    yield from ("index_q_proj", "index_k_proj") if fields.get("indexer") else ()
    yield from ("recurrent_in_proj", "recurrent_out_proj") if fields.get("recurrent_layers") else ()
    yield from mlp if fields["dense_layers"] else ()
    if fields.get("expert_layers"):
        yield from (f"expert_{half}" for half in mlp)
        yield from (f"shared_{half}" for half in mlp) if fields.get("shared_size") else ()
        yield from ("latent_in_proj", "latent_out_proj") if fields.get("expert_input") else ()


_TOLD_OUTSIDE: Final = ("model_type", "quantization_config", "dtype", "torch_dtype")
_DECIDED_OUTSIDE: Final = ("tie_word_embeddings",)
"""The head belongs to the whole model; what its text part says of it is a default."""


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model inside a multimodal one, with what is only said outside."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return config
    told = {field: config[field] for field in _TOLD_OUTSIDE if field in config}
    decided = {field: config[field] for field in _DECIDED_OUTSIDE if field in config}
    return _text_config({**told, **inner, **decided})


def _family(kind: str, approximate: bool) -> tuple[Family, str]:
    """How to read a model type, and what is approximated by doing so."""
    family = FAMILIES.get(ALIASES.get(kind, kind))
    if family:
        return family, ""
    if approximate:
        return FAMILIES["llama"], f"model type {kind!r} is not known, counted as llama"
    near = difflib.get_close_matches(kind, FAMILIES, n=1, cutoff=0.0)
    raise SpecError(
        f"model type {kind!r} is not known; nearest is {near[0]}; "
        f"known: {', '.join(sorted(FAMILIES))}. "
        "Requests are metered all the same: steps are then divided by tokens"
    )


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What every family names in much the same way."""
    heads = whole(config, "num_attention_heads", "n_head")
    hidden = whole(config, "hidden_size", "n_embed", "n_embd")
    layers = num_layers(config)
    return {
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": whole(config, "num_key_value_heads", default=heads),
        "head_dim": whole(config, "head_dim", default=hidden // heads),
        "vocab_size": whole(config, "vocab_size"),
        "tied_head": bool(first(config, False, "tie_word_embeddings")),
        "attention_layers": layers,
        "dense_layers": layers,
        "max_context": whole(
            config, "max_position_embeddings", "seq_length", "n_positions", default=0
        ),
    }


def _mlp_width(config: Mapping[str, Any]) -> int:
    """Models with experts in every layer may name only the width of an expert."""
    return whole(config, "intermediate_size", "moe_intermediate_size")


def _checked(model: ModelSpec) -> ModelSpec:
    """Refuse fields that contradict each other."""
    if model.head_dim < 1:
        raise SpecError(f"{model.num_heads} heads do not fit a hidden size of {model.hidden_size}")
    if model.num_heads % model.num_kv_heads:
        raise SpecError(
            f"{model.num_heads} query heads cannot share {model.num_kv_heads} key/value heads"
        )
    if not min(model.num_experts, 1) <= model.experts_per_token <= model.num_experts:
        raise SpecError(
            f"{model.experts_per_token} experts per token do not fit {model.num_experts} experts"
        )
    if model.windowed_layers > model.num_layers:
        raise SpecError(
            f"layer_types lists {model.windowed_layers} windowed layers of {model.num_layers}"
        )
    return model
