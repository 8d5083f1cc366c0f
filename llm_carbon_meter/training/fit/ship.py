"""``llm-carbon-meter train``: the weights that the package ships, and their card."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save
from tqdm import tqdm

from llm_carbon_meter.predictor.gnn import CARD, WEIGHTS
from llm_carbon_meter.training.data.campaigns import checksums, read_campaigns
from llm_carbon_meter.training.data.dataset import read_table, summary
from llm_carbon_meter.training.data.files import manifest
from llm_carbon_meter.training.data.rows import Row, Table
from llm_carbon_meter.training.data.splits import (
    ARCHITECTURE_FOLDS,
    leave_engine_out,
    leave_gpu_out,
)
from llm_carbon_meter.training.fit.examples import Examples, examples, merge_repeats
from llm_carbon_meter.training.fit.metrics import errors, weighted_quantile
from llm_carbon_meter.training.fit.train import (
    Trained,
    choose_gate,
    fit,
    fit_physics,
    group_folds,
    phase_joules,
)

Floats = npt.NDArray[np.float64]

LOW, HIGH = 0.1, 0.9
LIMITS: Final = (
    "Gross energy of the GPUs alone. Trained on mean energies of whole requests under steady load; "
    "how a request's energy divides into prefill and decode follows from the physics and was not "
    "measured. Prompt lengths of the ML.ENERGY sets are assumed. Without B200, T4, L4; Gemma and "
    "Mixtral only by their shape."
)


def train(data: Path, output: Path, seed: int = 0, campaigns: Sequence[Path] = ()) -> str:
    """Fit on all rows of a data folder and write the weights and their card.

    Args:
        data: the public data sets.
        output: folder of the weights.
        seed: of the network.
        campaigns: files of measurements to fit to as well.

    Returns:
        What was read and what came out, for people.

    Raises:
        ConfigError: a file is missing.
    """
    public, own = read_table(data), read_campaigns(campaigns)
    table = Table([*public.rows, *own.rows], [*public.refused, *own.refused])
    rows = merge_repeats(table.for_training())
    known, groups = examples(rows), [row.architecture for row in rows]
    with tqdm(total=ARCHITECTURE_FOLDS + 2, desc="training", unit="fit") as progress:
        gate = choose_gate(known, groups, seed)
        progress.update()
        held_out = np.zeros(len(rows))
        for inside, outside in group_folds(groups, known.weights, ARCHITECTURE_FOLDS):
            held_out[outside] = fit(known.of(inside), gate, seed).predict(known.of(outside))
            progress.update()
        final = fit(known, gate, seed)
        progress.update()
    sources = {**manifest(), **checksums(campaigns)}
    card = {"data": dict(sorted(sources.items())), **_card(rows, known, final, held_out)}
    write(final, card, output)
    return summary(table) + "\n\n" + json.dumps(card["held_out_architectures"], indent=2)


def _card(rows: Sequence[Row], known: Examples, final: Trained, held_out: Floats) -> dict[str, Any]:
    residual = np.log(known.joules / held_out)
    low, high = quantiles(residual, known.weights)
    within = (residual >= low) & (residual <= high)
    found = errors(known.joules, held_out, known.weights)
    return {
        "rows": len(rows),
        "architectures": len({row.architecture for row in rows}),
        "gpus": sorted(final.physics.gpus),
        "engines": sorted(final.physics.engines),
        "held_out_architectures": {
            "folds": ARCHITECTURE_FOLDS,
            "mape_percent": round(found.mape, 2),
            "median_percent": round(found.median_ape, 2),
            "eba10_percent": round(found.eba10, 2),
            "coverage_percent": round(100 * float(np.average(within, weights=known.weights)), 1),
        },
        "interval": {"low": low, "high": high, "wider_outside": _widening(rows, known, high - low)},
        "gate": final.gate,
        "largest": final.network.largest,
        "limits": LIMITS,
    }


def quantiles(residual: Floats, weights: Floats) -> tuple[float, float]:
    """The 10 % and 90 % quantiles of weighted residuals."""
    share = weights / weights.sum()
    return weighted_quantile(residual, share, LOW), weighted_quantile(residual, share, HIGH)


def _widening(rows: Sequence[Row], known: Examples, inside: float) -> float:
    """How much wider errors spread on GPUs and engines that the physics has not seen."""
    spread = []
    for split in (*leave_gpu_out(rows), *leave_engine_out(rows)):
        rest = known.of(split.test)
        physics = fit_physics(known.of(split.train))
        predicted = phase_joules(rest, physics).sum(-1)
        low, high = quantiles(np.log(rest.joules / predicted), rest.weights)
        spread.append(max(high, 0.0) - min(low, 0.0))
    return max(1.0, float(np.median(spread)) / inside)


def write(trained: Trained, card: Mapping[str, Any], output: Path) -> None:
    """Weights and card into a folder; the card has the checksum of the weights."""
    physics = trained.physics
    tensors = {
        name: np.ascontiguousarray(value.detach().numpy())
        for name, value in trained.network.state_dict().items()
    }
    tensors["physics.time"] = physics.time
    tensors["physics.energy"] = physics.energy
    tensors["physics.decode"] = np.array(
        [physics.decode_time, physics.decode_energy, physics.static]
    )
    tensors["physics.gpus"] = np.array([physics.gpus[name] for name in card["gpus"]])
    tensors["physics.engines"] = np.stack([physics.engines[name] for name in card["engines"]])
    data = save(tensors)
    output.mkdir(parents=True, exist_ok=True)
    (output / WEIGHTS).write_bytes(data)
    card = {"sha256": hashlib.sha256(data).hexdigest(), **card}
    (output / CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")
