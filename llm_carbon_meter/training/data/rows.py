"""The table that the predictor learns from: one row is one measured serving configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.training.data.files import Refused


class Flag(StrEnum):
    """What to know of a row before it is used."""

    MULTIMODAL = "multimodal"
    """Images or video in the prompt: its length is unknown."""
    QUANTISED = "quantised"
    """Weights quantised after training and served by unoptimised kernels."""
    LOW_PRECISION = "low_precision"
    """FP8 or MXFP4 weights in optimised kernels."""
    MAMBA = "mamba"
    CHUNKED_ATTENTION = "chunked_attention"
    QUEUEING = "queueing"
    """The slowest tokens took over a second: waiting or preemption is in the energy."""
    PADDED = "padded"
    """Prompts were padded; ``prompt_tokens`` is the length that was computed."""
    ASSUMED_WATTS = "assumed_watts"
    """The source gives power as a fraction; 400 W per GPU are assumed."""
    GPU_VARIANT_UNSTATED = "gpu_variant_unstated"


NOT_TRAINED_ON = frozenset({Flag.MULTIMODAL})
NOT_JUDGED = frozenset({Flag.QUANTISED})
"""All of one model: held out, nothing of them could be trained on."""


@dataclass(frozen=True, slots=True)
class Row:
    """Means per request under a steady load."""

    source: str
    model: str
    """As the source names it."""
    spec: ModelSpec
    """With the element sizes that were served."""
    architecture: str
    """The group that is held out together, see ``architecture_group``."""
    family: str
    """``model_type`` of the configuration."""
    task: str
    gpu: str
    num_gpus: int
    """The reliable one: some sources state the degrees of parallelism loosely."""
    tensor_parallel: int
    expert_parallel: int
    data_parallel: int
    dtype: str
    """Of the computation; ``unstated`` is the model's default, 16 bits."""
    quantisation: str
    """Of the weights: none, fp8, mxfp4, int8, nf4."""
    engine: str
    engine_version: str
    concurrency: float
    """Requests that ran at once, observed."""
    prompt_tokens: float
    """nan where unknown (multimodal)."""
    prompt_tokens_assumed: bool
    output_tokens: float
    energy_joules: float
    """Per request, gross, all GPUs."""
    power_watts: float | None
    """All GPUs."""
    output_tokens_per_s: float | None
    """Of all concurrent requests together."""
    time_per_output_token_s: float | None
    """Of one request, as the source gives it."""
    noise: float | None
    """Coefficient of variation over repeated runs."""
    weight: float
    """Repeated runs of one configuration together weigh 1."""
    flags: frozenset[Flag]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, and what was refused on the way."""

    rows: Sequence[Row]
    refused: Sequence[Refused]

    def for_training(self) -> Sequence[Row]:
        """Without the rows that no training uses by default."""
        return [row for row in self.rows if not row.flags & NOT_TRAINED_ON]

    def for_evaluation(self) -> Sequence[Row]:
        """Those of them that can be held out."""
        return [row for row in self.for_training() if not row.flags & NOT_JUDGED]


def architecture_group(spec: ModelSpec) -> str:
    """Models with the same width, depth, KV cache and experts are near-twins: one group.

    Left out on purpose: vocabulary, MLP width, norms and biases, in which derivatives and rivals
    of one size differ. Llama-3.1-8B and Mistral-7B are one group, so are LLaMA-7B and Vicuna-7B.
    """
    experts = f"-e{spec.num_experts}k{spec.experts_per_token}" if spec.num_experts else ""
    return f"h{spec.hidden_size}-l{spec.num_layers}-kv{spec.num_kv_heads * spec.head_dim}{experts}"
