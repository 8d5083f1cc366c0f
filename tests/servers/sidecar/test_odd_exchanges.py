"""Odd requests and answers: none slips past the meter, none loses a byte."""

import gzip
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.servers.proxied import (
    CHAT,
    DONE,
    EVENTS,
    LAST,
    USAGE,
    Start,
    chunk,
    record,
    streamed,
)


def raw(client: httpx.Client, head: str, body: bytes = b"") -> bytes:
    """The answer to a request that no client library would send."""
    place = urlsplit(str(client.base_url))
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def posted(path: str, body: bytes = b"{}", *more: str) -> str:
    """The head of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *more]
    return "\n".join(lines if more else [*lines, f"Content-Length: {len(body)}"])


def everything(seen: list[Any]) -> Route:
    """A server that takes any path for its chat, as some do."""

    async def answer(request: Request) -> Response:
        seen.append(request.scope["raw_path"])
        return JSONResponse({"id": "x", "usage": USAGE})

    return Route("/{path:path}", answer, methods=["POST", "GET"])


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/../x", "/v1/%2e%2e/x", "/v1/%2E./x", "/..", "/v1/chat/completions/.."),
        *("/v1/carbon/..%2f..%2fx", "/a/..%5cx"),
    ],
)
def test_a_path_that_climbs_is_refused(start: Start, path: str) -> None:
    """The server would take it for another path than the proxy does."""
    seen: list[Any] = []
    answer = raw(start(everything(seen)), posted(path), b"{}")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"`..`" in answer
    assert not seen


@pytest.mark.parametrize(
    "path",
    [
        *("//v1/chat/completions", "/v1//chat/completions", "/v1/./chat/completions"),
        *("/v1/%2e/chat//completions", "/v1/chat/completions/"),
    ],
)
def test_other_spellings_of_a_path_are_metered(start: Start, path: str) -> None:
    """As the server may read them; it gets what the client wrote."""
    seen: list[Any] = []
    answer = raw(start(everything(seen)), posted(path), b"{}")
    assert b"\r\nllm-carbon-" in answer
    assert len(seen) == 1


def test_a_redirect_is_no_answer(start: Start) -> None:
    """Nothing was generated: the record says failed."""

    async def answer(_request: Request) -> Response:
        return Response(status_code=307, headers={"Location": "/elsewhere"})

    client = start(Route(CHAT, answer, methods=["POST"]))
    back = client.post(CHAT, json={}, headers={"X-Request-Id": "moved"})
    assert (back.status_code, back.headers["location"]) == (307, "/elsewhere")
    assert record(client, "moved")["outcome"] == "failed"


@pytest.mark.parametrize("http", ["h11", "auto"])
@pytest.mark.parametrize("path", [CHAT, "/other"])
def test_a_length_beside_chunks_is_refused(start: Start, path: str, http: str) -> None:
    """Two servers in a row may disagree where such a request ends."""
    seen: list[Any] = []
    more = ("Content-Type: application/json", "Content-Length: 2", "Transfer-Encoding: chunked")
    client = start(everything(seen), http=http)
    answer = raw(client, posted(path, b"", *more), b"2\r\n{}\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not seen


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_in_the_form_of_events_keeps_its_body(start: Start, stream: bool) -> None:
    """It has a length: there is no room for a comment."""
    text = b'data: {"error": "too many tokens"}\n\n'

    async def answer(_request: Request) -> Response:
        return Response(text, 400, media_type=EVENTS)

    client = start(Route(CHAT, answer, methods=["POST"]))
    back = client.post(CHAT, json={"stream": stream})
    assert (back.status_code, back.content) == (400, text)


def test_a_compressed_stream_has_no_comment(start: Start) -> None:
    """The client unpacks all of it; the proxy cannot read it, and says so."""
    text = chunk("a") + LAST + DONE

    async def answer(_request: Request) -> Response:
        packed = gzip.compress(text)
        parts = iter([packed[:20], packed[20:]])
        headers = {"Content-Encoding": "gzip", "X-Accel-Buffering": "no"}
        return StreamingResponse(parts, media_type=EVENTS, headers=headers)

    client = start(Route(CHAT, answer, methods=["POST"]))
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", CHAT, json=asked, headers={"X-Request-Id": "packed"}) as back:
        body = b"".join(back.iter_raw())
    assert gzip.decompress(body) == text
    assert record(client, "packed")["tokens_from"] == "guessed"


def test_an_answer_with_a_length_beside_chunks_comes_whole(start: Start) -> None:
    """The chunks count; the length is dropped."""

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                head = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
                connection.sendall(head + b"5\r\nwhole\r\n0\r\n\r\n")

        server = threading.Thread(target=answer)
        server.start()
        client = start(url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert client.get("/other").content == b"whole"
        server.join()


@pytest.mark.parametrize("tokens", [10**30, 10**12, -(10**30)])
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
def test_a_usage_beyond_all_models_is_not_believed(start: Start, tokens: int, field: str) -> None:
    """The record has guessed tokens, and every figure of it is one."""

    async def answer(_request: Request) -> Response:
        return JSONResponse({"id": "x", "usage": {**USAGE, field: tokens}})

    client = start(Route(CHAT, answer, methods=["POST"]))
    name = f"beyond-{field}-{tokens % 1000003}"
    back = client.post(CHAT, json={"max_tokens": 10**30}, headers={"X-Request-Id": name})
    assert back.status_code == 200
    final = record(client, name)
    assert "NaN" not in json.dumps(final)
    counts = final["tokens_from"], final["prompt_tokens"], final["output_tokens"]
    assert counts == ("guessed", 1, 1)


def test_more_cached_than_prompt_tokens_are_the_prompt_s(start: Start) -> None:
    """No figure below 0 comes of them."""
    usage = {**USAGE, "prompt_tokens_details": {"cached_tokens": 10**30}}
    event = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    client = start(streamed([chunk("a"), event, DONE]))
    client.post(CHAT, json={"stream": True}, headers={"X-Request-Id": "cached"})
    final = record(client, "cached")
    assert (final["prompt_tokens"], final["cached_tokens"]) == (7, 7)
