"""Tables of the names of an engine that are wrapped: what fits is checked and installed from them.

`installed_fit` asks a process of its own: importing an engine takes seconds, writes to stdout and
may end the process. No engine is started.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.servers.shared.wrapping import wrap

ANSWER: Final = "llm_carbon_meter: "
"""In front of the line that is meant for us."""
IMPORT_S: Final = 180.0
"""An engine's import may take this long on a slow disk."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hook(Generic[T]):
    """A name of an engine, and the methods of T that are called around it."""

    target: str
    """``module:Class``, or ``module``."""
    method: str
    """Of the class, or a function of the module."""
    before: Callable[..., None] | None = None
    """Called as ``before(handlers, self, ...)``; self is the module where a function is wrapped."""
    after: Callable[..., None] | None = None
    """``after(handlers, self, result, ...)``"""
    failed: Callable[..., None] | None = None
    """``failed(handlers, self, error, ...)`` where the engine's own method raises."""
    on_error: Callable[[T, Any, Exception], None] | None = None
    """``on_error(handlers, self, error)`` where one of the above raises."""
    replaced_by: Callable[[Any], Any] | None = None
    """Makes the new method of the old one, where calls around it are not enough."""

    @property
    def name(self) -> str:
        """As it is told to users."""
        return f"{self.target}.{self.method}"

    @property
    def wraps(self) -> bool:
        """Whether `install` changes it; else it is only looked at."""
        return self.replaced_by is not None or self.on_error is not None


class HasFaults(Protocol):
    """Handlers that count what goes wrong."""

    faults: Faults


def noting(where: str) -> Callable[[HasFaults, Any, Exception], None]:
    """An ``on_error`` that counts the error under a place, and nothing more."""

    def note(handlers: HasFaults, _owner: Any, error: Exception) -> None:
        handlers.faults.note(where, error)

    return note


def owner_of(target: str) -> Any:
    """The class or module of a target.

    Raises:
        ImportError, AttributeError: there is none in what is installed.
    """
    module, _, name = target.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def missing(hooks: Sequence[Hook[Any]], owners: Callable[[str], Any] | None = None) -> list[str]:
    """The names of a table that what is installed lacks."""
    lacking: dict[str, None] = {}
    for hook in hooks:
        try:
            owner = (owners or owner_of)(hook.target)
        except (ImportError, AttributeError) as error:
            lacking[f"{hook.target} ({error})"] = None
            continue
        if not _has(owner, hook.method):
            lacking[hook.name] = None
    return list(lacking)


def _has(owner: Any, name: str) -> bool:
    """What is only promised by an abstract class is not there."""
    member = getattr(owner, name, None)
    return member is not None and not getattr(member, "__isabstractmethod__", False)


def install(
    hooks: Sequence[Hook[T]], handlers: T, owners: Callable[[str], Any] | None = None
) -> None:
    """Wrap every name of a table; `missing` was empty before.

    Args:
        hooks: the table.
        handlers: whose methods are called.
        owners: gives the class or module of a target; `owner_of` unless given.
    """
    for hook in hooks:
        owner = (owners or owner_of)(hook.target)
        if hook.replaced_by is not None:
            setattr(owner, hook.method, hook.replaced_by(getattr(owner, hook.method)))
        elif hook.on_error is not None:
            wrap(
                owner,
                hook.method,
                before=_bound(hook.before, handlers),
                after=_bound(hook.after, handlers),
                failed=_bound(hook.failed, handlers),
                on_error=partial(hook.on_error, handlers),
            )


def _bound(handler: Callable[..., None] | None, handlers: Any) -> Callable[..., None] | None:
    """The method of these handlers: their class may override it."""
    return None if handler is None else getattr(handlers, handler.__name__)


class Fit(NamedTuple):
    """How an installed engine fits."""

    version: str
    missing: Sequence[str]
    """What is wrapped and is not there, or why that cannot be said."""
    wrapped: Sequence[str] = ()
    """The names that `install` wraps."""


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


def print_fit(engine: str, hooks: Sequence[Hook[Any]]) -> None:
    """Answer `installed_fit`, among whatever the engine prints."""
    lacking = missing(hooks)
    version = getattr(sys.modules.get(engine), "__version__", "")
    fit = Fit(str(version), lacking, [hook.name for hook in hooks if hook.wraps])
    print("\n" + ANSWER + json.dumps(fit._asdict()))
