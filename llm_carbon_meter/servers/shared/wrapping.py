"""Wraps methods of a serving engine in place. The engine's call is always made, with its own
arguments; whatever happens in our part, signature included, is reported and never reaches it."""

import functools
from collections.abc import Callable
from typing import Any

OnError = Callable[[Any, Exception], None]
"""Gets the object whose method was called, and what our part raised."""


def wrap(
    owner: type,
    name: str,
    *,
    on_error: OnError,
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
    failed: Callable[..., None] | None = None,
) -> None:
    """Let a method call ``before(self, ...)`` and ``after(self, result, ...)`` around itself, or
    ``failed(self, error, ...)`` where it raises.

    ``on_error`` may raise on purpose (strict settings); nothing else of ours can.

    Raises:
        AttributeError: the class has no such method.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(self: Any, *arguments: Any, **named: Any) -> Any:
        if before is not None:
            _guarded(on_error, self, before, self, *arguments, **named)
        try:
            result = original(self, *arguments, **named)
        except Exception as error:
            if failed is not None:
                _guarded(on_error, self, failed, self, error, *arguments, **named)
            raise
        if after is not None:
            _guarded(on_error, self, after, self, result, *arguments, **named)
        return result

    setattr(owner, name, wrapper)


def _guarded(
    on_error: OnError, owner: Any, part: Callable[..., None], /, *arguments: Any, **named: Any
) -> None:
    try:
        part(*arguments, **named)
    except Exception as error:  # noqa: BLE001 - the boundary to the engine
        on_error(owner, error)
