"""The predictor with parts taken away: what each of them is worth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.predictor.features import GLOBAL_FEATURES, NODE_FEATURES
from llm_carbon_meter.training.fit.examples import Examples
from llm_carbon_meter.training.study.phase_network import fit_phase_network, phase_logarithms

Floats = npt.NDArray[np.float64]

ROOFLINE_NODES: Final = ("intensity", "throughput", "time", "bound")
ROOFLINE_GLOBALS: Final = (
    *(name for name in GLOBAL_FEATURES if name.endswith("_share")),
    "step_time",
)
EPOCHS: Final = 1000
"""To convergence: 200 leave a quarter of what can be gained."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a network that predicts energy by itself, without the physics, is made of."""

    phases: bool
    """Prefill and decode have inputs and an output each; else their mean is one input."""
    roofline: bool
    """Nodes and globals know throughput, time and bound, and nodes count by their time."""


FORMS: Final[Mapping[str, Form]] = {
    "plain GNN": Form(phases=False, roofline=False),
    "+ prefill/decode": Form(phases=True, roofline=False),
    "+ roofline": Form(phases=True, roofline=True),
}
"""Built up one part after the other; the last part, the physics, makes it the predictor itself."""


def fit_form(form: Form, train: Examples, test: Examples, seed: int) -> Floats:
    """Joules per request of the test examples, shape (n,); no gate.

    The network corrects one and the same energy per generated token, the typical one.
    """
    per_token = np.log(train.joules / train.output_tokens)
    typical = float(np.exp(np.average(per_token, weights=train.weights)))
    phases = 2 if form.phases else 1
    start = np.repeat(typical / phases * train.output_tokens[:, None], phases, axis=1)
    network = fit_phase_network(visible(train, form), start, seed, EPOCHS)
    correction = phase_logarithms(network, visible(test, form))
    return np.asarray(typical / phases * test.output_tokens * np.exp(correction).sum(-1))


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
