"""``llm-carbon-meter train``: the weights that the package ships, and their card."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

from llm_carbon_meter.predictor.gnn import CARD, WEIGHTS, Z_80
from llm_carbon_meter.predictor.posterior import ENERGY_NOISE
from llm_carbon_meter.predictor.step_law import FACTORS
from llm_carbon_meter.progress import progress
from llm_carbon_meter.training.data.campaigns import checksums, read_campaigns
from llm_carbon_meter.training.data.dataset import read_table, summary
from llm_carbon_meter.training.data.files import manifest
from llm_carbon_meter.training.data.rows import Row, Table
from llm_carbon_meter.training.data.splits import ARCHITECTURE_FOLDS
from llm_carbon_meter.training.fit.examples import Examples, examples, merge_repeats
from llm_carbon_meter.training.fit.kernel_rates import KernelRates, kernel_rates
from llm_carbon_meter.training.fit.metrics import errors
from llm_carbon_meter.training.fit.train import (
    GATES,
    Trained,
    choose_gate,
    fit,
    gate_errors,
    group_folds,
    prior_variance,
)

Floats = npt.NDArray[np.float64]

HELD: Final = 0.8
"""Share of measurements that the stated interval holds."""
LARGEST_MULTIPLE: Final = 10.0
LIMITS: Final = (
    "Gross energy of the GPUs alone. Trained on mean energies of whole requests under steady load; "
    "how a request's energy divides into prefill and decode follows from the step law and was not "
    "measured. Prompt lengths of the ML.ENERGY sets are assumed. Kernels of H200, B200, GB200 and "
    "L40S were measured, whole requests there were not; nor were any on T4 and L4."
)


class HeldOut(NamedTuple):
    """Predictions of rows that no fit has seen."""

    joules: Floats
    """Per request, shape (n,)."""
    variance: Floats
    """Of ln(joules), by the priors alone."""


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
    torch.set_num_threads(1)  # products are small: more threads wait for each other
    public, own, rates = read_table(data), read_campaigns(campaigns), kernel_rates(data)
    table = Table([*public.rows, *own.rows], [*public.refused, *own.refused])
    rows = merge_repeats(table.for_training())
    measured, groups = examples(rows), [row.architecture for row in rows]
    kinds = {"engine": measured.engines.tolist(), "gpu": measured.gpus.tolist()}
    with progress(total=6, desc="training", unit="part") as bar:
        gate = choose_gate(measured, groups, seed, rates)
        bar.update()
        strange = [gate_errors(measured, kind, seed, rates) for kind in kinds.values()]
        elsewhere = GATES[int(np.sum(strange, axis=0).argmin())]
        bar.update()
        held_out = hold_out(measured, groups, ARCHITECTURE_FOLDS, gate, rates)
        bar.update()
        apart = {}
        for name, kind in kinds.items():
            apart[name] = hold_out(measured, kind, len(set(kind)), elsewhere, rates)
            bar.update()
        final = fit(measured, gate, seed, rates)
        bar.update()
    judged = {"measured": held_out, **apart}
    card = {
        "data": dict(sorted({**manifest(), **checksums(campaigns)}.items())),
        **_card(rows, measured, final, held_out),
        "gates": {"measured": gate, "elsewhere": elsewhere},
        "widths": {name: _multiple(measured, apart_rows) for name, apart_rows in judged.items()},
    }
    write(final, card, output)
    return summary(table) + "\n\n" + json.dumps(card["held_out_architectures"], indent=2)


def hold_out(
    data: Examples, groups: Sequence[str], folds: int, gate: float, rates: KernelRates
) -> HeldOut:
    """Predict each row by a fit that has not seen its group.

    Args:
        data: the examples.
        groups: of each, held out as a whole.
        folds: of groups.
        gate: the network's share.
        rates: of measured kernels.
    """
    predicted, variance = np.zeros(len(data)), np.zeros(len(data))
    for inside, outside in group_folds(groups, data.weights, folds):
        trained, rest = fit(data.of(inside), gate, rates=rates), data.of(outside)
        predicted[outside] = trained.predict(rest)
        variance[outside] = prior_variance(rest, trained.physics, trained.factors(rest))
    return HeldOut(predicted, variance)


def _multiple(data: Examples, held_out: HeldOut) -> float:
    residual = np.log(data.joules / held_out.joules)
    return round(multiple(residual, held_out.variance, data.weights), 3)


def multiple(residual: Floats, variance: Floats, weights: Floats) -> float:
    """By what the prior's standard deviation is multiplied so that intervals hold their share.

    Args:
        residual: ln(measured / predicted) of rows held out, shape (n,).
        variance: of ln(predicted) by the priors, likewise.
        weights: of the rows.
    """
    low, high = 0.0, LARGEST_MULTIPLE
    while high - low > 1e-3:
        middle = (low + high) / 2
        width = Z_80 * deviation(variance, middle)
        enough = np.average(np.abs(residual) <= width, weights=weights) >= HELD
        low, high = (low, middle) if enough else (middle, high)
    return high


def deviation(variance: Floats, wider: float) -> Floats:
    """Standard deviation of ln(measured / predicted), given that multiple of the prior's."""
    return np.asarray(np.sqrt(wider**2 * variance + ENERGY_NOISE**2))


def _card(rows: Sequence[Row], data: Examples, final: Trained, held_out: HeldOut) -> dict[str, Any]:
    judged = errors(data.joules, held_out.joules, data.weights)
    return {
        "rows": len(rows),
        "architectures": len({row.architecture for row in rows}),
        "gpus": sorted(final.physics.gpus),
        "engines": sorted(final.physics.engines),
        "kernels": sorted(final.physics.kernels),
        "formats": sorted({row.spec.number_format for row in rows}),
        "held_out_architectures": {
            "folds": ARCHITECTURE_FOLDS,
            "mape_percent": round(judged.mape, 2),
            "median_percent": round(judged.median_ape, 2),
            "eba10_percent": round(judged.eba10, 2),
        },
        "limits": LIMITS,
    }


def write(trained: Trained, card: Mapping[str, Any], output: Path) -> None:
    """Weights and card into a folder; the card has the checksum of the weights."""
    physics = trained.physics
    tensors = {
        name: np.ascontiguousarray(value.detach().numpy())
        for name, value in trained.network.state_dict().items()
    }
    tensors["physics.time"] = physics.time
    tensors["physics.energy"] = physics.energy
    tensors["physics.power"] = np.array([physics.static, physics.active])
    for kind in ("engines", "gpus", "kernels"):
        factors = getattr(physics, kind)
        listed = [factors[name] for name in card[kind]]
        tensors[f"physics.{kind}"] = np.reshape(listed, (len(listed), len(FACTORS)))
    data = save(tensors)
    output.mkdir(parents=True, exist_ok=True)
    (output / WEIGHTS).write_bytes(data)
    card = {"sha256": hashlib.sha256(data).hexdigest(), **card}
    (output / CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")
