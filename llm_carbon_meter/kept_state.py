"""A small JSON file that keeps, over a restart, what was learnt of one deployment."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from llm_carbon_meter.records import MeterError

Identity = Mapping[str, Any]
"""What is kept holds for this alone; JSON values."""
T = TypeVar("T")
_DEPLOYMENT: Final = "deployment"


def load(path: Path, holds_for: Identity, parse: Callable[[Mapping[str, Any]], T]) -> T | None:
    """What was kept; None where there is nothing, or it is of another deployment.

    Args:
        path: of the file.
        holds_for: the deployment.
        parse: makes it of the file's values; raises what a wrong value raises by itself.

    Raises:
        MeterError: the file is damaged or cannot be read.
    """
    try:
        kept = json.loads(path.read_text("utf-8"))
        return parse(kept) if kept[_DEPLOYMENT] == dict(holds_for) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MeterError(f"the file {path} cannot be used: {error!r}") from error


def save(path: Path, holds_for: Identity, values: Mapping[str, Any]) -> None:
    """Write it so that a crash leaves the old file or the new one.

    Raises:
        MeterError: it cannot be written.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        try:
            beside.write_text(json.dumps({_DEPLOYMENT: dict(holds_for), **values}), "utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise MeterError(f"the file {path} cannot be written: {error}") from error
