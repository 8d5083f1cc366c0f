"""Step coefficients outlive their meter, in a file that the like alone reads."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.formats.kept_state import SAVE_S
from llm_carbon_meter.ledger.coefficient_learner import CoefficientLearner
from llm_carbon_meter.ledger.kept_coefficients import KeptCoefficients, kept_lags
from llm_carbon_meter.ledger.lag_learner import LagLearner
from llm_carbon_meter.physics.gpu_specs import at_limit, gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_coefficients import LOADS
from llm_carbon_meter.physics.step_work import CostModel
from tests.support.steps.cost_models import H100, LLAMA


def taught(pupil: CoefficientLearner) -> float:
    """Let a learner see a GPU that draws 100 W more than its data sheet says when it is idle.

    Returns:
        Watts that it then expects.
    """
    for _ in range(50):
        pupil.see_tick(
            "gpu", np.zeros(0), np.zeros((0, len(LOADS))), 1.0, 0.0, H100.idle_watts + 100
        )
    assert pupil.coefficients.idle_watts > H100.idle_watts + 90
    return pupil.coefficients.idle_watts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where nothing is yet."""
    return tmp_path / "prices.json"


def learnt_into(path: Path) -> float:
    """Watts that a meter learnt and kept there."""
    file = KeptCoefficients(path, LLAMA, Faults())
    watts = taught(file.learner)
    file.save()
    return watts


def test_the_next_meter_goes_on_with_what_was_learnt(path: Path) -> None:
    """The same GPU and model: the same coefficients; nothing else is left beside the file."""
    watts, faults = learnt_into(path), Faults()
    assert KeptCoefficients(path, LLAMA, faults).learner.coefficients.idle_watts == pytest.approx(
        watts
    )
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert not faults.counts


@pytest.mark.parametrize(
    "other",
    [
        CostModel(gpu_spec("A100"), LLAMA.costs),
        CostModel(at_limit(H100, 500.0), LLAMA.costs),
        CostModel(H100, step_costs(built_in_model("Llama-3.1-8B"), 2)),
        CostModel(H100, step_costs(built_in_model("Qwen2.5-14B"))),
    ],
)
def test_another_gpu_or_model_begins_anew(path: Path, other: CostModel) -> None:
    """Its coefficients are of other work; the file is then its own."""
    learnt_into(path)
    faults = Faults()
    file = KeptCoefficients(path, other, faults)
    assert file.learner.coefficients.idle_watts == other.gpu.idle_watts
    assert not faults.counts
    taught(file.learner)
    file.save()
    assert KeptCoefficients(path, LLAMA, faults).learner.coefficients.idle_watts == H100.idle_watts


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "{}"])
def test_a_damaged_file_is_counted_and_replaced(path: Path, text: str) -> None:
    """The meter begins at the data sheet, and what it learns takes the file's place."""
    path.write_text(text, "utf-8")
    faults = Faults()
    file = KeptCoefficients(path, LLAMA, faults)
    assert faults.counts == {"prices": 1}
    watts = taught(file.learner)
    file.save()
    assert KeptCoefficients(path, LLAMA, faults).learner.coefficients.idle_watts == pytest.approx(
        watts
    )
    assert faults.counts == {"prices": 1}


def test_damaged_coefficients_are_named(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which file, and what is wrong in it."""
    learnt_into(path)
    path.write_text(path.read_text("utf-8").replace("[[", "[[1.0], [", 1), "utf-8")
    KeptCoefficients(path, LLAMA, Faults())
    assert f"the file {path} cannot be used" in caplog.text
    assert "It begins anew" in caplog.text


def test_a_folder_that_is_not_there_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was learnt is not kept, the log says why in a line, and the meter goes on."""
    faults, path = Faults(), tmp_path / "no" / "prices.json"
    file = KeptCoefficients(path, LLAMA, faults)
    taught(file.learner)
    file.save()
    assert faults.counts == {"prices": 1}
    assert f"the file {path} cannot be written" in caplog.text
    assert "Traceback" not in caplog.text


def test_lags_are_those_of_gpus_under_any_model(path: Path) -> None:
    """Beside the coefficients; another model's meter goes on with them, and so does `check`."""
    file = KeptCoefficients(path, LLAMA, Faults())
    taught(file.learner)
    file.lags = LagLearner({"GPU-a": 0.03, "GPU-b": 0.12})
    file.save()
    other = CostModel(H100, step_costs(built_in_model("Qwen2.5-14B")))
    for model in (LLAMA, other):
        faults = Faults()
        lags = KeptCoefficients(path, model, faults).lags
        assert lags.lags_s == kept_lags(path) == {"GPU-a": 0.03, "GPU-b": 0.12}
        assert lags.beyond_s("GPU-b", 0.02) == pytest.approx(0.1)
        assert not faults.counts


def test_a_file_from_before_lags_were_kept_is_read(path: Path) -> None:
    """Its coefficients hold, and no lag is known."""
    watts = learnt_into(path)
    form = msgspec.json.decode(path.read_bytes())
    del form["lags_s"]
    path.write_bytes(msgspec.json.encode(form))
    faults = Faults()
    file = KeptCoefficients(path, LLAMA, faults)
    assert file.learner.coefficients.idle_watts == pytest.approx(watts)
    assert file.lags.lags_s == {}
    assert not faults.counts


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "{}", '{"deployment": 1, "lags_s": {"a": "b"}}']
)
def test_lags_that_cannot_be_read_are_unknown(path: Path, text: str | None) -> None:
    """No file, or one that is damaged."""
    if text is not None:
        path.write_text(text, "utf-8")
    assert kept_lags(path) == {}


def test_it_is_written_only_when_something_was_learnt(path: Path) -> None:
    """A meter that saw nothing leaves the file as it was; without a file all is forgotten."""
    KeptCoefficients(path, LLAMA, Faults()).save()
    assert not path.exists()
    nowhere = KeptCoefficients(None, LLAMA, Faults())
    taught(nowhere.learner)
    nowhere.save()
    assert not list(path.parent.iterdir())


def test_it_is_written_at_times(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with every tick."""
    now_s = [100.0]
    monkeypatch.setattr("llm_carbon_meter.formats.kept_state.time.monotonic", lambda: now_s[0])
    file = KeptCoefficients(path, LLAMA, Faults())
    taught(file.learner)
    for at_s, there in ((100.0, False), (99.0 + SAVE_S, False), (100.0 + SAVE_S, True)):
        now_s[0] = at_s
        file.save_at_times()
        assert path.exists() == there
