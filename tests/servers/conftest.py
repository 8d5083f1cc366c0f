"""Hosts on which something is missing."""

import tempfile

import pytest


@pytest.fixture
def no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder for temporary files can be written; the channel's directory is not set."""
    monkeypatch.delenv("LLM_CARBON_METER_CHANNEL_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
