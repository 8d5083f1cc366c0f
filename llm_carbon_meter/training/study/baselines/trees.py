"""Baselines of trees over whole requests: a forest on raw columns, boosting on physics."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

from llm_carbon_meter.training.data.physics_features import column, engine_name, physics
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.study.baselines.baseline import Fitted, Floats, codes, distinct
from llm_carbon_meter.training.study.baselines.regressions import fit_physics

FOREST_TREES: Final = 200
BOOSTING_ROUNDS: Final = 200
LEAST_JOULES: Final = 1e-9
"""Added before a logarithm, for requests that use no network."""


def fit_raw_forest(rows: Sequence[Row], seed: int) -> Fitted:
    """ln(J) from model, GPU, engine, GPUs, batch, prompt and output as they stand in the table."""
    names = tuple(distinct(values) for values in _names(rows))
    forest = RandomForestRegressor(FOREST_TREES, random_state=seed)
    target = np.log(column(rows, "energy_joules"))
    forest.fit(_raw_columns(rows, names), target, sample_weight=column(rows, "weight"))
    return Fitted(lambda rows: np.exp(forest.predict(_raw_columns(rows, names))))


def _names(rows: Sequence[Row]) -> tuple[list[str], list[str], list[str]]:
    return (
        [row.model for row in rows],
        [row.gpu for row in rows],
        [engine_name(row) for row in rows],
    )


def _raw_columns(rows: Sequence[Row], known: tuple[list[str], ...]) -> Floats:
    coded = [codes(values, names) for values, names in zip(_names(rows), known, strict=True)]
    numbers = ("num_gpus", "concurrency", "prompt_tokens", "output_tokens")
    return np.stack([*coded, *(column(rows, name) for name in numbers)], axis=1)


def fit_boosting(rows: Sequence[Row], seed: int) -> Fitted:
    """ln(J / pooled physics regression) from the logarithms of the physical columns."""
    base = fit_physics(rows, seed)
    engines = distinct([engine_name(row) for row in rows])
    model = HistGradientBoostingRegressor(
        max_iter=BOOSTING_ROUNDS,
        learning_rate=0.05,
        max_leaf_nodes=15,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    target = np.log(column(rows, "energy_joules") / base.predict(rows))
    model.fit(_log_columns(rows, engines), target, sample_weight=column(rows, "weight"))

    def predict(rows: Sequence[Row]) -> Floats:
        correction: Floats = np.exp(model.predict(_log_columns(rows, engines)))
        return base.predict(rows) * correction

    return Fitted(predict)


def _log_columns(rows: Sequence[Row], engines: Sequence[str]) -> Floats:
    """Physical columns, the batch and the lengths in logarithms, and the engine's number."""
    numbers = ("num_gpus", "concurrency", "prompt_tokens", "output_tokens")
    sizes = [*physics(rows), *(column(rows, name) for name in numbers)]
    logs = [np.log(values + LEAST_JOULES) for values in sizes]
    return np.stack([*logs, codes([engine_name(row) for row in rows], engines)], axis=1)
