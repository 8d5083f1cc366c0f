"""Files and folders of the settings: what a server could not write is said before it starts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from llm_carbon_meter.check.files import check_files
from llm_carbon_meter.check.findings import Finding, Verdict
from llm_carbon_meter.check.host import _metrics, _model, _token
from llm_carbon_meter.config import Config
from llm_carbon_meter.formats.kept_state import save
from llm_carbon_meter.predictor.live import FactorState
from llm_carbon_meter.predictor.step_law import FACTORS
from llm_carbon_meter.records import DeploymentFactors


def found(**settings: str) -> Finding:
    """The only finding of some settings."""
    (finding,) = check_files(dataclasses.replace(Config(), **settings))
    return finding


@pytest.mark.parametrize("name", ["request_log", "calibration_file", "prices_file"])
def test_a_file_that_can_be_written_is_left_as_it_was(tmp_path: Path, name: str) -> None:
    """Whether or not it is there."""
    assert found(**{name: str(tmp_path / "file")}).verdict is Verdict.OK
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["request_log", "calibration_file", "prices_file"])
@pytest.mark.parametrize(
    ("path", "reason"), [("none/file", "No such file or directory"), ("", "Is a directory")]
)
def test_a_file_that_cannot_be_written_is_a_note(
    tmp_path: Path, name: str, path: str, reason: str
) -> None:
    """Requests are metered all the same; the finding says what would be missing."""
    finding = found(**{name: str(tmp_path / path)})
    assert finding.verdict is Verdict.NOTE
    assert f"{tmp_path / path}: it cannot be written ({reason}); " in finding.text


def test_a_damaged_calibration_is_a_note(tmp_path: Path) -> None:
    """A sound one is not."""
    path = tmp_path / "kept.json"
    path.write_text("{")
    finding = found(calibration_file=str(path))
    assert finding.verdict is Verdict.NOTE
    assert "cannot be used" in finding.text
    assert "learning would begin anew" in finding.text
    size = len(FACTORS)
    spread = tuple(map(tuple, np.eye(size).tolist()))
    factors = DeploymentFactors((0.0,) * size, spread, 3)
    save(path, FactorState(factors), {"gpu": "H100"})
    finding = found(calibration_file=str(path))
    assert (finding.verdict, finding.text) == (Verdict.OK, f"{path} can be read and written")


@pytest.mark.parametrize("variable", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_a_folder_of_metrics_that_is_missing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """No server could export anything; without the variable there is nothing to look at."""
    assert not list(_metrics())
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    (finding,) = _metrics()
    assert finding.verdict is Verdict.FAILS
    assert "metrics cannot be written there (No such file or directory)" in finding.text
    monkeypatch.setenv(variable, str(tmp_path))
    (finding,) = _metrics()
    assert finding.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("token", "verdict", "words"),
    [
        ("", Verdict.NOTE, "ELECTRICITYMAPS_TOKEN is not set"),
        ("secret\n", Verdict.NOTE, "such as an end of line"),
        ("secret", Verdict.OK, "is set, 6 characters"),
    ],
)
def test_the_token_of_a_service(token: str, verdict: Verdict, words: str) -> None:
    """Is never shown."""
    config = Config(carbon_provider="electricitymaps", electricitymaps_token=token)
    (finding,) = _token(config)
    assert finding.verdict is verdict
    assert words in finding.text
    assert "secret" not in finding.text
    assert not list(_token(Config()))


def test_a_model_is_known_or_not() -> None:
    """Where one is named."""
    assert not list(_model(""))
    (known,), (unknown,) = _model("Llama-3.1-8B"), _model("Llama-9-1B")
    assert (known.verdict, unknown.verdict) == (Verdict.OK, Verdict.NOTE)
    assert "8.03 billion parameters" in known.text
    assert "have no estimate" in unknown.text
