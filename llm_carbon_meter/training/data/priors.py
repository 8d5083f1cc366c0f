"""What a campaign measures: the paper's architectures and their neighbours, and real requests."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from llm_carbon_meter.data.azure_trace import code_quantiles, conversation_quantiles, quantile
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import weight_memory_bytes
from llm_carbon_meter.physics.model_list import built_in_config
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.physics.number_formats import with_dtype
from llm_carbon_meter.training.data.configurations import (
    NOTHING_LOCKED,
    PAPER_RADIUS,
    Changes,
    Configuration,
    Radius,
    Tolerance,
    within,
)

Config = Mapping[str, Any]
HEADS: Final = ("num_attention_heads", "n_head")

PAPER_MODELS: Final = (
    *("Bloom-560m", "Bloom-1b1", "Bloom-1b7", "Bloom-3b", "Bloom-7b1"),
    *("Gemma-2b", "Gemma-7b", "Gemma2-2b", "Gemma2-9b", "Gemma2-27b"),
    *("Qwen2-0.5b", "Qwen2-1.5b", "Qwen2-7b", "Qwen2-72b"),
    *("Llama-3.1-8B", "Llama-3.1-70B", "Mixtral-8x7B"),
)
"""Six families, 17 models (Section 5.1 of the paper)."""
DTYPES: Final = ("", "fp8", "int4")
"""Number formats; empty for the model's own."""
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
"""The paper stays below two, where a server never is."""
UNCHANGED: Final = 0.5
"""Share of the draws that are a model as it is; the others are a neighbour of one."""
FACTORS: Final = (0.75, 1.0, 1.25)
"""Of each size of a neighbour."""
WIDTH_STEP: Final = 64
"""Widths stay multiples of what tensor cores like."""
WEIGHTS_SHARE: Final = 0.8
"""Of a GPU's memory at most; the rest is for keys, values and activations."""
TRIES: Final = 50
"""Draws for each configuration that is asked for, before there are held to be no more."""


