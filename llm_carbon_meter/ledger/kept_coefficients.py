"""Coefficients of work that outlive their meter: a file keeps what a `CoefficientLearner` saw."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from llm_carbon_meter import kept_state
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.kept_state import Identity
from llm_carbon_meter.ledger.coefficient_learner import CoefficientLearner
from llm_carbon_meter.physics.step_work import EFFICIENCIES, LAUNCH_S, CostModel
from llm_carbon_meter.records import MeterError

SAVE_S: Final = 10.0
"""The file is written at most this often."""


class KeptCoefficients:
    """Reads a learner's state at its start, and writes it now and then.

    Args:
        path: None keeps nothing.
        model: of the GPU and its kernel table; coefficients of another one are not taken.
        faults: counts of what went wrong.
    """

    def __init__(self, path: Path | None, model: CostModel, faults: Faults) -> None:
        self._path = path
        self._faults = faults
        self._identity = _identity(model)
        self.learner = self._load(model)
        self._saved = self.learner.coefficients
        self._saved_s = time.monotonic()

    def _load(self, model: CostModel) -> CoefficientLearner:
        anew = CoefficientLearner(model.gpu)
        if self._path is None:
            return anew
        try:
            kept = kept_state.load(
                self._path,
                self._identity,
                lambda kept: CoefficientLearner(model.gpu, kept["prices"]),
            )
        except MeterError as error:
            self._faults.note("prices", error, "They begin at the data sheet.")
            return anew
        return kept or anew

    def save_at_times(self) -> None:
        """Write the file if a while has passed."""
        if time.monotonic() - self._saved_s >= SAVE_S:
            self.save()

    def save(self) -> None:
        """Write the file if something was learnt: of several engines, the last one's."""
        self._saved_s = time.monotonic()
        if self._path is None or self._saved is self.learner.coefficients:
            return
        self._saved = self.learner.coefficients
        try:
            kept_state.save(self._path, self._identity, {"prices": self.learner.state})
        except MeterError as error:
            self._faults.note("prices", error, "What was learnt is not kept.")


def _identity(model: CostModel) -> Identity:
    """What the coefficients are per unit of: the work of one model's steps at one GPU's peaks."""
    gpu = model.gpu
    return {
        "gpu": gpu.name,
        "peaks": [gpu.compute_ops_per_s, gpu.bandwidth_bytes_per_s, gpu.board_watts],
        "units": [LAUNCH_S, *EFFICIENCIES.ravel().tolist()],
        "costs": asdict(model.costs) if model.costs else None,
    }
