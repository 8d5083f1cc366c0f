"""The predictor with parts taken away: what each of them is worth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.predictor.graph import GLOBAL_FEATURES, NODE_FEATURES
from llm_carbon_meter.predictor.network import LARGEST
from llm_carbon_meter.training.examples import Examples
from llm_carbon_meter.training.train import (
    EPOCHS,
    SHRINKAGE,
    fit_network,
    fit_physics,
    phase_joules,
    residuals,
)

Floats = npt.NDArray[np.float64]

ROOFLINE_NODES: Final = ("intensity", "throughput", "time", "bound")
ROOFLINE_GLOBALS: Final = (
    *(name for name in GLOBAL_FEATURES if name.endswith("_share")),
    "step_time",
)
ALONE_EPOCHS: Final = 200
"""Without physics there is more to learn than in the predictor's own 80."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a predictor is made of."""

    phases: bool = True
    """Prefill and decode have inputs and an output each; else their mean is one input."""
    roofline: bool = True
    """Nodes and globals know throughput, time and bound, and nodes count by their time."""
    residual: bool = True
    """The network corrects the physics; else it predicts energy by itself."""


FORMS: Final[Mapping[str, Form]] = {
    "plain GNN": Form(phases=False, roofline=False, residual=False),
    "+ prefill/decode": Form(roofline=False, residual=False),
    "+ roofline": Form(residual=False),
}
"""Built up one part after the other; the last part, the physics, makes it the predictor itself."""


def fit_form(form: Form, train: Examples, test: Examples, seed: int) -> Floats:
    """Joules per request of the test examples, shape (n,); no gate."""
    base_train, base_test = _bases(form, train, test)
    seen = visible(train, form)
    network = fit_network(
        seen,
        base_train,
        seed,
        largest=LARGEST if form.residual else float("inf"),
        shrinkage=SHRINKAGE if form.residual else 0.0,
        epochs=EPOCHS if form.residual else ALONE_EPOCHS,
    )
    correction = residuals(network, visible(test, form))
    return np.asarray((base_test * np.exp(correction)).sum(-1))


def visible(data: Examples, form: Form) -> Examples:
    """The examples with what a form's network sees of them."""
    seen = data if form.roofline else _without_roofline(data)
    return seen if form.phases else _one_phase(seen)


def _without_roofline(data: Examples) -> Examples:
    """A kernel's share, which pools, is the same for all: a plain mean."""
    nodes, described = data.nodes.copy(), data.described.copy()
    nodes[..., [NODE_FEATURES.index(name) for name in ROOFLINE_NODES]] = 0.0
    alike = data.mask / data.mask.sum(-1, keepdims=True)
    nodes[..., NODE_FEATURES.index("share")] = alike[:, None]
    described[..., [GLOBAL_FEATURES.index(name) for name in ROOFLINE_GLOBALS]] = 0.0
    return replace(data, nodes=nodes, described=described)


def _one_phase(data: Examples) -> Examples:
    """Nodes (n, 1, kernels, features) and globals (n, 1, features): the mean of the phases."""
    return replace(
        data,
        nodes=data.nodes.mean(1, keepdims=True),
        described=data.described.mean(1, keepdims=True),
    )


def _bases(form: Form, train: Examples, test: Examples) -> tuple[Floats, Floats]:
    """What the network corrects, shapes (n, phases): the physics, or one and the same energy."""
    if form.residual:
        physics = fit_physics(train)
        bases = [phase_joules(data, physics) for data in (train, test)]
    else:
        typical = float(np.exp(np.average(np.log(train.joules), weights=train.weights)))
        bases = [np.full((len(data), 2), typical / 2) for data in (train, test)]
    if not form.phases:
        bases = [base.sum(-1, keepdims=True) for base in bases]
    return bases[0], bases[1]
