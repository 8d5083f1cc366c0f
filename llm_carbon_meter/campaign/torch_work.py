"""Work for a GPU, in torch alone: one load at a time, and the steps of a decoder with a batch.

Weights and caches are normal with standard deviation 0.02, as initialisers draw them: zeros would
draw less power. On a CPU everything runs too, in float32.
"""

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch

from llm_carbon_meter.campaign.subsets import StepMember
from llm_carbon_meter.physics.model_specs import ModelSpec

STEPS_IN_FLIGHT = 4


class SteadyLoad:
    """Repeats some work in a thread inside the ``with`` block.

    Args:
        work: starts kernels and returns.
        device: on which they run.
    """

    def __init__(self, work: Callable[[], object], device: str) -> None:
        self._work = work
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            for _ in range(STEPS_IN_FLIGHT):
                self._work()
            synchronize(self._device)
            self.count += STEPS_IN_FLIGHT

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


def synchronize(device: str) -> None:
    """Wait for the kernels."""
    if device == "cuda":
        torch.cuda.synchronize()


def normal(device: str, *shape: int) -> torch.Tensor:
    """A tensor as a model's weights are at first."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return torch.empty(shape, device=device, dtype=dtype).normal_(0, 0.02)


def prefill_like(device: str, size: int) -> Callable[[], object]:
    """Products of square matrices: bound by arithmetic."""
    left, right = normal(device, size, size), normal(device, size, size)
    return lambda: left @ right


def decode_like(device: str, size: int) -> Callable[[], object]:
    """A row times a matrix that no cache holds: bound by memory."""
    matrix, vector = normal(device, size, 4 * size), normal(device, 1, size)
    return lambda: vector @ matrix


def bursts(work: Callable[[], object], device: str, period_s: float) -> Callable[[], object]:
    """Work for half of each period, rest for the other half."""

    def burst() -> None:
        end_s = time.monotonic() + period_s / 2
        while time.monotonic() < end_s:
            work()
            synchronize(device)
        time.sleep(period_s / 2)

    return burst


class Decoder:
    """A dense gated decoder of random weights; every layer has its own, as a real one.

    Args:
        spec: shapes.
        rows: the requests that steps may hold, each with a KV cache of its own.
        device: cuda, or cpu.
    """

    def __init__(self, spec: ModelSpec, rows: Sequence[StepMember], device: str) -> None:
        self._spec = spec
        self._rows = rows
        self._device = device
        h, f, d = spec.hidden_size, spec.intermediate_size, spec.head_dim
        query, key = spec.num_heads * d, spec.num_kv_heads * d
        shapes = ((h, query + 2 * key), (query, h), (h, 2 * f), (f, h))
        layers = range(spec.num_layers)
        self._layers = [[normal(device, *shape) for shape in shapes] for _ in layers]
        self._head = normal(device, h, spec.vocab_size)
        self._caches = [
            [normal(device, 2, spec.num_kv_heads, row.cached, d) for _ in layers] for row in rows
        ]

    @torch.inference_mode()
    def step(self, members: Sequence[int]) -> torch.Tensor:
        """One step of some of the requests; logits of each one's last token."""
        lengths = [self._rows[member].new for member in members]
        x = normal(self._device, sum(lengths), self._spec.hidden_size)
        for layer, (qkv, out, up, down) in enumerate(self._layers):
            parts = torch.split(x @ qkv, lengths)
            attended = [
                self._attend(part, self._caches[member][layer])
                for member, part in zip(members, parts, strict=True)
            ]
            x = x + torch.cat(attended) @ out
            gate, value = (x @ up).chunk(2, dim=-1)
            x = x + (torch.nn.functional.silu(gate) * value) @ down
            x = torch.nn.functional.rms_norm(x, x.shape[-1:])
        last = torch.stack([part[-1] for part in torch.split(x, lengths)])
        return last @ self._head

    def _attend(self, qkv: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        """Causal among new tokens, or one token over its cache; shape (new, heads x head_dim)."""
        spec, new = self._spec, len(qkv)
        sizes = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        heads = qkv.view(new, sum(sizes), spec.head_dim).transpose(0, 1)
        query, key, value = torch.split(heads, sizes)
        if new > 1:
            attended = torch.nn.functional.scaled_dot_product_attention(
                query[None], key[None], value[None], is_causal=True, enable_gqa=True
            )[0]
        else:
            attended = _read_cache(query, cache)
        return attended.transpose(0, 1).reshape(new, -1)


def _read_cache(query: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    """Every key and value read once: (heads, 1, d) over (2, kv heads, cached, d)."""
    keys, values = cache
    groups = query.view(len(keys), -1, query.shape[-1])  # the queries of a KV head together
    weights = torch.softmax(groups @ keys.transpose(1, 2), dim=-1)
    return torch.matmul(weights, values).view(query.shape)
