"""Rows that nobody measured, for tests that need a law to find."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.training.data.rows import Row, architecture_group

MODELS = ("Llama-3.1-8B-Instruct", "Qwen3-8B", "Llama-3.1-70B-Instruct", "Qwen3-30B-A3B")


def made_row(model: str = "Llama-3.1-8B-Instruct", **changes: Any) -> Row:
    """One row of a model of the built-in list."""
    spec = built_in_model(model)
    row = Row(
        source="made",
        model=model,
        spec=spec,
        architecture=architecture_group(spec),
        family=model.partition("-")[0].casefold(),
        task="chat",
        gpu="H100",
        num_gpus=1,
        tensor_parallel=1,
        expert_parallel=1,
        data_parallel=1,
        dtype="bfloat16",
        quantisation="none",
        engine="vllm",
        engine_version="0.11.1",
        concurrency=8.0,
        prompt_tokens=300.0,
        prompt_tokens_assumed=False,
        output_tokens=200.0,
        energy_joules=100.0,
        power_watts=None,
        output_tokens_per_s=None,
        time_per_output_token_s=None,
        noise=None,
        weight=1.0,
        flags=frozenset(),
    )
    return replace(row, **changes)


def grid(
    models: Sequence[str] = MODELS,
    gpus: Sequence[str] = ("H100", "A100"),
    concurrencies: Sequence[float] = (1.0, 8.0, 64.0),
    outputs: Sequence[float] = (50.0, 200.0, 800.0),
    **changes: Any,
) -> list[Row]:
    """A row for every combination."""
    return [
        made_row(model, gpu=gpu, concurrency=concurrency, output_tokens=output, **changes)
        for model in models
        for gpu in gpus
        for concurrency in concurrencies
        for output in outputs
    ]


def measured(rows: Sequence[Row], law: Callable[[Row], float]) -> list[Row]:
    """The rows with the joules of a law."""
    return [replace(row, energy_joules=law(row)) for row in rows]
