"""Shapes of attention beyond equal heads, and the vector work for each element."""

from typing import NamedTuple

SILU_OPS, GELU_OPS, GATED_GELU_OPS, RELU_OPS = 5.0, 8.0, 9.0, 1.0
SOFTMAX_OPS, ALIBI_OPS, SOFTCAP_OPS = 5.0, 1.0, 3.0


class LatentAttention(NamedTuple):
    """Sizes of multi-head latent attention."""

    query_rank: int
    """0 where the query is projected directly."""
    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int

    @property
    def query_dim(self) -> int:
        """Of one head."""
        return self.rope_dim + self.nope_dim

    @property
    def cached_dim(self) -> int:
        """Of a token in the KV cache."""
        return self.kv_rank + self.rope_dim


class Heads(NamedTuple):
    """Heads of one kind of attention layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of a query and a key."""
    value_dim: int
    shared_kv: bool = False
    """Values are the keys."""

    @property
    def kv_elements(self) -> int:
        """Of a token in the KV cache of one layer."""
        return self.num_kv_heads * (self.head_dim + self.value_dim)


class Indexer(NamedTuple):
    """Small heads that score the whole context, for the others to attend to its best part."""

    num_heads: int
    head_dim: int
    layers: int
    """That have one; the others reuse what it chose."""
    query_rank: int
    """What its queries are projected from; 0 for the hidden state."""
    stride: int = 1
    """Tokens of the context that one of its keys stands for."""
