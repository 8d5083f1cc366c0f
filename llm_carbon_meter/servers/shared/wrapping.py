"""Wraps a method or function of a serving engine in place.

The engine's call is always made, with its own arguments. Whatever happens in our part, signature
included, is reported and never reaches the engine.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

Handler = Callable[..., None]
OnError = Callable[[Any, Exception], None]
"""Gets the object whose method was called, and what our part raised."""


def wrap(
    owner: Any,
    name: str,
    *,
    on_error: OnError,
    before: Handler | None = None,
    after: Handler | None = None,
    failed: Handler | None = None,
) -> None:
    """Let a method call ``before(self, ...)`` and ``after(self, result, ...)`` around itself, or
    ``failed(self, error, ...)`` where it raises; for a function of a module, self is the module.

    ``on_error`` may raise on purpose (strict settings); nothing else of ours can.

    Raises:
        AttributeError: the owner has nothing of that name.
    """
    original = getattr(owner, name)
    of_module = isinstance(owner, ModuleType)

    @functools.wraps(original)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        self, others = (owner, arguments) if of_module else (arguments[0], arguments[1:])
        if before is not None:
            _guarded(on_error, self, before, self, *others, **named)
        try:
            result = original(*arguments, **named)
        except Exception as error:
            if failed is not None:
                _guarded(on_error, self, failed, self, error, *others, **named)
            raise
        if after is not None:
            _guarded(on_error, self, after, self, result, *others, **named)
        return result

    setattr(owner, name, wrapper)


def _guarded(
    on_error: OnError, owner: Any, part: Handler, /, *arguments: Any, **named: Any
) -> None:
    try:
        part(*arguments, **named)
    except Exception as error:  # noqa: BLE001 - the boundary to the engine
        on_error(owner, error)
