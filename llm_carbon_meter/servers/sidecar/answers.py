"""What an OpenAI-compatible exchange says of itself: functions over bodies and stream events."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeGuard

from llm_carbon_meter.records import TokenCount
from llm_carbon_meter.servers.sidecar.capture import Usage

CHARACTERS_PER_TOKEN: Final = 4
"""Of English text, about."""
RESPONSES: Final = "/v1/responses"
METERED: Final = ("/v1/chat/completions", "/v1/completions", RESPONSES)
DONE: Final = b"[DONE]"
MOST_TOKENS: Final = 1_000_000_000
"""Of a request, beyond every model; a larger count is not believed."""

_PROMPT_FIELDS: Final = ("messages", "prompt", "input", "instructions", "tools")
_LIMIT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")


class Asked(NamedTuple):
    """A request that is metered."""

    body: bytes
    """As it goes upstream."""
    own: bytes
    """As the client sent it."""
    model: str
    """Its name, or the beginning of one that is too long to be one."""
    stream: bool
    added_usage: bool
    """The client did not ask for the chunk with the usage: it is not to see it."""
    prompt_tokens: int
    """As guessed from the text."""
    max_tokens: int | None

    def plain(self) -> "Asked":
        """The same without our wish for the usage."""
        return self._replace(body=self.own, added_usage=False)


def asked(path: str, body: bytes) -> Asked:
    """Read a request; usage is asked for in a stream where the client did not."""
    request = _object(body)
    prompt_tokens = text_tokens([request.get(name) for name in _PROMPT_FIELDS])
    limits = (request.get(name) for name in _LIMIT_FIELDS)
    max_tokens = next((limit for limit in limits if _is_count(limit) and limit > 0), None)
    stream = request.get("stream") is True
    options = request.get("stream_options") or {}
    adds = stream and path != RESPONSES and isinstance(options, dict)
    adds = adds and options.get("include_usage") is not True
    sent = body
    if adds:
        more = {"stream_options": {**options, "include_usage": True}}
        sent = json.dumps({**request, **more}, separators=(",", ":")).encode()
    return Asked(
        sent, body, str(request.get("model"))[:256], stream, adds, prompt_tokens, max_tokens
    )


def text_tokens(value: Any) -> int:
    """Tokens of all text in a JSON value, by its length; at least 1."""
    try:
        return max(_characters(value) // CHARACTERS_PER_TOKEN, 1)
    except RecursionError:  # nested by somebody who means no good
        return 1


def _characters(value: Any) -> int:
    match value:
        case str():  # a picture in the text is not read
            return 0 if value.startswith("data:") else len(value)
        case bool():
            return 0
        case int():
            return CHARACTERS_PER_TOKEN  # a prompt may be a list of token ids
        case list():
            return sum(map(_characters, value))
        case dict():
            return sum(map(_characters, value.values()))
    return 0


class Told(NamedTuple):
    """What an answer, or one event of it, tells."""

    id: str = ""
    tokens: int = 0
    """Pieces of content in an event."""
    usage: Usage | None = None
    failed: bool = False
    only_usage: bool = False
    """An event that is there for the usage alone."""


def told(body: bytes) -> Told:
    """Read an answer that came whole, or the data of an event."""
    answer = _object(body)
    inner = answer.get("response")
    inner = inner if isinstance(inner, dict) else {}
    name = answer.get("id") or inner.get("id")
    usage = _usage(answer.get("usage") or inner.get("usage"))
    return Told(
        id=name if isinstance(name, str) else "",
        tokens=_pieces(answer),
        usage=usage,
        failed=bool(answer.get("error") or inner.get("error")),
        only_usage=usage is not None and answer.get("choices") == [],
    )


def together(before: Told, after: Told) -> Told:
    """What two events of an answer tell; the later usage counts."""
    return Told(
        before.id or after.id,
        before.tokens + after.tokens,
        after.usage or before.usage,
        before.failed or after.failed,
    )


def counted(
    usage: Usage | None, prompt_tokens: int, output_tokens: int
) -> tuple[Usage, TokenCount]:
    """The usage that was told, else what was guessed."""
    if usage is not None:
        return usage, TokenCount.USAGE
    return Usage(prompt_tokens, 0, output_tokens), TokenCount.GUESSED


def whole_tokens(body: bytes) -> int:
    """Tokens of an answer that came whole and tells no usage, by the length of its text."""
    answer = _object(body)
    text = [choice.get("text") or _content(choice.get("message")) for choice in _choices(answer)]
    text.append(answer.get("output"))
    return text_tokens(text)


def _usage(found: Any) -> Usage | None:
    """Chat and completions say prompt and completion, responses say input and output."""
    if not isinstance(found, dict):
        return None
    prompt = found.get("prompt_tokens", found.get("input_tokens"))
    output = found.get("completion_tokens", found.get("output_tokens", 0))
    details = found.get("prompt_tokens_details") or found.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if not (_is_count(prompt) and _is_count(output)):
        return None
    prompt = max(prompt, 1)
    return Usage(prompt, min(max(cached, 0), prompt) if type(cached) is int else 0, output)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MOST_TOKENS


def _pieces(event: Mapping[str, Any]) -> int:
    """Choices of a chunk that have content; an event of `/v1/responses` is one piece or none."""
    if str(event.get("type", "")).endswith(".delta"):
        return 1
    return sum(
        bool(choice.get("text") or _content(choice.get("delta"))) for choice in _choices(event)
    )


def _content(said: Any) -> list[Any]:
    """Everything in a message or a part of one but who says it."""
    if not isinstance(said, dict):
        return []
    return [value for name, value in said.items() if value and name != "role"]


def _choices(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    return (
        [choice for choice in choices if isinstance(choice, dict)]
        if isinstance(choices, list)
        else []
    )


def _object(body: bytes) -> dict[str, Any]:
    """A JSON object; an empty one where it is something else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class EventSplitter:
    """Cuts a stream of server-sent events into whole ones, byte for byte."""

    def __init__(self) -> None:
        self.rest = b""
        """The beginning of an event whose end has not come."""

    def feed(self, part: bytes) -> list[bytes]:
        """The events that are whole with this part, each with the empty line behind it."""
        data, events, start = self.rest + part, [], 0
        for end in _EVENT_END.finditer(data):
            events.append(data[start : end.end()])
            start = end.end()
        self.rest = data[start:]
        return events


def data_of(event: bytes) -> bytes:
    """The data of an event."""
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)
