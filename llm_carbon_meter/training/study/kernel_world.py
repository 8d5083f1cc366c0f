"""A world made of measured kernels: what the steps of a model take and draw on a GPU.

Its law is not `predictor.step_law`. Of every world these parts are

* measured: the latencies of products, of attention and of experts, between measured shapes
  interpolated, of the `kernel_curves.TABLES`; their power on H200, B200 and GB200, smoothed;
* assumed, and drawn for each world: small kernels and gaps of a layer, host time of a step and of
  a sequence, power while the GPU waits, noise, drift with temperature, the board's own power;
* assumed, on GPUs without measured power: that of `kernel_curves.STAND_IN` in shares of the
  board's, bent by an exponent that is drawn, above the data sheet's idle power.

No GPU was asked: that a model of kernels runs like this is an assumption too.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.step_work import StepRows
from llm_carbon_meter.training.study.kernel_curves import (
    ELEMENT,
    Kernels,
    Latency,
    PowerMap,
    Work,
    attention_work,
    experts_work,
    gemm_work,
)

Floats = NDArray[np.float64]

CACHE_MULTIPLE: Final = 2.0
"""Weights of so many L2 caches come from memory though the tables repeat a kernel."""
SMALL_ELEMENTS: Final = 6.0
"""Hidden states that the small kernels of a layer read and write for a token: norms, residuals."""
MICRO: Final = 1e-6
LARGE_BYTES: Final = 70e9
LARGE_BUDGET: Final = 8192
SMALL_BUDGET: Final = 2048


@dataclass(frozen=True, slots=True)
class Draws:
    """What differs between worlds of one GPU and model."""

    layer_gap_s: float
    """Launches and small kernels of a layer, whatever they process."""
    small_share: float
    """Of the memory's peak that small kernels reach."""
    host_s: float
    """Of a step, while the GPU works."""
    host_sequence_s: float
    wait_s: float
    """Of a step, while the GPU waits."""
    wait_sequence_s: float
    waiting_load: float
    """Share of the power above idle that is drawn while the GPU waits."""
    noise: float
    """Standard deviation of ln(step time)."""
    board: float
    """Power of this board / as measured."""
    idle: float
    """Of the idle power, on GPUs without measured power."""
    bend: float
    """Exponent of the power above idle, likewise."""
    leakage: float
    """More power when hot than when cold, at the board's limit."""
    warming_s: float
    """Time constant of the temperature."""
    distribution: str
    """Of tokens over experts."""

    @classmethod
    def of(cls, random: np.random.Generator) -> "Draws":
        """Draw a world; medians and spreads are assumed."""

        def around(median: float, spread: float) -> float:
            return float(median * np.exp(spread * random.standard_normal()))

        return cls(
            layer_gap_s=around(15 * MICRO, 0.4),
            small_share=float(random.uniform(0.5, 0.8)),
            host_s=around(2e-3, 0.5),
            host_sequence_s=around(15 * MICRO, 0.5),
            wait_s=around(0.5e-3, 0.6),
            wait_sequence_s=around(8 * MICRO, 0.6),
            waiting_load=float(random.uniform(0.03, 0.15)),
            noise=float(random.uniform(0.01, 0.05)),
            board=around(1.0, 0.05),
            idle=around(1.0, 0.2),
            bend=float(random.uniform(0.8, 1.25)),
            leakage=float(random.uniform(0.0, 0.05)),
            warming_s=float(random.uniform(40.0, 120.0)),
            distribution=str(random.choice(("balanced", "power_law_1.01", "power_law_1.2"))),
        )


class Costs(NamedTuple):
    """What steps take and draw without noise and drift, shapes (steps,)."""

    seconds: Floats
    joules: Floats


class Attended(NamedTuple):
    """Attention of requests, summed up, arrays of one shape."""

    requests: Floats
    pairs: Floats
    """Of a new token and a token that it attends to."""
    new: Floats
    read: Floats
    """Tokens of keys and values."""


def attended(rows: StepRows, chosen: NDArray[np.bool_]) -> Attended:
    """Of the chosen requests of each step."""
    new, cached = rows.new_tokens, rows.cached_tokens
    columns = (np.ones_like(new), new * cached + new * (new + 1) / 2, new, cached + new)
    return Attended(*(rows.per_step(chosen * column) for column in columns))


