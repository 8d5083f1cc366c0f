"""A GPU made of measured kernels: what a step costs there, and what each request caused.

Latencies and power are the measured ones of `training.study.kernel_world`, which says what is
assumed. Sums of a step's requests decide, so every subset of a step has a cost of its own.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.kernels import StepCosts, step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.training.study.kernel_curves import STAND_IN, Kernels, read_kernels
from llm_carbon_meter.training.study.kernel_world import Attended, Costs, KernelWorld

from .ranges import World
from .truth import expert_shares, sampled_causes

Floats = npt.NDArray[np.float64]

MOST_TOKENS: Final = 8192 + 512
"""Of a step: the largest budget, and a stopped request for each of the running ones."""
MOST_SAMPLED: Final = 1024
FEW_TOKENS: Final = 16
"""So many new tokens read the KV cache as a decode does: drafts."""
HIDDEN_EXCHANGES: Final = 2
"""All-reduces of a layer, of one hidden state a token (ring: each GPU sends it almost twice)."""
ELEMENT: Final = 2.0
"""Bytes."""


class KernelWork(NamedTuple):
    """What requests bring to a step; every column adds up over them, shapes alike."""

    requests: Floats
    tokens: Floats
    sampled: Floats
    prefills: Floats
    prefill_pairs: Floats
    prefill_read: Floats
    decodes: Floats
    decode_pairs: Floats
    decode_new: Floats
    decode_read: Floats

    def total(self) -> "KernelWork":
        """Of all requests together."""
        return KernelWork(*(column.sum(axis=-1) for column in self))


@dataclass(frozen=True)
class Curve:
    """Costs by a whole number, from 0 on; beyond the last in proportion."""

    seconds: Floats
    joules: Floats

    @classmethod
    def of(cls, costs: Costs) -> "Curve":
        """From the costs of 1, 2, 3 …; nothing costs nothing."""
        return cls(*(np.insert(column, 0, 0.0) for column in costs))

    def at(self, numbers: Floats) -> Costs:
        """Costs of some numbers."""
        last = len(self.seconds) - 1
        place = np.minimum(numbers, last).astype(np.intp)
        beyond = np.maximum(numbers / last, 1.0)
        return Costs(self.seconds[place] * beyond, self.joules[place] * beyond)


@dataclass(frozen=True)
class KernelGpu:
    """One GPU of the group."""

    world: World
    kernels: KernelWorld
    """Its kernels work on the GPU's part of the model."""
    costs: StepCosts

    @classmethod
    def of(cls, world: World, folder: Path) -> "KernelGpu":
        """Read the tables of a world's GPU.

        Raises:
            OSError: a kernel table is missing.
        """
        assert world.kernels is not None
        model = built_in_model(world.model)
        own = tables(folder, world.gpu)
        powered = own if own.power else tables(folder, STAND_IN)
        part = sharded(model, world.tensor_parallel)
        kernels = KernelWorld(own, powered, part, world.kernels)
        return cls(world, kernels, step_costs(model, world.tensor_parallel))

    @property
    def sheet(self) -> GpuSpec:
        """Its data sheet."""
        return self.kernels.gpu

    @property
    def idle_watts(self) -> float:
        """Without any work."""
        return self.kernels.idle_watts

    @property
    def awake_watts(self) -> float:
        """Drawn by a step on top of idle, whatever it does."""
        return self.kernels.draws.waiting_load * (self.sheet.board_watts - self.idle_watts)

    @cached_property
    def linear(self) -> Curve:
        """By tokens."""
        return Curve.of(self.kernels.linear_costs(np.arange(1.0, MOST_TOKENS + 1)))

    @cached_property
    def head(self) -> Curve:
        """By sampled positions."""
        return Curve.of(self.kernels.head_costs(np.arange(1.0, MOST_SAMPLED + 1)))

    def work(self, new: Floats, cached: Floats, sampled: Floats) -> KernelWork:
        """One column entry per request [q_r, k_r, n_s]."""
        few = (new <= FEW_TOKENS) & (cached > new)
        pairs, read = new * cached + new * (new + 1) / 2, cached + new
        ones = np.ones_like(new)
        prefill = [column * ~few for column in (ones, pairs, read)]
        decode = [column * few for column in (ones, pairs, new, read)]
        return KernelWork(ones, new, sampled, *prefill, *decode)

    def cost(self, work: KernelWork) -> tuple[Floats, Floats]:
        """Seconds and joules of steps in which exactly this work is done; nothing costs nothing."""
        prefill_new = work.tokens - work.decode_new
        prefill = Attended(work.prefills, work.prefill_pairs, prefill_new, work.prefill_read)
        decode = Attended(work.decodes, work.decode_pairs, work.decode_new, work.decode_read)
        parts = [
            self.linear.at(work.tokens),
            self.head.at(work.sampled),
            self._attention("context_attention", prefill),
            self._attention("generation_attention", decode),
            self._exchanges(work.tokens),
        ]
        kernels = Costs(*(np.sum(column, axis=0) for column in zip(*parts, strict=True)))
        seconds, joules = self.kernels.step_costs(kernels, work.requests)
        runs = work.requests > 0
        most = self.sheet.limit_watts * seconds
        return seconds * runs, np.minimum(joules, most) * runs

    def _attention(self, op: str, attention: Attended) -> Costs:
        shape = attention.requests.shape
        flat = Attended(*(np.ravel(column) for column in attention))
        return Costs(*(part.reshape(shape) for part in self.kernels.attention_costs(op, flat)))

    def _exchanges(self, tokens: Floats) -> Costs:
        """All-reduces, during which a GPU draws what it draws while it waits."""
        group = self.world.tensor_parallel
        if group == 1:
            return Costs(0 * tokens, 0 * tokens)
        model, values = self.kernels.model, self.world.values
        sent = 2 * (group - 1) / group * ELEMENT * model.hidden_size * tokens
        speed = values["link_efficiency"] * self.sheet.link_bytes_per_s
        count = HIDDEN_EXCHANGES * model.num_layers
        seconds = count * (sent / speed + values["exchange_s"] * (tokens > 0))
        return Costs(seconds, seconds * (self.idle_watts + self.awake_watts))

    def causes(self, work: KernelWork, random: np.random.Generator) -> tuple[Floats, Floats]:
        """Joules that each request causes, in two independent halves of the sample.

        A step without attention, a head for one and experts that are touched evenly have exact
        Shapley values. The rest of the marginal costs is sampled.
        """
        players, fixed = len(work.tokens), self._fixed
        samples = work.sampled > 0
        exact = fixed.step / players + fixed.head * samples / max(samples.sum(), 1)
        exact = exact + fixed.expert * expert_shares(self.costs, work.tokens)

        def rest(sums: KernelWork) -> Floats:
            cost = self.cost(sums)[1] - fixed.step - fixed.head * (sums.sampled > 0)
            return np.asarray(cost - fixed.expert * self.costs.touched_experts(sums.tokens))

        return sampled_causes(work, exact, rest, random)

    @cached_property
    def _fixed(self) -> "Fixed":
        """What weights cost in a step that does next to nothing else."""
        none, few = np.zeros(2), np.array([1.0, 1.0])
        head = np.array([0.0, 1.0])
        work = KernelWork(few, few, head, *(none,) * 7)
        plain, sampling = self.cost(work)[1].tolist()
        expert = 0.0
        if self.costs.num_experts:
            tokens = np.array([1.0, 16.0])
            first, later = self.linear.at(tokens).joules
            touched = self.costs.touched_experts(tokens)
            expert = float((later - first) / (touched[1] - touched[0]))
            plain -= expert * float(touched[0])
        return Fixed(plain, sampling - plain - expert * self._touched_by_one, expert)

    @property
    def _touched_by_one(self) -> float:
        return float(self.costs.touched_experts(np.ones(1))[0]) if self.costs.num_experts else 0.0


class Fixed(NamedTuple):
    """Joules of streaming weights."""

    step: float
    """In every step."""
    head: float
    """More, in one that samples."""
    expert: float
    """More, for every expert that a layer touches."""


def sharded(model: ModelSpec, group: int) -> ModelSpec:
    """The part of a model that one GPU of a group works on, tensor parallel."""
    return replace(
        model,
        num_heads=model.num_heads // group,
        num_kv_heads=max(model.num_kv_heads // group, 1),
        intermediate_size=model.intermediate_size // group,
        vocab_size=model.vocab_size // group,
    )


@cache
def tables(folder: Path, gpu: str) -> Kernels:
    """Measured kernels of a GPU."""
    return read_kernels(folder, gpu)
