"""Anthropic's and Ollama's exchanges, and those without text, through the proxy."""

import json
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.servers.proxied import EVENTS, Start, event, record, without_comment

LINES = "application/x-ndjson"


def answering(path: str, kind: str, *parts: bytes) -> Route:
    """A route that streams."""

    async def answer(_request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        return StreamingResponse(body(), media_type=kind)

    return Route(path, answer, methods=["POST"])


def line(**data: object) -> bytes:
    """One line of Ollama's stream."""
    return json.dumps({"model": "m", **data}).encode() + b"\n"


OLLAMA = (
    line(message={"role": "assistant", "content": "a"}, done=False),
    line(message={"role": "assistant", "content": "b"}, done=False),
    line(
        message={"role": "assistant", "content": ""}, done=True, prompt_eval_count=6, eval_count=2
    ),
)
ANTHROPIC = (
    event(
        type="message_start",
        message={"id": "msg_1", "usage": {"input_tokens": 6, "output_tokens": 1}},
    ),
    event(type="content_block_delta", delta={"type": "text_delta", "text": "a"}),
    event(type="message_delta", delta={}, usage={"output_tokens": 2}),
    event(type="message_stop"),
)


@pytest.mark.parametrize(
    ("path", "kind", "parts", "name"),
    [
        ("/api/chat", LINES, OLLAMA, "of/api/chat"),
        ("/v1/messages", EVENTS, ANTHROPIC, "msg_1"),
    ],
)
def test_a_stream_of_another_dialect_is_metered(
    start: Start, path: str, kind: str, parts: tuple[bytes, ...], name: str
) -> None:
    """Every byte passes; lines get no comment, since they have none."""
    client = start(answering(path, kind, *parts))
    body = {"stream": True, "messages": [{"role": "user", "content": "hello"}]}
    back = client.post(path, json=body, headers={"X-Request-Id": f"of{path}"})
    passed = without_comment(back.content) if kind == EVENTS else back.content
    assert passed == b"".join(parts)
    assert (b": llm-carbon" in back.content) == (kind == EVENTS)
    assert "llm-carbon-estimated-wh" in back.headers
    final = record(client, name)
    assert (final["prompt_tokens"], final["output_tokens"]) == (6, 2)
    assert final["tokens_from"] == "usage"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/api/embed"])
def test_what_has_no_text_is_all_prefill(start: Start, path: str) -> None:
    """However long it takes."""

    async def answer(_request: Request) -> Response:
        usage = {"prompt_eval_count": 9} if "api" in path else {"usage": {"prompt_tokens": 9}}
        return JSONResponse({"id": f"of{path}", **usage})

    client = start(Route(path, answer, methods=["POST"]))
    client.post(path, json={"model": "m", "input": "hello"})
    final = record(client, f"of{path}")
    assert (final["prompt_tokens"], final["output_tokens"]) == (9, 0)
    assert final["decode_joules"] == 0.0


def test_what_passes_unmetered_is_counted_and_named(start: Start) -> None:
    """Questions, not look-ups; a client that invents paths makes a bounded number of series."""

    async def answer(_request: Request) -> Response:
        return JSONResponse({})

    client = start(Route("/{path:path}", answer, methods=["GET", "POST"]))

    def counted(path: str) -> float:
        labels = {"model_name": "toy", "engine": "", "path": path}
        name = "llm_carbon_meter_unmetered_requests_total"
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = counted("/v1/audio/speech")
    for _ in range(2):
        client.post("/v1/audio/speech", json={})
    client.get("/v1/audio/speech")
    assert counted("/v1/audio/speech") == before + 2
    for number in range(60):
        client.post(f"/invented/{number}", json={})
    assert counted("other") >= 10
