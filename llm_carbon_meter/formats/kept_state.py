"""A small JSON file that keeps, over a restart, what was learnt of one deployment."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.formats import versioned
from llm_carbon_meter.records import MeterError

Identity = Mapping[str, Any]
"""A deployment: what is kept holds for this alone. JSON values."""
T = TypeVar("T")
R = TypeVar("R")

VERSION: Final = 1
"""Of the file's form; a file that names none has this one."""
SAVE_S: Final = 10.0
"""A file is written at most this often."""


def load(path: Path, kind: type[T], holds_for: Identity | None, say: versioned.Say) -> T | None:
    """What was kept; None where there is nothing, or it is of another deployment.

    Args:
        path: of the file.
        kind: dataclass of the state.
        holds_for: the deployment; None takes what was kept of any.
        say: hears that the file is of another version.

    Raises:
        MeterError: the file is damaged or cannot be read.
    """
    try:
        values = versioned.json_object(path.read_bytes())
        version = values.pop("version", VERSION)
        kept_of = values.pop("deployment")
        if holds_for is not None and kept_of != msgspec.to_builtins(holds_for):
            return None
        return versioned.read(values, kind, version=version, ours=VERSION, say=say)
    except FileNotFoundError:
        return None
    except KeyError:
        raise MeterError(f"the file {path} cannot be used: it names no deployment") from None
    except (OSError, MeterError) as error:
        raise MeterError(f"the file {path} cannot be used: {error}") from error


def save(path: Path, state: Any, holds_for: Identity) -> None:
    """Write a state so that a crash leaves the old file or the new one.

    Raises:
        MeterError: it cannot be written.
    """
    form = {"version": VERSION, "deployment": holds_for, **msgspec.to_builtins(state)}
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        try:
            beside.unlink(missing_ok=True)
            with beside.open("xb") as file:  # follows no link that somebody put there
                file.write(msgspec.json.encode(form))
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise MeterError(f"the file {path} cannot be written: {error}") from error


class KeptState(Generic[T]):
    """The file of one learner: read at its start, written now and then; faults are only counted.

    Args:
        path: of the file; None keeps nothing.
        kind: dataclass of the state.
        holds_for: the deployment.
        faults: counts what went wrong.
        where: the faults' place.
    """

    def __init__(
        self, path: Path | None, kind: type[T], holds_for: Identity, faults: Faults, where: str
    ) -> None:
        self._path = path
        self._kind = kind
        self._holds_for = holds_for
        self._faults = faults
        self._where = where
        self._saved_s = time.monotonic()

    def load(self, make: Callable[[T], R]) -> R | None:
        """What is made of the state; None where there is none that can be used.

        Args:
            make: raises ValueError where the state makes no sense.
        """
        if self._path is None:
            return None
        try:
            state = load(self._path, self._kind, self._holds_for, self._say)
            return None if state is None else make(state)
        except (MeterError, ValueError) as error:
            text = str(error)
            if not isinstance(error, MeterError):
                text = f"the file {self._path} cannot be used: {error}"
            self._faults.note(self._where, text, "It begins anew.")
            return None

    def _say(self, text: str) -> None:
        self._faults.note(self._where, f"the file {self._path}: {text}.")

    @property
    def is_due(self) -> bool:
        """Whether a while has passed since the last writing."""
        return time.monotonic() - self._saved_s >= SAVE_S

    def save(self, state: T) -> None:
        """Write the file."""
        self._saved_s = time.monotonic()
        if self._path is None:
            return
        try:
            save(self._path, state, self._holds_for)
        except MeterError as error:
            self._faults.note(self._where, error, "What was learnt is not kept.")
