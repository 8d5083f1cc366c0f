"""The ablation's forms see less, and what they see matters."""

from dataclasses import replace

import numpy as np
import pytest

from llm_carbon_meter.predictor.features import GLOBAL_FEATURES, NODE_FEATURES
from llm_carbon_meter.predictor.step_law import TERMS
from llm_carbon_meter.training.fit.examples import Examples, examples
from llm_carbon_meter.training.study import ablation
from llm_carbon_meter.training.study.ablation import FORMS, Form, fit_form, visible
from llm_carbon_meter.training.study.phase_network import fit_phase_network, phase_logarithms
from tests.support.made.rows import grid


@pytest.fixture(scope="module")
def made() -> Examples:
    """Rows whose energy is a law of prefill and decode: decode costs ten times its roofline."""
    known = examples(grid(gpus=("H100",), outputs=(2.0, 50.0, 800.0)))
    return replace(known, joules=known.board_joules * (_seconds(known) @ np.array([1.0, 10.0])))


def _seconds(data: Examples) -> np.ndarray:
    """At the data sheet's rates, shape (n, phases)."""
    return data.terms[..., : TERMS.index("network")].sum(-1)


def test_the_whole_form_sees_everything(made: Examples) -> None:
    """Nothing is taken from the predictor itself."""
    assert visible(made, Form(phases=True, roofline=True)) is made


def test_without_roofline_nothing_of_it_is_left(made: Examples) -> None:
    """No throughput, time or bound; pooling by share is the plain mean over true kernels."""
    seen = visible(made, Form(phases=True, roofline=False))
    for name in ("intensity", "throughput", "time", "bound"):
        assert not seen.nodes[..., NODE_FEATURES.index(name)].any()
    for place, name in enumerate(GLOBAL_FEATURES):
        if name.endswith("_share") or name == "step_time":
            assert not seen.described[..., place].any()
    share = seen.nodes[..., NODE_FEATURES.index("share")]
    for phase in (0, 1):
        assert share[:, phase] * made.mask.sum(1, keepdims=True) == pytest.approx(made.mask)
    assert np.array_equal(seen.nodes[..., 0], made.nodes[..., 0])
    assert made.nodes[..., NODE_FEATURES.index("time")].any()


def test_without_phases_there_is_one_input(made: Examples) -> None:
    """Prefill and decode are averaged."""
    seen = visible(made, Form(phases=False, roofline=True))
    assert seen.nodes.shape == (len(made), 1, *made.nodes.shape[2:])
    assert seen.nodes[:, 0] == pytest.approx((made.nodes[:, 0] + made.nodes[:, 1]) / 2)
    assert seen.described[:, 0, -1] == pytest.approx(0.5)


@pytest.mark.parametrize("form", FORMS.values(), ids=str)
def test_every_form_learns(made: Examples, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own training rows each is closer than one constant energy."""
    monkeypatch.setattr(ablation, "EPOCHS", 200)
    predicted = fit_form(form, made, made, seed=0)
    constant = np.log(made.joules).std()
    assert predicted.shape == made.joules.shape
    assert np.sqrt(np.mean(np.log(predicted / made.joules) ** 2)) < constant / 3


def test_the_phases_are_not_exchangeable(made: Examples) -> None:
    """Trained to find that law, a network errs far more when the phases' features are swapped."""
    base = made.board_joules[:, None] * _seconds(made)
    network = fit_phase_network(made, base, seed=0, epochs=300)

    def error(data: Examples) -> float:
        predicted = (base * np.exp(phase_logarithms(network, data))).sum(-1)
        return float(np.abs(predicted / made.joules - 1).mean())

    swapped = replace(
        made, nodes=made.nodes[:, ::-1].copy(), described=made.described[:, ::-1].copy()
    )
    assert error(made) < 0.1
    assert error(swapped) > 5 * error(made)
