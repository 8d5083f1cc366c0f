"""Files that keep what was learnt: how they are written."""

import os
from dataclasses import dataclass
from pathlib import Path

from llm_carbon_meter.formats.kept_state import load, save


@dataclass(frozen=True)
class State:
    """What is kept in these tests."""

    value: int


def test_a_link_beside_the_file_leads_nowhere(tmp_path: Path) -> None:
    """The name of the file that is written first can be guessed, and its folder may be /tmp."""
    victim, path = tmp_path / "victim", tmp_path / "kept.json"
    victim.write_text("theirs")
    path.with_name(f"kept.json.{os.getpid()}").symlink_to(victim)
    save(path, State(1), {})
    assert victim.read_text() == "theirs"
    assert load(path, State, {}, print) == State(1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kept.json", "victim"]
