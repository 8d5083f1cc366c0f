"""Tables of an engine's names that are wrapped, and which of them an installed engine lacks.

`installed_fit` asks a process of its own: importing an engine takes seconds, writes to stdout and
may end the process. No engine is started.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

ANSWER: Final = "llm_carbon_meter: "
"""In front of the line that is meant for us."""
IMPORT_S: Final = 180.0
"""An engine's import may take this long on a slow disk."""

HookTable = Mapping[str, Sequence[str]]
"""Module, or module:class, and the names wrapped in it."""


def load(table: HookTable) -> tuple[list[Any], list[str]]:
    """The classes and modules in the table's order, and what they lack."""
    owners, missing = [], []
    for place, names in table.items():
        try:
            owner = _owner(place)
        except (ImportError, AttributeError) as error:
            missing.append(f"{place} ({error})")
            continue
        owners.append(owner)
        missing += [f"{place}.{name}" for name in names if not _has(owner, name)]
    return owners, missing


def _has(owner: Any, name: str) -> bool:
    """What is only promised by an abstract class is not there."""
    found = getattr(owner, name, None)
    return found is not None and not getattr(found, "__isabstractmethod__", False)


def _owner(place: str) -> Any:
    module, _, name = place.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


class Fit(NamedTuple):
    """How an installed engine fits."""

    version: str
    missing: Sequence[str]
    """What is wrapped and is not there, or why that cannot be said."""


def installed_fit(engine: str) -> Fit:
    """Ask a new process, which imports the engine: vllm or transformers."""
    command = [sys.executable, "-m", f"llm_carbon_meter.servers.{engine}.hooks"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Fit("", [f"{engine} was not imported within {IMPORT_S:g} s"])
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if answers:
        return Fit(**json.loads(answers[-1].removeprefix(ANSWER)))
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    return Fit("", [f"importing {engine} ended with code {done.returncode}; it said: {said}"])


def print_fit(engine: str, missing: Sequence[str]) -> None:
    """Answer `installed_fit`, among whatever the engine prints."""
    version = getattr(sys.modules.get(engine), "__version__", "")
    print("\n" + ANSWER + json.dumps(Fit(str(version), missing)._asdict()))
