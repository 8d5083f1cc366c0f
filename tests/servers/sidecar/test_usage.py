"""Token counts and figures of the answers that the proxy meters."""

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
    comment_of,
    event,
    record,
    streamed,
    without_comment,
)


def test_usage_is_asked_for_and_not_shown_to_who_did_not_ask(start: Start) -> None:
    """The client gets the stream that it would have got; the record has the server's count."""
    seen: list[Any] = []
    parts = [chunk("a"), chunk("b") + LAST, DONE]
    client = start(streamed(parts, seen))
    back = client.post(CHAT, json={"stream": True, "messages": []})
    assert seen[0]["stream_options"] == {"include_usage": True}
    assert without_comment(back.content) == chunk("a") + chunk("b") + DONE
    assert comment_of(back.content)["energy_joules"] > 0
    final = record(client, comment_of(back.content)["id"])
    counts = final["prompt_tokens"], final["output_tokens"], final["tokens_from"]
    assert counts == (7, 3, "usage")
    assert "chatcmpl-1" in final["external_ids"]


def test_an_answer_that_is_read_comes_as_it_can_be_read(start: Start) -> None:
    """Not compressed; the length of a stream that came as one piece is not that of ours."""
    wishes = []

    async def answer(request: Request) -> Response:
        wishes.append(request.headers.get("accept-encoding"))
        return Response(chunk("a") + LAST + DONE, media_type=EVENTS)

    client = start(Route(CHAT, answer, methods=["POST"]))
    back = client.post(CHAT, json={"stream": True}, headers={"Accept-Encoding": "gzip"})
    assert wishes == [None]
    assert without_comment(back.content) == chunk("a") + DONE


def test_a_client_that_asks_for_usage_gets_it(start: Start) -> None:
    """Its stream is byte for byte the server's, the comment aside."""
    parts = [chunk("a"), LAST[:20], LAST[20:], DONE]
    body = {"stream": True, "stream_options": {"include_usage": True}}
    back = start(streamed(parts)).post(CHAT, json=body)
    assert without_comment(back.content) == b"".join(parts)
    assert back.content.index(b": llm-carbon") < back.content.index(DONE)


def test_without_usage_chunks_are_counted_and_it_says_so(start: Start) -> None:
    """Four chunks, two of them with content."""
    role = event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    end = event(choices=[{"delta": {}, "finish_reason": "stop"}])
    client = start(streamed([role, chunk("a"), chunk("b"), end, DONE]))
    back = client.post(CHAT, json={"stream": True, "messages": ["x" * 40]})
    final = record(client, comment_of(back.content)["id"])
    counts = final["prompt_tokens"], final["output_tokens"], final["tokens_from"]
    assert counts == (10, 2, "guessed")


def test_the_usage_of_responses_is_in_their_last_event(start: Start) -> None:
    """There is no [DONE]: the comment comes at the end."""
    usage = {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 5}}
    parts = [
        event(type="response.created", response={"id": "resp_7", "usage": None}),
        event(type="response.output_text.delta", delta="a"),
        event(type="response.completed", response={"id": "resp_7", "usage": usage}),
    ]

    async def answer(_request: Request) -> Response:
        return StreamingResponse(iter(parts), media_type=EVENTS)

    client = start(Route("/v1/responses", answer, methods=["POST"]))
    back = client.post("/v1/responses", json={"stream": True, "input": "x"})
    assert without_comment(back.content) == b"".join(parts)
    final = record(client, "resp_7")
    counts = final["prompt_tokens"], final["cached_tokens"], final["output_tokens"]
    assert counts == (9, 5, 2)


