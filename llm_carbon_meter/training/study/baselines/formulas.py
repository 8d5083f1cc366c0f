"""Baselines with at most one number that is fitted: what others published, and TDP x roofline."""

from collections.abc import Sequence

import numpy as np

from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.predictor.flop import NOTE_CONSTANTS, note_flop
from llm_carbon_meter.training.data.physics_features import engine_name, physics
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.study.baselines.baseline import Fitted, Floats, non_negative_fit


def fit_llmcarbon(rows: Sequence[Row], seed: int) -> Fitted:
    """LLMCarbon's FLOP / (peak x efficiency) x board power, without PUE.

    The efficiency is fitted for each engine, and for all together where an engine is new.
    """
    pooled = _inverse_efficiency(rows)
    of_engine = {
        engine: _inverse_efficiency([row for row in rows if engine_name(row) == engine])
        for engine in {engine_name(row) for row in rows}
    }

    def predict(rows: Sequence[Row]) -> Floats:
        factors = [of_engine.get(engine_name(row), pooled) for row in rows]
        return np.array(factors) * _joules_at_peak(rows)

    return Fitted(predict)


def _inverse_efficiency(rows: Sequence[Row]) -> float:
    return float(non_negative_fit(_joules_at_peak(rows)[:, None], rows)[0])


def _joules_at_peak(rows: Sequence[Row]) -> Floats:
    """Board power for the time that the operations take at peak; GPUs and batch cancel out."""
    return np.array([_flop(row) / _ops_per_joule(row.gpu) for row in rows])


def _ops_per_joule(gpu: str) -> float:
    spec = gpu_spec(gpu)
    return spec.compute_ops_per_s / spec.board_watts


def _flop(row: Row) -> float:
    return llmcarbon_flop(row.spec, row.prompt_tokens, row.output_tokens)


def llmcarbon_flop(model: ModelSpec, prompt_tokens: float, output_tokens: float) -> float:
    """2 P (L + N). With experts P is meant to be a dense base model: what a token meets."""
    parameters = model.active_parameters if model.num_experts else model.parameters
    return 2.0 * parameters * (prompt_tokens + output_tokens)


def fit_note(rows: Sequence[Row], seed: int) -> Fitted:
    """The LLM-BENCH note's formula as it is; it knows neither batch nor GPU."""

    def predict(rows: Sequence[Row]) -> Floats:
        return np.array([_note_joules(row) for row in rows])

    return Fitted(predict)


def _note_joules(row: Row) -> float:
    flop = note_flop(row.spec, np.array(row.prompt_tokens), np.array(row.output_tokens))
    operations = (
        flop.prefill / NOTE_CONSTANTS.prefill_utilisation
        + flop.decode / NOTE_CONSTANTS.decode_utilisation
    )
    return float(operations) * NOTE_CONSTANTS.joules_per_flop


def fit_tdp_roofline(rows: Sequence[Row], seed: int) -> Fitted:
    """Roofline time at board power, as it is."""
    return Fitted(lambda rows: physics(rows).board_joules)
