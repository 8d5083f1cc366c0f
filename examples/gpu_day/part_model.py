"""The model of random weights that the servers load: made once, in the scratch folder."""

from pathlib import Path

from part import Day, Options

from llm_carbon_meter.testing.shaped_model import make_shaped_model
from llm_carbon_meter.testing.tiny_model import make_tiny_model

TINY = "tiny-qwen2"


def model_folder(options: Options) -> Path:
    """Where it is."""
    return options.scratch / "model" / (options.plan.served or TINY)


def run(day: Day) -> str:
    """Nothing is done where it is there already."""
    folder = model_folder(day.options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = day.plan.served
    if name:
        make_shaped_model(name, folder)
    else:
        make_tiny_model(folder)
    return ""
