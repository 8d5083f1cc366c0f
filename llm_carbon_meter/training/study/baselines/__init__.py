"""What the predictor is compared with; every baseline sees the same rows, splits and labels.

    fitted = BASELINES["random forest"].fit(train_rows, seed=0)
    joules = fitted.predict(test_rows)

A new baseline is a function from rows and a seed to a `Fitted`, and a line here.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

from llm_carbon_meter.training.study.baselines.baseline import Baseline, Fitted
from llm_carbon_meter.training.study.baselines.deepen import fit_deepen
from llm_carbon_meter.training.study.baselines.formulas import (
    fit_llmcarbon,
    fit_note,
    fit_tdp_roofline,
)
from llm_carbon_meter.training.study.baselines.nnlqp import NARROW_BUDGET, NARROW_WIDTH, fit_nnlqp
from llm_carbon_meter.training.study.baselines.regressions import (
    fit_joules_per_token,
    fit_per_deployment,
    fit_physics,
    fit_two_parameters,
)
from llm_carbon_meter.training.study.baselines.trees import fit_boosting, fit_raw_forest

__all__ = ["BASELINES", "Baseline", "Fitted"]

_ALL: Final = (
    Baseline("LLMCarbon", fit_llmcarbon),
    Baseline("LLM-BENCH note", fit_note),
    Baseline("TDP x roofline", fit_tdp_roofline),
    Baseline("two parameters", fit_two_parameters),
    Baseline("per deployment", fit_per_deployment),
    Baseline("physics", fit_physics),
    Baseline("J per token", fit_joules_per_token),
    Baseline("random forest", fit_raw_forest),
    Baseline("boosting on physics", fit_boosting),
    Baseline("DeepEn", fit_deepen),
    Baseline("NNLQP", fit_nnlqp),
    Baseline("NNLQP, 16 wide", partial(fit_nnlqp, width=NARROW_WIDTH, budget=NARROW_BUDGET)),
)

BASELINES: Final[Mapping[str, Baseline]] = {baseline.name: baseline for baseline in _ALL}
