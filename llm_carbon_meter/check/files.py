"""Looks at the files that a server writes: one finding for each that the settings name."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from llm_carbon_meter.check.findings import Finding, Verdict
from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.receipts import key_id, private_key
from llm_carbon_meter.formats.kept_state import load
from llm_carbon_meter.ledger.kept_coefficients import FileForm
from llm_carbon_meter.predictor.live import FactorState
from llm_carbon_meter.records import MeterError


def check_files(config: Config) -> Iterator[Finding]:
    """The request log, its key, and what was learnt; nothing is left behind."""
    if config.request_log:
        yield _log(Path(config.request_log))
    if config.receipt_key:
        yield _key(Path(config.receipt_key))
    if config.calibration_file:
        yield _kept("calibration", Path(config.calibration_file), FactorState)
    if config.prices_file:
        yield _kept("prices", Path(config.prices_file), FileForm)


def _log(path: Path) -> Finding:
    """The log is appended to, and its folder gets the rotated ones."""
    problem = _unwritable(path)
    if problem:
        text = f"{path}: {problem}; records would be in the metrics only"
        return Finding("request log", Verdict.NOTE, text)
    return Finding("request log", Verdict.OK, f"{path} can be written")


def _key(path: Path) -> Finding:
    """The key that signs records."""
    try:
        key = key_id(private_key(path).public_key())
    except MeterError as error:
        return Finding("receipts", Verdict.NOTE, f"{error}; records would not be signed")
    return Finding("receipts", Verdict.OK, f"{path} signs final records, key {key}", {"key": key})


def _kept(topic: str, path: Path, kind: type[Any]) -> Finding:
    """A kept file is read at the start, and replaced by a new one beside it."""
    problem = _unwritable(path)
    if problem:
        text = f"{path}: {problem}; what is learnt would not be kept"
        return Finding(topic, Verdict.NOTE, text)
    said: list[str] = []
    try:
        kept = load(path, kind, None, said.append)
    except MeterError as error:
        return Finding(topic, Verdict.NOTE, f"{error}; learning would begin anew")
    if said:
        return Finding(topic, Verdict.NOTE, f"{path}: {'; '.join(said)}")
    what = "can be written, nothing is kept yet" if kept is None else "can be read and written"
    return Finding(topic, Verdict.OK, f"{path} {what}")


def _unwritable(path: Path) -> str:
    """Why a file, or another one beside it, cannot be written; empty where both can."""
    try:
        with TemporaryFile(dir=path.parent):
            pass
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        return f"it cannot be written ({error.strerror})"
    return ""
