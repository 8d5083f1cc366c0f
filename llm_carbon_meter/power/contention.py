"""Who else computes on a GPU: then a request's share of its joules means little.

Two signs: NVML's list of processes, where their numbers are ours to read, and a lock file that
every meter of this user holds for each of its GPUs.
"""

import fcntl
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.private_folder import make_private
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.service import Service

REVIEW_S: Final = 30.0
"""The list of processes costs milliseconds and is asked this often."""
LOCK_S: Final = 1.0
"""How long a claim is tried for; another meter holds a file for itself for microseconds."""
LOCK_PAUSE_S: Final = 0.01
_INITIAL_NAMESPACE: Final = "pid:[4026531836]"
"""PROC_PID_INIT_INO of include/linux/proc_ns.h: the numbers here are those that the driver sees."""


class Sharing(StrEnum):
    """Whether an engine has a GPU to itself."""

    ALONE = "alone"
    SHARED = "shared"
    UNKNOWN = "unknown"
    """The processes listed have the numbers of another namespace, as in a container."""


Judge = Callable[[str, Sequence[int]], Sharing]
"""Gets a GPU and the processes on it; says whether the engine shares it."""


def sharing(listed: Collection[int], own: Collection[int], *, host_numbers: bool) -> Sharing:
    """Judge the processes on a GPU.

    Args:
        listed: their numbers, as NVML says them.
        own: those of them that are the engine's, as this process sees the numbers.
        host_numbers: this process sees the numbers that the driver does.
    """
    # One of ours among them shows that the two kinds of numbers are the same.
    if not (host_numbers or own):
        return Sharing.UNKNOWN
    return Sharing.SHARED if set(listed) - set(own) else Sharing.ALONE


def parent_of(pid: int, proc: Path = Path("/proc")) -> int:
    """The process that started another; 0 above the first, or where it has just ended."""
    with suppress(OSError):
        stat = (proc / str(pid) / "stat").read_text(errors="replace")
        # The name stands in brackets and may hold any character.
        return int(stat.rpartition(")")[2].split()[1])
    return 0


def ancestry(pid: int, parent: Callable[[int], int] = parent_of) -> list[int]:
    """A process, the one that started it, and so on to the first."""
    line = []
    while pid:
        line.append(pid)
        pid = parent(pid)
    return line


def own_processes(
    listed: Collection[int], engine_pid: int, parent: Callable[[int], int] = parent_of
) -> set[int]:
    """Processes below an engine (its workers) and above it (its server)."""
    above = ancestry(engine_pid, parent)
    return {pid for pid in listed if pid in above or engine_pid in ancestry(pid, parent)}


def sees_host_numbers(listed: Collection[int], proc: Path = Path("/proc")) -> bool:
    """Whether this process lives in the first namespace, and finds all those listed there.

    A sandbox may claim the first and still number its processes by itself.
    """
    with suppress(OSError):
        outside = os.readlink(proc / "self/ns/pid") == _INITIAL_NAMESPACE
        return outside and all((proc / str(pid)).exists() for pid in listed)
    return False


class GpuClaim:
    """A shared lock on a GPU's file: gone when its process ends, however that ends.

    Raises:
        MeterError: the folder or the file cannot be used, or somebody keeps the file locked.
    """

    def __init__(self, folder: Path, gpu: str) -> None:
        make_private(folder)
        self._path = folder / f"{gpu}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "rb")
        except OSError as error:
            raise MeterError(
                f"the lock file {str(self._path)!r} cannot be opened: {error.strerror}; remove it"
            ) from None
        with ExitStack() as undo:
            undo.callback(self._file.close)
            self._share()
            undo.pop_all()

    def _share(self) -> None:
        """Take the lock that all meters of a GPU hold, and wait a bounded time for it."""
        until_s = time.monotonic() + LOCK_S
        while not self._locked(fcntl.LOCK_SH):
            if time.monotonic() > until_s:
                raise MeterError(
                    f"the lock file {str(self._path)!r} was tried for {LOCK_S:g} s, and another "
                    "process keeps it locked; end that process (fuser names it)"
                )
            time.sleep(LOCK_PAUSE_S)

    def _locked(self, operation: int) -> bool:
        try:
            fcntl.flock(self._file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def contended(self) -> bool:
        """Whether another process holds the same claim now.

        Raises:
            MeterError: somebody keeps the file locked.
        """
        alone = self._locked(fcntl.LOCK_EX)
        self._share()  # also after a refusal, which gives up the lock that was held
        return not alone

    def close(self) -> None:
        """Give the claim up."""
        self._file.close()


class OtherProcesses:
    """Judges whether others compute on the GPUs of one engine.

    Args:
        engine_pid: the engine's process.
        folder: of the lock files, the same for all meters of a user.
        gpus: UUIDs.
        faults: where a folder is noted that cannot be used.
    """

    def __init__(self, engine_pid: int, folder: Path, gpus: Sequence[str], faults: Faults) -> None:
        self._engine_pid = engine_pid
        self._claims: dict[str, GpuClaim] = {}
        try:
            for gpu in gpus:
                self._claims[gpu] = GpuClaim(folder, gpu)
        except MeterError as error:
            faults.note("watch", error, "A second engine on a GPU may not be noticed.")

    def on(self, gpu: str, listed: Sequence[int]) -> Sharing:
        """Whether the engine shares a GPU on which these processes compute."""
        claim = self._claims.get(gpu)
        if claim is not None and claim.contended():
            return Sharing.SHARED
        own = own_processes(listed, self._engine_pid)
        return sharing(listed, own, host_numbers=sees_host_numbers(listed))

    def close(self) -> None:
        """Give up all claims."""
        for claim in self._claims.values():
            claim.close()


class Watch:
    """A thread that reviews the GPUs at the start and then rarely, beside the sampler's.

    Args:
        review: judges every GPU, `NvmlMeter.review`.
        others: gives the judgement; closed by `stop`.
        faults: where failing reviews are counted.
    """

    def __init__(
        self, review: Callable[[Judge], None], others: OtherProcesses, faults: Faults
    ) -> None:
        self._review = review
        self._others = others
        self._faults = faults
        self._service = Service("llm-carbon-watch", self._turn, self._failed)

    def start(self) -> None:
        """Start reviewing."""
        self._service.start()

    def stop(self) -> None:
        """Stop reviewing; a driver that does not answer is not waited for."""
        self._service.stop(timeout_s=0.5)
        self._others.close()

    def _turn(self) -> float:
        self._review(self._others.on)
        return REVIEW_S

    def _failed(self, error: Exception) -> float:
        self._faults.note("watch", error, "Others on a GPU may not be noticed.")
        return REVIEW_S
