"""Processes of a part: its own, its servers' and its workers' groups are in one session."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

LOOK_S = 1.0


def groups_of(session: int) -> set[int]:
    """Process groups of a session, as /proc lists them."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        state, group, owner = fields[0], int(fields[2]), int(fields[3])
        if owner == session and state != "Z":
            found.add(group)
    return found


def end_session(session: int) -> None:
    """Kill what is left of it; this process last, where it is part of it."""
    own = os.getpgid(0)
    for group in sorted(groups_of(session), key=lambda group: group == own):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def end_with_parent() -> None:
    """From now on this session ends soon after the parent: nobody else would free the GPU."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        end_session(os.getsid(0))

    threading.Thread(target=watch, name="gpu-day-parent", daemon=True).start()
