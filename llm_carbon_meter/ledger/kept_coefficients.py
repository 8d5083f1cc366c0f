"""Step coefficients and counters' lags that outlive their meter, in one file.

The coefficients are of one model on one kind of GPU, the lags of single GPUs under any model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.formats.kept_state import Identity, KeptState, load
from llm_carbon_meter.ledger.coefficient_learner import CoefficientLearner, LearnerState
from llm_carbon_meter.ledger.lag_learner import LagLearner
from llm_carbon_meter.physics.linear_kernels import KNOTS
from llm_carbon_meter.physics.step_work import LAUNCH_S, SEQUENCE_S, CostModel
from llm_carbon_meter.records import MeterError


@dataclass(frozen=True, slots=True)
class FileForm:
    """What the file holds beside the deployment."""

    prices: LearnerState
    """The name is that of the first version."""
    lags_s: Mapping[str, float] = field(default_factory=dict)
    """Learnt, by GPU; the first files have none."""


def kept_lags(path: Path) -> Mapping[str, float]:
    """Learnt lags of counters in seconds, by GPU; none where there is no file that can be read."""
    try:
        form = load(path, FileForm, None, lambda text: None)
    except MeterError:
        return {}
    return form.lags_s if form else {}


class KeptCoefficients:
    """Learners that go on with what their file has, and its writing now and then.

    Args:
        path: None keeps nothing.
        model: of the GPU and its kernel table; coefficients of another one are not taken.
        faults: counts of what went wrong.
    """

    def __init__(self, path: Path | None, model: CostModel, faults: Faults) -> None:
        self._file = KeptState(path, FileForm, _identity(model), faults, "prices")
        before = self._file.load(lambda form: CoefficientLearner(model.gpu, form.prices))
        self.learner = before or CoefficientLearner(model.gpu)
        self.lags = LagLearner(kept_lags(path) if path else {})
        self._saved = self.learner.coefficients

    def save_at_times(self) -> None:
        """Write the file if a while has passed."""
        if self._file.is_due:
            self.save()

    def save(self) -> None:
        """Write the file if something was learnt: of several engines, the last one's."""
        if self._saved is not self.learner.coefficients:
            self._saved = self.learner.coefficients
            self._file.save(FileForm(self.learner.state, self.lags.lags_s))


def _identity(model: CostModel) -> Identity:
    """What the coefficients are per unit of: one model's steps at one GPU's peaks."""
    gpu = model.gpu
    return {
        "gpu": gpu.name,
        "peaks": [gpu.compute_ops_per_s, gpu.bandwidth_bytes_per_s, gpu.limit_watts],
        "units": [LAUNCH_S, SEQUENCE_S, *KNOTS.tolist()],
        "costs": asdict(model.costs) if model.costs else None,
    }
