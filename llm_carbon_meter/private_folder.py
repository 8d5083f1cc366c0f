"""Folders that are one user's alone: those of sockets and of lock files."""

import os
import stat
from pathlib import Path

from llm_carbon_meter.records import MeterError


def make_private(folder: Path) -> None:
    """Make a folder that this user alone may use, or find it so.

    Raises:
        MeterError: it cannot be made, or others have a say in it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        doubt = _doubt(folder)
    except OSError as error:
        raise MeterError(f"the folder {str(folder)!r} cannot be made: {error}") from None
    if doubt:
        raise MeterError(
            f"the folder {str(folder)!r} {doubt}, so it is not private to this user; remove it or "
            "make it mode 0700"
        )


def is_private(folder: Path) -> bool:
    """Whether there is a folder that this user alone may use."""
    try:
        return not _doubt(folder)
    except OSError:
        return False


def _doubt(folder: Path) -> str:
    """Who else has a say in a folder; a link is not followed, since its owner may move it."""
    status = os.lstat(folder)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "is a file"
    if status.st_uid != os.getuid():
        return f"belongs to user {status.st_uid}"
    return f"is open to others (mode {mode:04o})" if mode & 0o077 else ""
