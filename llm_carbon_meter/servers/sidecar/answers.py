"""What an exchange says of itself: functions over bodies and stream events.

The dialects are those of OpenAI, Anthropic (``/v1/messages``) and Ollama (``/api/…``).
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeGuard

from llm_carbon_meter.records import TokenCount
from llm_carbon_meter.servers.sidecar.capture import Usage

CHARACTERS_PER_TOKEN: Final = 4
"""Of English text, about."""
_TELLS_USAGE_IF_ASKED: Final = ("/v1/chat/completions", "/v1/completions")
"""In streams; with them those without ``/v1``."""
_OTHER_TEXT: Final = ("/v1/responses", "/v1/messages")
_POOLING: Final = ("/v1/embeddings", "/v1/score", "/v1/rerank")
"""Answers without tokens of their own."""
_OLLAMA_TEXT: Final = ("/api/chat", "/api/generate")
_OLLAMA_POOLING: Final = ("/api/embed", "/api/embeddings")


def _both(*paths: str) -> tuple[str, ...]:
    """With and without the version: servers take either."""
    return tuple(each for path in paths for each in (path, path.removeprefix("/v1")))


_WISHED: Final = _both(*_TELLS_USAGE_IF_ASKED)
_WITHOUT_TOKENS: Final = (*_both(*_POOLING), "/v2/rerank", "/pooling", *_OLLAMA_POOLING)
METERED: Final = (*_WISHED, *_both(*_OTHER_TEXT), *_OLLAMA_TEXT, *_WITHOUT_TOKENS)
DONE: Final = b"[DONE]"
LONGEST_MODEL: Final = 256
"""Characters of a model's name."""
MOST_TOKENS: Final = 1_000_000_000
"""Of a request, beyond every model; a larger count is not believed."""

_PROMPT_COUNTS: Final = ("prompt_tokens", "input_tokens", "prompt_eval_count")
_OUTPUT_COUNTS: Final = ("completion_tokens", "output_tokens", "eval_count")
_CACHE_WAYS: Final = ("read", "creation")
_PROMPT_FIELDS: Final = (
    *("messages", "prompt", "input", "instructions", "system", "tools"),
    *("text_1", "text_2", "query", "documents"),
)
_LIMIT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "num_predict")
_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")
LONGEST_END: Final = 4
"""Bytes of the end of an event."""
_LINE_END: Final = re.compile(rb"\n")
LINES: Final = "application/x-ndjson"
"""Content type of Ollama's streams: a JSON object each line."""


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
    is_pooling: bool = False
    """The answer has no tokens of its own."""

    def plain(self) -> "Asked":
        """The same without our wish for the usage."""
        return self._replace(body=self.own, added_usage=False)


