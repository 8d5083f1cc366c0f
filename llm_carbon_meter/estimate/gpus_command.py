"""The verb ``gpus``: the data sheets that are known, and which of them were measured."""

import argparse

from llm_carbon_meter.estimate.narrowed import add_word, narrowed
from llm_carbon_meter.exporters.columns import aligned, figure
from llm_carbon_meter.physics.gpu_specs import GIGA, TERA, GpuSpec, all_gpus
from llm_carbon_meter.predictor.gnn import shipped_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    add_word(parser)


def run(options: argparse.Namespace) -> int:
    """Print the list.

    Raises:
        MeterError: no name contains the word.
    """
    sheets = {gpu.name: gpu for gpu in all_gpus()}
    rows = [["GPU", "memory GB", "board W", "idle W", "GB/s", "16-bit TFLOPS", "link", "measured"]]
    rows += [
        [
            gpu.name,
            figure(gpu.memory_bytes / GIGA),
            figure(gpu.board_watts),
            figure(gpu.idle_watts),
            str(round(gpu.bandwidth_bytes_per_s / GIGA)),
            figure(gpu.compute_ops_per_s / TERA),
            gpu.link,
            _measured(gpu),
        ]
        for gpu in map(sheets.__getitem__, narrowed(sheets, options.word, "GPU"))
    ]
    print(aligned(rows, left=(0, 6, 7)))
    return 0


def _measured(gpu: GpuSpec) -> str:
    """What was measured on it for the shipped predictor."""
    physics = shipped_weights().physics
    if gpu.name in physics.gpus:
        return "requests"
    return "kernels" if gpu.name in physics.kernels else "no"
