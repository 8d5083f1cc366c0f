"""Reads typed values of a format that carries its version.

Within the version that this package writes, unknown fields are refused: something is wrong with
them. A value of another version is read as far as this package knows it, and that is said.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

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
        unknown = sorted(_unknown_fields(value, _form(kind)))  # type: ignore[arg-type]
        if unknown:
            raise MeterError(f"version {ours} has no fields {', '.join(unknown)}")
    else:
        say(f"it has version {version!r}, expected {ours}; what is known of it is read")
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise MeterError(str(error)) from error


class _Form(NamedTuple):
    """The names of a type's fields, and the forms of those that hold further fields."""

    names: frozenset[str]
    inner: Mapping[str, "_Form"]


@cache
def _form(kind: type) -> _Form:
    form = _form_of(inspect.type_info(kind))
    assert form is not None
    return form


def _form_of(kind: inspect.Type) -> _Form | None:
    match kind:
        case inspect.DataclassType() | inspect.StructType():
            forms = {field.encode_name: _form_of(field.type) for field in kind.fields}
            inner = {name: form for name, form in forms.items() if form is not None}
            return _Form(frozenset(forms), inner)
        case inspect.UnionType():
            return next(filter(None, map(_form_of, kind.types)), None)
        case inspect.VarTupleType():
            return _form_of(kind.item_type)
    return None


def _unknown_fields(value: Any, form: _Form, path: str = "") -> Iterator[str]:
    """Names of the fields that a type does not have, with the path to them."""
    if isinstance(value, list):
        for item in value:
            yield from _unknown_fields(item, form, path)
    elif isinstance(value, dict):
        yield from (f"{path}{name}" for name in value.keys() - form.names)
        for name, inner in form.inner.items():
            yield from _unknown_fields(value.get(name), inner, f"{path}{name}.")
