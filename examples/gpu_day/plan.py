"""What a GPU day does on a GPU, and in its rehearsal on a CPU: sizes alone differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm_carbon_meter.campaign.plan import LOADS, TINY_LOADS, TINY_MODEL, Load
from llm_carbon_meter.campaign.subsets import BATCHES, StepMember
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec

Batch = Sequence[StepMember]
"""The requests of a step."""


@dataclass(frozen=True, slots=True)
class DayPlan:
    """Sizes of all parts."""

    patience_s: float
    """A part is ended no earlier; 0 on a GPU, where its budget is kept."""
    gemm_size: int
    gemv_size: int
    """Sides of the sensor's matrices: bound by arithmetic, bound by memory."""
    decoder: ModelSpec
    batches: Mapping[str, Batch]
    """Whose subsets are all run; the most wanted first."""
    served: str
    """Model of the built-in list with random weights; empty for the tiny one."""
    cache: Sequence[str]
    """Options of ``transformers serve``: of two servers, both fit one GPU."""
    requests: int
    at_once: int
    pace: float
    """Times that of the trace."""
    campaign_models: Sequence[str]
    campaign_loads: Sequence[Load]
    repetitions: int
    least_s: float
    """Of a repetition of the campaign."""
    pairs: int
    """Rounds with and without the meter."""
    round_tokens: int


def cache_options(num_blocks: int, batch_tokens: int) -> tuple[str, ...]:
    """Of continuous batching: blocks of 32 tokens, and the tokens of a step at most."""
    blocks = ("--cb-block-size", "32", "--cb-num-blocks", str(num_blocks))
    return (*blocks, "--cb-max-batch-tokens", str(batch_tokens))


ON_GPU = DayPlan(
    patience_s=0.0,
    gemm_size=8192,
    gemv_size=32768,
    decoder=built_in_model("Llama-3.1-8B"),
    batches=BATCHES,
    served="Llama-3.1-8B",
    cache=cache_options(2048, 1024),
    requests=200,
    at_once=32,
    pace=1.0,
    campaign_models=("Llama-3.1-8B", "Qwen2-1.5b", "Gemma2-2b"),
    campaign_loads=LOADS[:3],
    repetitions=1,
    least_s=2.5,
    pairs=12,
    round_tokens=100,
)


def _scaled_down(batch: Batch) -> Batch:
    return [StepMember(-(-member.new // 8), member.cached // 8) for member in batch]


def _tiny(spec: ModelSpec) -> ModelSpec:
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2}
    heads: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "vocab_size": 128}
    return replace(spec, **shape, **heads)


REHEARSAL = replace(
    ON_GPU,
    patience_s=90.0,
    gemm_size=192,
    gemv_size=256,
    decoder=_tiny(ON_GPU.decoder),
    batches={name: _scaled_down(batch) for name, batch in BATCHES.items()},
    served="",
    cache=cache_options(256, 256),
    requests=24,
    at_once=8,
    pace=4.0,
    campaign_models=(TINY_MODEL,),
    campaign_loads=TINY_LOADS[:2],
    repetitions=1,
    least_s=0.5,
    pairs=2,
    round_tokens=20,
)
"""On the stub; every step of a day on a CPU in a minute or two."""