def test_a_whole_answer_has_its_figures_in_headers(start: Start) -> None:
    """Estimate and use; the body is as it came, and the record is found under its id."""
    body = (
        b'{ "id":"cmpl-5", "choices":[{"text":"a"}], "usage": ' + json.dumps(USAGE).encode() + b"}"
    )

    async def answer(_request: Request) -> Response:
        time.sleep(0.2)
        return Response(body, media_type="application/json")

    client = start(Route("/v1/completions", answer, methods=["POST"]))
    back = client.post("/v1/completions", json={"prompt": "What is a joule?"})
    assert back.content == body
    assert float(back.headers["llm-carbon-estimated-wh"]) > 0
    assert float(back.headers["llm-carbon-modelled-wh"]) > 0
    final = record(client, "cmpl-5")
    assert final["prefill_joules"] > 0
    assert final["decode_joules"] > final["prefill_joules"]
    assert final["output_tokens"] == 3


def test_company_is_who_was_forwarded_and_is_not_answered(start: Start) -> None:
    """Streams and not: a client in turn is alone, one beside a stream that goes on is not."""
    begun, go_on = threading.Event(), threading.Event()

    async def answer(request: Request) -> Response:
        asked = await request.json()

        async def body() -> AsyncIterator[bytes]:
            yield chunk("a")
            begun.set()
            while asked.get("slow") and not go_on.is_set():
                await asyncio.sleep(0.01)
            yield LAST + DONE

        if asked.get("stream"):
            return StreamingResponse(body(), media_type=EVENTS)
        return JSONResponse({"id": os.urandom(4).hex(), "usage": USAGE})

    client = start(Route(CHAT, answer, methods=["POST"]))

    def company(**body: Any) -> int:
        back = client.post(CHAT, json=body)
        name = comment_of(back.content)["id"] if body else back.json()["id"]
        count: int = record(client, name)["features"]["concurrency"]
        return count

    assert [company(stream=True), company(), company(stream=True), company()] == [1] * 4
    with ThreadPoolExecutor(1) as pool:
        begun.clear()
        slow = pool.submit(company, stream=True, slow=True)
        assert begun.wait(5)
        beside = company()
        go_on.set()
    assert (beside, slow.result()) == (2, 1)
    assert company() == 1


def refusing(seen: list[Any], *models: str) -> Route:
    """A chat of some models that know no ``stream_options``."""

    async def answer(request: Request) -> Response:
        body = await request.body()
        asked = json.loads(body)
        seen.append(body)
        if "stream_options" in asked and asked["model"] in models:
            return JSONResponse({"error": "extra inputs are not permitted"}, 422)
        if asked.get("bad"):
            return JSONResponse({"error": "bad"}, 400)
        return StreamingResponse(iter([chunk("a"), chunk("b"), DONE]), media_type=EVENTS)

    return Route(CHAT, answer, methods=["POST"])


def test_a_server_that_refuses_our_wish_gets_the_clients_own_body(start: Start) -> None:
    """Byte for byte, and the next time at once; other models are still asked for usage."""
    seen: list[Any] = []
    client = start(refusing(seen, "strict"))
    own = b'{ "model":"strict", "stream":true, "messages":[] }'
    first, second = (client.post(CHAT, content=own) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert without_comment(first.content) == chunk("a") + chunk("b") + DONE
    assert seen[1:] == [own, own]
    final = record(client, comment_of(first.content)["id"])
    assert (final["output_tokens"], final["tokens_from"]) == (2, "guessed")
    assert client.post(CHAT, json={"model": "other", "stream": True}).status_code == 200
    assert b"include_usage" in seen[-1]


def test_a_request_that_is_refused_either_way_teaches_nothing(start: Start) -> None:
    """The client reads the error of its own body; no other client loses its count by it."""
    seen: list[Any] = []
    client = start(refusing(seen))
    bad = client.post(CHAT, json={"model": "m", "stream": True, "bad": True})
    assert (bad.status_code, bad.json()) == (400, {"error": "bad"})
    assert client.post(CHAT, json={"model": "m", "stream": True}).status_code == 200
    assert [b"include_usage" in body for body in seen] == [True, False, True]
