"""Reads typed values of a format that carries its version.

Within the version that this package writes, unknown fields are refused: something is wrong with
them. A value of another version is read as far as this package knows it, and that is said.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from llm_carbon_meter.records import MeterError

T = TypeVar("T")
Say = Callable[[str], None]
"""Hears that a value is of another version."""


def json_object(data: bytes) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        MeterError: it is none.
    """
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MeterError(f"no object of JSON: {error}") from error


def read(value: Any, kind: type[T], *, version: Any, ours: int, say: Say) -> T:
    """A value of a type, from what JSON or MessagePack has of it.

    Args:
        value: numbers, text, lists and dictionaries.
        kind: a dataclass or `msgspec.Struct`.
        version: that the value carries.
        ours: that this package writes.
        say: called where the two differ.

    Raises:
        MeterError: fields that are missing, of a wrong type, or unknown within our version.
    """
    if version == ours:
        unknown = list(unknown_fields(value, _type_info(kind)))  # type: ignore[arg-type]
        if unknown:
            raise MeterError(f"version {ours} has no fields {', '.join(unknown)}")
    else:
        say(f"it has version {version!r}, expected {ours}; what is known of it is read")
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise MeterError(str(error)) from error


@cache
def _type_info(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


def unknown_fields(value: Any, kind: inspect.Type, path: str = "") -> Iterator[str]:
    """Names of the fields, with the path to them, that a type does not have."""
    match kind:
        case inspect.DataclassType() | inspect.StructType() if isinstance(value, dict):
            types = {field.encode_name: field.type for field in kind.fields}
            for name, inner in value.items():
                if name in types:
                    yield from unknown_fields(inner, types[name], f"{path}{name}.")
                else:
                    yield f"{path}{name}"
        case inspect.UnionType() if value is not None:
            for member in kind.types:
                yield from unknown_fields(value, member, path)
        case inspect.VarTupleType() if isinstance(value, list | tuple):
            for inner in value:
                yield from unknown_fields(inner, kind.item_type, path)
