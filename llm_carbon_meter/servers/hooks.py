"""Tables of an engine's names that are wrapped, and which of them an installed engine lacks."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

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
