"""Baselines with a few coefficients, fitted in relative error or in logarithms."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from sklearn.linear_model import Ridge

from llm_carbon_meter.training.data.physics_features import column, physics
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.study.baselines.baseline import (
    Fitted,
    Floats,
    distinct,
    non_negative_fit,
    one_hot,
)

LEAST_DEPLOYMENT_ROWS: Final = 6
"""Twice the coefficients of a deployment."""
RIDGE: Final = 1e-3
"""Only settles what one-hot columns leave open: the effects of the GPUs sum to about 0."""


def fit_two_parameters(rows: Sequence[Row], seed: int) -> Fitted:
    """a x TDP x roofline + b joules per sequence and step."""
    coefficients = non_negative_fit(_two_columns(rows), rows)
    return Fitted(lambda rows: _two_columns(rows) @ coefficients)


def _two_columns(rows: Sequence[Row]) -> Floats:
    return np.stack([physics(rows).board_joules, column(rows, "output_tokens")], axis=1)


def fit_per_deployment(rows: Sequence[Row], seed: int) -> Fitted:
    """a + b N + c N x context for each deployment; one without enough rows has two parameters.

    So it is `fit_two_parameters` for every model, GPU and engine that it has not seen.
    """
    pooled = fit_two_parameters(rows, seed)
    deployments = defaultdict(list)
    for row in rows:
        deployments[deployment(row)].append(row)
    fits = {
        key: non_negative_fit(_length_columns(same), same)
        for key, same in deployments.items()
        if len(same) >= LEAST_DEPLOYMENT_ROWS
    }

    def predict(rows: Sequence[Row]) -> Floats:
        joules = pooled.predict(rows)
        lengths = _length_columns(rows)
        for place, row in enumerate(rows):
            if deployment(row) in fits:
                joules[place] = lengths[place] @ fits[deployment(row)]
        return joules

    return Fitted(predict)


def deployment(row: Row) -> tuple[object, ...]:
    """A model on its GPUs under an engine, at about one concurrency (within a factor of 2)."""
    octave = int(np.log2(row.concurrency))
    return row.model, row.gpu, row.engine, row.engine_version, row.num_gpus, octave


def _length_columns(rows: Sequence[Row]) -> Floats:
    """1, N and N times the mean context of decode."""
    prompt, output = column(rows, "prompt_tokens"), column(rows, "output_tokens")
    return np.stack([np.ones(len(rows)), output, output * (prompt + output / 2)], axis=1)


def fit_physics(rows: Sequence[Row], seed: int) -> Fitted:
    """Pooled: time, operations, bytes, network and two host costs, scaled by the data sheet."""
    coefficients = non_negative_fit(_physics_columns(rows), rows)
    return Fitted(lambda rows: _physics_columns(rows) @ coefficients)


def _physics_columns(rows: Sequence[Row]) -> Floats:
    shared = physics(rows)
    columns = (
        shared.board_joules,
        shared.compute_board_joules,
        shared.memory_board_joules,
        shared.network_board_joules,
        shared.step_board_watts,
        shared.sequence_step_board_watts,
    )
    return np.stack(columns, axis=1)


def fit_joules_per_token(rows: Sequence[Row], seed: int) -> Fitted:
    """ln(J per output token), linear in ln(active parameters), ln(batch) and the GPU."""
    gpus = distinct([row.gpu for row in rows])
    target = np.log(column(rows, "energy_joules") / column(rows, "output_tokens"))
    model = Ridge(alpha=RIDGE)
    model.fit(_token_columns(rows, gpus), target, sample_weight=column(rows, "weight"))

    def predict(rows: Sequence[Row]) -> Floats:
        per_token: Floats = np.exp(model.predict(_token_columns(rows, gpus)))
        return per_token * column(rows, "output_tokens")

    return Fitted(predict)


def _token_columns(rows: Sequence[Row], gpus: Sequence[str]) -> Floats:
    parameters = np.array([row.spec.active_parameters for row in rows], np.float64)
    sizes = np.log(np.stack([parameters, column(rows, "concurrency")], axis=1))
    return np.hstack([sizes, one_hot([row.gpu for row in rows], gpus)])
