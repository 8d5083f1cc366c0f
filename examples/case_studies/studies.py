"""What the case studies share: batches by the shipped predictor, and how a study is kept.

Everything here is estimated, nothing measured; each study's caption says what was assumed.
"""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

from llm_carbon_meter.carbon.emissions import embodied_rate, operational_grams
from llm_carbon_meter.estimate.one_request import make_deployment
from llm_carbon_meter.exporters.columns import aligned
from llm_carbon_meter.predictor.energy_model import BoundModel, Deployment
from llm_carbon_meter.predictor.models import energy_model
from llm_carbon_meter.records import CarbonIntensity

ENGINE, VERSION = "vllm", "0.11.1"
"""The newest that the predictor was trained on."""
OUTPUT_TOKENS = 129
"""Median of the Azure conversation trace."""
EMBODIED = {"llmcarbon": "embodied as LLMCarbon", "pcf": "more as product footprint"}
"""Sources of data/embodied.toml, the smaller first, and how a stack of both names them."""
COLOURS = {
    "prefill": "#e8853a",
    "decode": "#3b7dd8",
    "operational": "#3b7dd8",
    EMBODIED["llmcarbon"]: "#6c5b9e",
    EMBODIED["pcf"]: "#b8b8b8",
}
ABOUT_EMBODIED = (
    "Embodied: die area x process over 5 years (LLMCarbon), or the product footprint of a GPU "
    "board over 3 years (pcf)."
)
CAPTION_COLUMNS = 118
CAPTION_COLUMNS_PER_INCH = 18


@dataclass(frozen=True)
class Phase:
    """One phase of a batch: all its requests, all GPUs."""

    joules: float
    gpu_seconds: float

    def operational_grams(self, intensity: CarbonIntensity) -> float:
        """gCO2eq of its energy, without PUE."""
        return operational_grams(self.joules, intensity, pue=1.0)


def deploy(model: str, gpu: str, num_gpus: int, dtype: str = "") -> Deployment:
    """A model of the built-in list on vLLM."""
    return make_deployment(model, gpu, num_gpus, dtype, ENGINE, VERSION)


def bind(deployment: Deployment) -> BoundModel:
    """The shipped predictor on a deployment."""
    return energy_model("gnn").bind(deployment)


def batch(bound: BoundModel, size: int, prompt: int, output: int) -> tuple[Phase, Phase]:
    """Prefill and decode of so many equal requests at once."""
    whole = bound.phases(float(size), float(prompt), float(output))
    # An answer of one token comes from the prefill: what is left of time is that.
    prefill = bound.phases(float(size), float(prompt), 1.0)
    return (
        Phase(whole.prefill_joules * size, prefill.gpu_seconds * size),
        Phase(whole.decode_joules * size, (whole.gpu_seconds - prefill.gpu_seconds) * size),
    )


def making_grams(deployment: Deployment) -> dict[str, float]:
    """gCO2eq of the GPU's making in each second of its life, by source."""
    rates = {method: embodied_rate(method, deployment.gpu, host=False) for method in EMBODIED}
    return {method: rate for method, rate in rates.items() if rate is not None}


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text; figures with three digits."""
    return aligned([heading, *([_cell(value) for value in row] for row in rows)])


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else _plain(value)


def _plain(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def figure(width: float, height: float) -> Figure:
    """A picture with room for a caption."""
    return Figure(figsize=(width, height), layout="constrained")


def stack(axes: Any, labels: Sequence[str], parts: Mapping[str, Sequence[float]]) -> None:
    """Bars of parts on each other, the first at the bottom, in the colours of their names."""
    bottom = [0.0] * len(labels)
    for name, heights in parts.items():
        axes.bar(labels, heights, bottom=bottom, color=COLOURS[name], label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]


def keep(name: str, text: str, picture: Any, caption: str) -> None:
    """Print a study's table and save it as ``name.txt``, its picture as ``name.png``.

    The folder is the examples' own; ``--output`` names another.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{text}\n\n{textwrap.fill(caption, CAPTION_COLUMNS)}"
    print(text)
    (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    columns = int(picture.get_figwidth() * CAPTION_COLUMNS_PER_INCH)
    picture.supxlabel(textwrap.fill(caption, columns), fontsize=7.5, x=0.02, ha="left")
    picture.savefig(folder / f"{name}.png", dpi=110)