@dataclass(frozen=True)
class TracePrior:
    """Architectures and requests as in the paper, on hardware that is given.

    Architecture: one of the models, half of the time with other numbers of layers and heads and
    other widths. Request: prompt and output lengths of the Azure conversation and code traces.
    """

    gpus: Sequence[str]
    """Names of data/gpus.toml."""
    engine: str
    engine_version: str
    max_gpus: int = 4
    """Of one tensor-parallel group."""
    models: Sequence[str] = PAPER_MODELS
    """Names of the built-in list."""
    dtypes: Sequence[str] = DTYPES
    batches: Sequence[int] = BATCHES
    radius: Radius = field(default_factory=lambda: PAPER_RADIUS)
    """C."""
    admits: Callable[[Configuration], bool] = NOTHING_LOCKED.admits
    """What may be drawn at all: nothing near a locked test set."""

    def draw(
        self, count: int, taken: Collection[Configuration], rng: np.random.Generator
    ) -> list[Configuration]:
        """Draw from the priors; what does not fit GPU or context is drawn anew."""
        return self._distinct(lambda: self._anywhere(rng), count, taken)

    def around(
        self,
        centre: Configuration,
        count: int,
        taken: Collection[Configuration],
        rng: np.random.Generator,
    ) -> list[Configuration]:
        """Draw layers, heads, widths and lengths within ±C of a configuration."""
        return self._distinct(lambda: self._near(centre, rng), count, {*taken, centre})

    def _distinct(
        self,
        one: Callable[[], Configuration | None],
        count: int,
        taken: Collection[Configuration],
    ) -> list[Configuration]:
        distinct: dict[Configuration, None] = {}
        for _ in range(TRIES * count):
            if len(distinct) == count:
                break
            drawn = one()
            if drawn and drawn not in taken and self.admits(drawn):
                distinct[drawn] = None
        return list(distinct)

    def _anywhere(self, rng: np.random.Generator) -> Configuration | None:
        """One of the priors; None where no GPUs are enough for it."""
        name, gpu = str(rng.choice(self.models)), str(rng.choice(self.gpus))
        dtype, config = str(rng.choice(self.dtypes)), built_in_config(name)
        changes = (
            () if rng.random() < UNCHANGED else resized(config, lambda size: _scaled(size, rng))
        )
        model = _model(name, changes, dtype)
        enough = [n for n in range(1, self.max_gpus + 1) if fits(model, gpu, n)]
        if not enough:
            return None
        prompt_tokens, output_tokens = request(rng)
        drawn = Configuration(
            model=model,
            gpu=gpu,
            num_gpus=int(rng.choice(enough)),
            engine=self.engine,
            engine_version=self.engine_version,
            batch=float(rng.choice(self.batches)),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            dtype=dtype,
            changes=changes,
        )
        return drawn if in_context(drawn) else None

    def _near(self, centre: Configuration, rng: np.random.Generator) -> Configuration | None:
        """One in which every field is moved; None where it moved too far or does not fit."""

        def moved(value: float, name: str, step: int = 1) -> int:
            allowed = self.radius.get(name, Tolerance())
            reach = int(max(allowed.absolute, allowed.relative * value) // step)
            return max(step, round(value) + step * int(rng.integers(-reach, reach + 1)))

        name = centre.model.name
        changes = resized(
            built_in_config(name),
            lambda size: moved(size.value, size.field, size.step),
            centre.changes,
        )
        drawn = replace(
            centre,
            model=_model(name, changes, centre.dtype),
            changes=changes,
            prompt_tokens=float(moved(centre.prompt_tokens, "prompt_tokens")),
            output_tokens=float(moved(centre.output_tokens, "output_tokens")),
        )
        runs = fits(drawn.model, drawn.gpu, drawn.num_gpus) and in_context(drawn)
        return drawn if runs and within(drawn, centre, self.radius) else None


def request(rng: np.random.Generator) -> tuple[float, float]:
    """Prompt and output tokens of a conversation or of a code completion, one as likely.

    The length of an output is drawn from those of the fifth that its prompt is in.
    """
    tables = conversation_quantiles() if rng.random() < 0.5 else code_quantiles()
    prompt, output = rng.random(2)
    outputs = tables.output_by_prompt_fifth[int(prompt * len(tables.output_by_prompt_fifth))]
    return (
        float(max(1, round(quantile(tables.prompt_tokens, prompt)))),
        float(max(1, round(quantile(outputs, output)))),
    )


class Size(NamedTuple):
    """A size of a config.json that can be changed by itself."""

    key: str
    """In the file."""
    field: str
    """Of `configurations.FIELDS`."""
    value: int
    step: int
    """The size stays a multiple of this."""


def sizes(config: Config) -> list[Size]:
    """Layers, heads and widths; a hidden size that is heads x their width follows the heads."""
    samples = [
        *(("num_hidden_layers", "layers", 1), ("n_layer", "layers", 1)),
        *((key, "heads", config.get("num_key_value_heads", 1)) for key in HEADS),
        ("intermediate_size", "intermediate", WIDTH_STEP),
    ]
    if "head_dim" in config:
        samples.append(("hidden_size", "hidden", WIDTH_STEP))
    return [Size(key, field, config[key], step) for key, field, step in samples if key in config]


def resized(config: Config, new: Callable[[Size], int], changes: Changes = ()) -> Changes:
    """The fields of a config.json that differ when every size is made anew.

    Args:
        config: of a model of the built-in list.
        new: from a size to another.
        changes: made to ``config`` before.
    """
    made = {size.key: new(size) for size in sizes({**config, **dict(changes)})}
    if "head_dim" not in config:
        heads = next(key for key in HEADS if key in config)
        made["hidden_size"] = config["hidden_size"] // config[heads] * made[heads]
    return tuple((key, value) for key, value in made.items() if value != config[key])


def _scaled(size: Size, rng: np.random.Generator) -> int:
    return size.step * max(1, round(size.value * float(rng.choice(FACTORS)) / size.step))


@cache
def _model(name: str, changes: Changes, dtype: str) -> ModelSpec:
    return model_spec(with_dtype({**built_in_config(name), **dict(changes)}, dtype), name)


def fits(model: ModelSpec, gpu: str, num_gpus: int) -> bool:
    """Whether the heads divide among the GPUs of a group, and their memory holds the weights."""
    room = WEIGHTS_SHARE * gpu_spec(gpu).memory_bytes
    return not model.num_heads % num_gpus and weight_memory_bytes(model, num_gpus) <= room


def in_context(one: Configuration) -> bool:
    """Whether a request is not longer than the model can read."""
    tokens = one.prompt_tokens + one.output_tokens
    return not one.model.max_context or tokens <= one.model.max_context