def asked(path: str, body: bytes) -> Asked:
    """Read a request; usage is asked for in a stream where the client did not."""
    request = _object(body)
    prompt_tokens = text_tokens([request.get(name) for name in _PROMPT_FIELDS])
    limits = ({**_part(request, "options"), **request}.get(name) for name in _LIMIT_FIELDS)
    max_tokens = next((limit for limit in limits if _is_count(limit) and limit > 0), None)
    streams = request.get("stream")
    stream = streams is True or (streams is None and path in _OLLAMA_TEXT)
    options = request.get("stream_options") or {}
    adds = stream and path in _WISHED and isinstance(options, dict)
    adds = adds and options.get("include_usage") is not True
    sent = body
    if adds:
        more = {"stream_options": {**options, "include_usage": True}}
        sent = json.dumps({**request, **more}, separators=(",", ":")).encode()
    return Asked(
        sent,
        body,
        _name(request.get("model")),
        stream,
        adds,
        prompt_tokens,
        max_tokens,
        path in _WITHOUT_TOKENS,
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
    model: str = ""
    """That answered."""


def told(body: bytes) -> Told:
    """Read an answer that came whole, or the data of an event."""
    answer = _object(body)
    # An event of OpenAI's responses has all in a response, one of Anthropic's in a message.
    whole = {**_part(answer, "message"), **_part(answer, "response"), **answer}
    usage = _usage(whole.get("usage") or answer)
    return Told(
        id=_text(whole.get("id")),
        tokens=_pieces(answer),
        usage=usage,
        failed=bool(whole.get("error")),
        only_usage=usage is not None and answer.get("choices") == [],
        model=_name(whole.get("model")),
    )


def _part(answer: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object in another; empty where there is none."""
    part = answer.get(name)
    return part if isinstance(part, dict) else {}


def _text(value: Any) -> str:
    """A text that can be written as UTF-8: JSON may hold halves of characters."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _name(value: Any) -> str:
    return _text(value)[:LONGEST_MODEL]


def together(before: Told, after: Told) -> Told:
    """What two events of an answer tell; the later usage counts."""
    return Told(
        before.id or after.id,
        before.tokens + after.tokens,
        _later(before.usage, after.usage),
        before.failed or after.failed,
        model=before.model or after.model,
    )


def _later(before: Usage | None, after: Usage | None) -> Usage | None:
    """The later of two; Anthropic's tells the prompt at the beginning alone."""
    if before is None or after is None:
        return after or before
    most = max(before, after, key=lambda usage: usage.prompt_tokens)
    return most._replace(output_tokens=after.output_tokens)


def counted(
    usage: Usage | None, prompt_tokens: int, output_tokens: int
) -> tuple[Usage, TokenCount]:
    """The usage that was told, else what was guessed."""
    if usage is not None:
        return usage._replace(prompt_tokens=usage.prompt_tokens or prompt_tokens), TokenCount.USAGE
    return Usage(prompt_tokens, 0, output_tokens), TokenCount.GUESSED


def whole_tokens(body: bytes) -> int:
    """Tokens of an answer that came whole and tells no usage, by the length of its text."""
    answer = _object(body)
    text = [choice.get("text") or _content(choice.get("message")) for choice in _choices(answer)]
    text += [answer.get("output"), answer.get("content"), answer.get("response")]
    text.append(_content(answer.get("message")))
    return text_tokens(text)


def _usage(found: Any) -> Usage | None:
    """OpenAI's chat says prompt and completion, its responses and Anthropic input and output,
    Ollama prompt_eval and eval; no prompt tokens where only the output is told."""
    if not isinstance(found, dict):
        return None
    prompt, output = _first(found, _PROMPT_COUNTS), _first(found, _OUTPUT_COUNTS)
    told = [count for count in (prompt, output) if count is not None]
    if not told or not all(map(_is_count, told)):
        return None
    details = _part(found, "prompt_tokens_details") or _part(found, "input_tokens_details")
    # Anthropic's input leaves out what its cache has to do with.
    read, written = (_count(found.get(f"cache_{way}_input_tokens")) for way in _CACHE_WAYS)
    prompt = (prompt or 0) + read + written
    return Usage(prompt, min(_count(details.get("cached_tokens")) + read, prompt), output or 0)


def _first(found: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of some counts that is there."""
    return next((found[name] for name in names if found.get(name) is not None), None)


def _count(value: Any) -> int:
    """Of tokens in a cache; 0 where it is none."""
    return min(max(value, 0), MOST_TOKENS) if type(value) is int else 0


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MOST_TOKENS


def _pieces(event: Mapping[str, Any]) -> int:
    """Choices of a chunk that have content; an event or line of others is one piece or none."""
    if str(event.get("type", "")).endswith((".delta", "_block_delta")):
        return 1
    if "done" in event:  # a line of Ollama's
        return int(bool(event.get("response") or _content(event.get("message"))))
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
    """Cuts a stream of server-sent events, or of lines, into whole ones, byte for byte.

    Args:
        lines: whether it is one of lines.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self._end = _LINE_END if lines else _EVENT_END
        self.rest = b""
        """The beginning of an event whose end has not come."""

    def feed(self, part: bytes) -> list[bytes]:
        """The events that are whole with this part, each with the empty line behind it."""
        data, events, start = self.rest + part, [], 0
        looked = max(len(self.rest) - LONGEST_END, 0)
        for end in self._end.finditer(data, looked):
            events.append(data[start : end.end()])
            start = end.end()
        self.rest = data[start:]
        return events


def data_of(event: bytes) -> bytes:
    """The data of an event, or a line that is no event."""
    if event.startswith(b"{"):
        return event
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines)