@dataclass(frozen=True)
class KernelWorld:
    """A model on one GPU."""

    kernels: Kernels
    stand_in: Kernels
    """Whose power is taken where the GPU's was not measured."""
    model: ModelSpec
    draws: Draws

    @cached_property
    def prefill(self) -> Latency:
        """Attention by batch and new tokens."""
        return self.kernels.attention("context_attention", self.model)

    @cached_property
    def decode(self) -> Latency:
        """Attention by batch and context."""
        return self.kernels.attention("generation_attention", self.model)

    @cached_property
    def experts(self) -> Latency:
        """The experts of a layer by tokens."""
        return self.kernels.experts(self.model, self.draws.distribution)

    @property
    def gpu(self) -> GpuSpec:
        """Its data sheet."""
        return self.kernels.gpu

    @property
    def token_budget(self) -> int:
        """Tokens of a step, as vLLM's server has them on large and on smaller GPUs."""
        return LARGE_BUDGET if self.gpu.memory_bytes >= LARGE_BYTES else SMALL_BUDGET

    @property
    def idle_watts(self) -> float:
        """Drawn without any step, when cold."""
        if self.kernels.power:
            return self.kernels.power["gemm"].idle_watts * self.draws.board
        return self.gpu.idle_watts * self.draws.idle

    def costs(self, rows: StepRows) -> Costs:
        """Of steps."""
        tokens, sampled = rows.per_step(rows.new_tokens), rows.per_step(rows.sampled)
        parts = [self.linear_costs(tokens), self.head_costs(np.maximum(sampled, 1.0))]
        single = (rows.new_tokens == 1.0) & (rows.cached_tokens > 0)
        parts += [
            self.attention_costs(op, attended(rows, chosen))
            for op, chosen in (("context_attention", ~single), ("generation_attention", single))
        ]
        kernels = Costs(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))
        return self.step_costs(kernels, rows.counts.astype(np.float64))

    def step_costs(self, kernels: Costs, sequences: Floats) -> Costs:
        """Of steps: their kernels, gaps of layers, host time and waiting."""
        draws, idle = self.draws, self.idle_watts
        gpu_s = kernels.seconds + self.model.num_layers * draws.layer_gap_s
        host_s = draws.host_s + draws.host_sequence_s * sequences
        waiting_s = draws.wait_s + draws.wait_sequence_s * sequences
        seconds = np.maximum(gpu_s, host_s) + waiting_s
        waiting = idle + draws.waiting_load * (self.gpu.board_watts - idle)
        return Costs(seconds, kernels.joules + waiting * (seconds - kernels.seconds))

    def linear_costs(self, tokens: Floats) -> Costs:
        """Of all kernels whose work hangs on a step's tokens alone, as vLLM fuses them.

        Args:
            tokens: of steps, shape (steps,).
        """
        model = self.model
        hidden, heads = model.hidden_size, model.num_heads * model.head_dim
        joined = heads + 2 * model.num_kv_heads * model.head_dim
        shapes = [(model.attention_layers, joined, hidden), (model.attention_layers, hidden, heads)]
        if model.dense_layers:
            width = model.intermediate_size
            shapes.append((model.dense_layers, 2 * width, hidden))
            shapes.append((model.dense_layers, hidden, width))
        if model.expert_layers:
            shapes.append((model.expert_layers, model.num_experts, hidden))
        products = [self._product(count, tokens, *sizes) for count, *sizes in shapes]
        parts = [*products, *self._rest(tokens)]
        return Costs(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))

    def head_costs(self, sampled: Floats) -> Costs:
        """Of the LM head, which is wider than any measured product: two of half its width."""
        return self._product(2, sampled, self.model.vocab_size // 2, self.model.hidden_size)

    def _product(self, count: int, tokens: Floats, outputs: int, inputs: int) -> Costs:
        """Products whose weights come from memory, though a measured kernel's may not."""
        gemm = self.kernels.gemm
        least = CACHE_MULTIPLE * self.gpu.l2_bytes
        multiple = max(1.0, least / (ELEMENT * outputs * inputs))
        streamed = gemm.seconds(outputs * multiple, tokens, inputs) / multiple
        seconds = np.maximum(gemm.seconds(outputs, tokens, inputs), streamed)
        work = gemm_work(tokens, np.full_like(tokens, outputs), np.full_like(tokens, inputs))
        return self._drawn("gemm", count, work, seconds)

    def attention_costs(self, op: str, attention: Attended) -> Costs:
        """Prefills of a step are like as many equal ones; so are its decodes.

        Args:
            op: context_attention or generation_attention.
            attention: of the requests of steps that take part.
        """
        model, batch = self.model, attention.requests
        wide, there = 2.0 * model.num_kv_heads * model.head_dim, np.maximum(batch, 1.0)
        if op == "context_attention":
            latency, length = self.prefill, np.sqrt(2 * attention.pairs / there)
        else:
            latency, length = self.decode, attention.read / there
        seconds = latency.seconds(there, np.maximum(length, 1.0))
        sizes = (np.full_like(batch, size) for size in (model.num_heads * model.head_dim, wide))
        work = attention_work(*attention[1:], *sizes)
        cost = self._drawn(op, model.attention_layers, work, seconds)
        return Costs(*(column * (batch > 0) for column in cost))

    def _rest(self, tokens: Floats) -> list[Costs]:
        """Experts, and the small kernels that move hidden states."""
        model = self.model
        costs, elements = [], SMALL_ELEMENTS * model.hidden_size
        if model.num_experts:
            seconds = self.experts.seconds(tokens)
            sizes = model.hidden_size, model.expert_size
            numbers = model.experts_per_token, model.num_experts
            columns = (np.full_like(tokens, size) for size in (*sizes, *numbers))
            work = experts_work(tokens, *columns)
            costs.append(self._drawn("moe", model.expert_layers, work, seconds))
        else:
            elements += 3 * model.intermediate_size
        moved = ELEMENT * tokens * elements
        seconds = moved / (self.draws.small_share * self.gpu.bandwidth_bytes_per_s)
        work = Work(np.zeros_like(tokens), moved)
        return [*costs, self._drawn("gemm", model.num_layers, work, seconds)]

    def _drawn(self, op: str, count: int, work: Work, seconds: Floats) -> Costs:
        """Some launches of a kernel."""
        if self.kernels.power:
            watts = self.kernels.power[op].watts(work, seconds) * self.draws.board
        else:
            watts = self._assumed_watts(self.stand_in.power[op], work, seconds)
        return Costs(count * seconds, count * seconds * watts)

    def _assumed_watts(self, power: PowerMap, work: Work, seconds: Floats) -> Floats:
        ratio = power.gpu.compute_ops_per_s / self.gpu.compute_ops_per_s
        speed = power.gpu.bandwidth_bytes_per_s / self.gpu.bandwidth_bytes_per_s
        alike = Work(work.operations * ratio, work.moved_bytes * speed)
        idle, top = power.idle_watts, power.gpu.board_watts
        load = np.clip((power.watts(alike, seconds) - idle) / (top - idle), 0.0, 1.0)
        own = self.gpu.board_watts - self.idle_watts
        return np.asarray(self.idle_watts + own * self.draws.board * load**self.draws.bend)
