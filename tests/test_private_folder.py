"""Folders that one user alone may use."""

from pathlib import Path

import pytest

from llm_carbon_meter.private_folder import is_private, make_private
from llm_carbon_meter.records import MeterError


def test_a_folder_is_made_with_its_parents_and_found_again(tmp_path: Path) -> None:
    """For this user alone."""
    folder = tmp_path / "a" / "b"
    assert not is_private(folder)
    make_private(folder)
    make_private(folder)
    assert is_private(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: folder.symlink_to("."), "is a symbolic link"),
        (lambda folder: folder.symlink_to("nowhere"), "cannot be made"),
        (lambda folder: folder.touch(), "cannot be made"),
        (lambda folder: (folder.mkdir(), folder.chmod(0o750)), "is open to others (mode 0750)"),
    ],
)
def test_what_others_have_a_say_in_is_refused(tmp_path: Path, spoil: object, says: str) -> None:
    """The error names the folder."""
    folder = tmp_path / "folder"
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(MeterError) as error:
        make_private(folder)
    assert says in str(error.value)
    assert str(folder) in str(error.value)
    assert not is_private(folder)
