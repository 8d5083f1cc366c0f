"""Watches a model's ``generate``: when a call begins, each of its forward passes, and its end.

A step is what happens from one `prepare_inputs_for_generation` to the next, or to the end of the
call: every forward pass, in every mode of generation, is prepared by it, and it is never compiled.
An assistant's passes are within the step of the drafts that it makes; drafts that are rejected
count as cached.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from llm_carbon_meter.records import Outcome

CANCELLED: Final = "_GenerationCancelled"
"""What transformers' server raises in a stream whose client has left."""
CACHES: Final = ("past_key_values", "cache_params", "state")
"""What a model is given of the passes before; the others are those of state-space models."""


class Call:
    """One call under way.

    Args:
        names: of its prompts, as the meter calls them.
        prompt_tokens: of each, with padding.
        number: in the order of their begins.
    """

    def __init__(self, names: Sequence[str], prompt_tokens: int, number: int = 0) -> None:
        self.names = names
        self.prompt_tokens = prompt_tokens
        self.number = number
        self._computed = 0
        """Tokens of a row that went through the model."""

    @property
    def untouched(self) -> bool:
        """No pass has begun."""
        return self._computed == 0

    @property
    def sampled(self) -> int:
        """Tokens that came out at most, by the passes so far."""
        return max(self._computed - self.prompt_tokens + 1, 0)

    def advance(self, tokens: int, *, cached: bool) -> tuple[bool, int, int]:
        """A forward pass of so many tokens a row.

        Returns:
            Whether it is prefill, how many tokens were in the cache before it, and how many
            positions it samples.
        """
        prefill, before = self._computed < self.prompt_tokens, self._computed if cached else 0
        self._computed = before + tokens
        # Drafts are verified position by position.
        drafts = cached and not prefill
        return prefill, before, tokens if drafts else int(self._computed >= self.prompt_tokens)


class CallSink(Protocol):
    """Who is told, on the caller's thread."""

    def open(self, prompts: int, prompt_tokens: int) -> Call | None:
        """A call of so many prompts begins; None leaves it alone."""
        ...

    def begin(self, call: Call, rows: int, tokens: int, *, cached: bool) -> None:
        """A forward pass of so many rows, and tokens in each, begins; the last one is over."""
        ...

    def end(self, call: Call, outcome: Outcome, output_tokens: int) -> None:
        """A call is over, and with it its last step."""
        ...

    def failed(self, error: Exception) -> None:
        """Something of ours raised; the call goes on."""
        ...


def watch(model: Any, sink: CallSink) -> Callable[[], None]:
    """Tell of every ``model.generate`` from now on, on any thread.

    Returns:
        Leaves the model as it was before. Nothing else keeps the model.
    """
    local = threading.local()
    shadows = {
        "generate": _generate(model.generate, sink, local),
        "prepare_inputs_for_generation": _prepare(model.prepare_inputs_for_generation, sink, local),
    }
    before = {name: vars(model)[name] for name in shadows if name in vars(model)}
    for name, shadow in shadows.items():
        setattr(model, name, shadow)

    def leave() -> None:
        for name in shadows:
            delattr(model, name)
        for name, value in before.items():
            setattr(model, name, value)

    return leave


def _generate(
    original: Callable[..., Any], sink: CallSink, local: threading.local
) -> Callable[..., Any]:
    @functools.wraps(original)
    def generate(*arguments: Any, **named: Any) -> Any:
        if getattr(local, "call", None) is not None:  # a call inside a call is its step
            return original(*arguments, **named)
        call = None
        with _guarded(sink):
            call = local.call = sink.open(*_prompt_shape(arguments, named))
        if call is None:
            return original(*arguments, **named)
        outcome, length = Outcome.FINISHED, call.prompt_tokens
        try:
            answer = original(*arguments, **named)
            with _guarded(sink):
                length = _length(answer)
            return answer
        except BaseException as error:
            outcome = Outcome.ABORTED if type(error).__name__ == CANCELLED else Outcome.FAILED
            raise
        finally:
            local.call = None
            with _guarded(sink):
                sink.end(call, outcome, max(length - call.prompt_tokens, 0))

    return generate


def _prepare(
    original: Callable[..., Any], sink: CallSink, local: threading.local
) -> Callable[..., Any]:
    # transformers reads the signature of this one.
    @functools.wraps(original)
    def prepare(*arguments: Any, **named: Any) -> Any:
        inputs = original(*arguments, **named)
        call = getattr(local, "call", None)
        if call is not None:
            with _guarded(sink):
                cached = any(inputs.get(name) is not None for name in CACHES)
                sink.begin(call, *_input_shape(inputs), cached=cached)
        return inputs

    return prepare


@contextmanager
def _guarded(sink: CallSink) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - boundary: generation goes on whatever we do
        sink.failed(error)


def _prompt_shape(arguments: Sequence[Any], named: dict[str, Any]) -> tuple[int, int]:
    """Prompts of a call and their length with padding; an empty call begins with one token."""
    names = ("input_ids", "inputs", "inputs_embeds")
    given = [*arguments[:1], *(named[name] for name in names if named.get(name) is not None)]
    shape = tuple(given[-1].shape) if given and given[-1] is not None else (1, 1)
    return int(shape[0]), int(shape[1])


def _input_shape(inputs: dict[str, Any]) -> tuple[int, int]:
    """Rows and tokens of what goes into the model."""
    ids = inputs.get("input_ids")
    shape = (ids if ids is not None else inputs["inputs_embeds"]).shape
    return int(shape[0]), int(shape[1])


def _length(answer: Any) -> int:
    """Tokens of the longest sequence that came out, its prompt included."""
    return int(getattr(answer, "sequences", answer).shape[1])
