"""The verb ``models``: what is known by name, without a config.json."""

import argparse

from llm_carbon_meter.estimate.narrowed import add_word, narrowed
from llm_carbon_meter.exporters.columns import aligned, figure
from llm_carbon_meter.physics.model_list import built_in_model, built_in_names
from llm_carbon_meter.physics.model_specs import ModelSpec

BILLION = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    add_word(parser)


def run(options: argparse.Namespace) -> int:
    """Print the list.

    Raises:
        MeterError: no name contains the word.
    """
    names = narrowed(built_in_names(), options.word, "model")
    heading = ["model", "1e9 weights", "1e9 active", "context", "weight bits", "expert bits"]
    rows = [[*heading, "computes in"], *map(_row, map(built_in_model, names))]
    print(aligned(rows, left=(0, len(heading))))
    return 0


def _row(spec: ModelSpec) -> list[str]:
    return [
        spec.name,
        figure(spec.parameters / BILLION),
        figure(spec.active_parameters / BILLION),
        str(spec.max_context or "unknown"),
        figure(8 * spec.weight_bytes),
        figure(8 * spec.expert_weight_bytes) if spec.num_experts else "",
        spec.compute,
    ]
