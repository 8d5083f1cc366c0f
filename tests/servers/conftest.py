"""Hosts on which something is missing, and no channel that another test chose."""

import tempfile

import pytest

from llm_carbon_meter.config import CHANNEL_DIR_VARIABLE


@pytest.fixture(autouse=True)
def _own_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts in this process tells its children of its channel, not other tests."""
    monkeypatch.setenv(CHANNEL_DIR_VARIABLE, "")
    monkeypatch.delenv(CHANNEL_DIR_VARIABLE)


@pytest.fixture
def no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder for temporary files can be written."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
