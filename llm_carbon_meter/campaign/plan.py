"""What a campaign measures: which models under which loads, the most wanted first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.power.nvml.architectures import measured
from llm_carbon_meter.power.nvml.devices import listed_devices
from llm_carbon_meter.records import ConfigError, SpecError


class Load(NamedTuple):
    """Equal requests that are sent together."""

    batch: int
    prompt_tokens: int
    output_tokens: int


MODELS: Final = (
    *("Llama-3.1-8B", "Qwen2-1.5b", "Gemma2-2b", "Bloom-3b", "Qwen2-7b", "Qwen2-0.5b"),
    *("Bloom-560m", "Gemma2-9b", "Bloom-7b1", "Bloom-1b7", "Mixtral-8x7B"),
)
"""Of the built-in list; those of the paper that fit one GPU of 80 GB, and today's."""
LOADS: Final = (
    # Medians of the Azure traces at growing concurrency: conversation (1020, 129), code (1469, 13).
    *(Load(1, 1020, 129), Load(8, 1020, 129), Load(32, 1020, 129), Load(1, 1469, 13)),
    # Then along each axis.
    *(Load(8, 1469, 13), Load(1, 128, 129), Load(1, 4000, 129), Load(64, 256, 64)),
    *(Load(2, 512, 256), Load(4, 2048, 64), Load(16, 128, 256), Load(32, 64, 32)),
)
TINY_MODEL: Final = "tiny"
TINY_LOADS: Final = (Load(1, 64, 16), Load(4, 64, 16), Load(8, 32, 8), Load(2, 128, 4))
LEAST_S: Final = 5.0
"""A repetition is at least so long: sensors look at a GPU part of the time, and tick slowly."""
LEAST_TICKS: Final = 50
SHORTEST_S: Final = 1.0
"""So many ticks of a counter whose period was measured, in place of that; but not less."""
TINY_LEAST_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """A campaign as it was asked for."""

    engine: str
    """vllm or transformers."""
    models: Sequence[str]
    loads: Sequence[Load]
    dtype: str
    tensor_parallel: int
    gpus: Sequence[str]
    """NVML's indices or UUIDs; none: no sensor, joules are modelled."""
    least_s: float | None
    """Of a repetition, where somebody said it."""
    repetitions: int


def make_plan(
    engine: str,
    models: Sequence[str],
    *,
    dtype: str,
    gpus: str,
    least_s: float | None,
    repetitions: int,
    tiny: bool,
) -> Plan:
    """A plan from a command's options; several GPUs are one tensor-parallel group.

    Raises:
        ConfigError: an option cannot be used.
        SpecError: a model is neither in the built-in list nor a folder with a checkpoint.
    """
    names = [TINY_MODEL] if tiny else list(models or MODELS)
    for name in names:
        if not tiny and not is_checkpoint(name):
            built_in_model(name)
    devices = listed_devices(gpus) if gpus else []
    if len(devices) < len([device for device in gpus.split(",") if device]):
        raise ConfigError(f"--gpus {gpus}: expected indices or UUIDs of nvidia-smi, as in 0,1")
    if engine == "transformers" and len(devices) > 1:
        raise ConfigError(f"--gpus {gpus}: with transformers a campaign uses one GPU; name one")
    if repetitions < 1:
        raise ConfigError(f"--repetitions {repetitions}: expected at least 1")
    return Plan(
        engine=engine,
        models=names,
        loads=TINY_LOADS if tiny else LOADS,
        dtype="float32" if tiny else dtype,
        tensor_parallel=max(len(devices), 1),
        gpus=devices,
        least_s=TINY_LEAST_S if tiny and least_s is None else least_s,
        repetitions=repetitions,
    )


def repetition_s(gpu: str) -> float:
    """How long a repetition is at least, on a GPU as NVML names it."""
    seen = measured(gpu)
    return max(SHORTEST_S, LEAST_TICKS * seen.period_s) if seen else LEAST_S


def is_checkpoint(model: str) -> bool:
    """Whether a model is named by a folder: then its own weights are measured."""
    return (Path(model) / "config.json").is_file()


def fits(model: str, load: Load, max_context: int) -> bool:
    """Whether a load is within a model's context.

    Raises:
        SpecError: the context is not known.
    """
    if max_context <= 0:
        raise SpecError(f"the context length of {model} is not known")
    return load.prompt_tokens + load.output_tokens <= max_context
