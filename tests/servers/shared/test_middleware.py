"""Both middlewares in process, before the real front end and an application of each test."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import llm_carbon_meter
from llm_carbon_meter.frontend.exchanges import current_exchange
from llm_carbon_meter.records import Outcome, Status
from llm_carbon_meter.servers.shared.middleware import CarbonHeadersMiddleware, ExchangeMiddleware
from tests.support.servers.front_ends import front_end
from tests.support.servers.middleware_calls import (
    ESTIMATED,
    EVENTS,
    Message,
    Send,
    begin,
    call,
    chunk,
    comments,
    energy_of,
    headers_of,
    nothing,
    scope_of,
    start,
)


async def test_interleaved_requests_never_mix() -> None:
    """Twenty answers at once, each with its own ids, lengths and joules in headers and comment."""
    meter = front_end(provisional_wait_s=5.0)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        number = scope["number"]
        if number % 2:
            await send(start(EVENTS))
        await asyncio.sleep(0.001 * (number % 3))
        begin(meter, f"engine-{number}", prompt_tokens=100 * (number + 1))
        await asyncio.sleep(0.001 * (number % 5))
        figure = energy_of(f"engine-{number}", joules={"prefill": 0.0, "decode": 3600.0 * number})
        asyncio.get_running_loop().call_later(0.002, meter.receive_energies, [figure])
        if not number % 2:
            await send(start())
        await send(chunk(b"" if number % 2 else b"{}"))

    middleware = CarbonHeadersMiddleware(app)

    async def ask(number: int) -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            await asyncio.sleep(0)
            sent.append(message)

        scope = {**scope_of(meter), "number": number}
        await middleware(scope, nothing, send)
        return sent

    answers = await asyncio.gather(*map(ask, range(20)))
    estimates = [float(headers_of(answer[0])[ESTIMATED[0]]) for answer in answers]
    assert estimates == sorted(estimates)
    assert len(set(estimates)) == 20
    for number, answer in enumerate(answers):
        if number % 2:
            (record,) = comments(answer)
            assert record["internal_ids"] == [f"engine-{number}"]
            assert record["energy_wh"] == pytest.approx(number)
        else:
            assert float(headers_of(answer[0])["llm-carbon-measured-wh"]) == number


@pytest.mark.parametrize("middleware", [CarbonHeadersMiddleware, ExchangeMiddleware])
@pytest.mark.parametrize("at", ["begin", "start", "stream", "body"])
async def test_an_application_that_raises_raises(middleware: Any, at: str) -> None:
    """The error passes through, and the exchange ends as not answered."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        if at == "begin":
            raise ValueError(at)
        await send(start(EVENTS if at == "stream" else "application/json"))
        if at in ("start", "stream"):
            raise ValueError(at)
        await send(chunk(b"{", more=True))
        raise ValueError(at)

    with pytest.raises(ValueError, match=at):
        await call(middleware(app), meter)
    assert current_exchange.get() is None
    meter.receive_energies([energy_of("engine-1", Status.FINAL, outcome=Outcome.ABORTED)])
    (text,) = meter.find("engine-1").values()
    assert json.loads(text)["outcome"] == "aborted"


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "stopped"), (400, "aborted"), (500, "aborted")]
)
@pytest.mark.parametrize("middleware", [CarbonHeadersMiddleware, ExchangeMiddleware])
async def test_an_abort_with_a_good_answer_was_a_stop_string(
    middleware: Any, status: int, outcome: str
) -> None:
    """The engine saw an abort; whether the client got its answer decides what it was."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energies([energy_of("engine-1", Status.FINAL, outcome=Outcome.ABORTED)])
        await send(start(status=status))
        await send(chunk(b"{}"))

    await call(middleware(app), meter)
    (text,) = meter.find("engine-1").values()
    assert json.loads(text)["outcome"] == outcome


async def test_a_client_that_leaves_is_not_answered() -> None:
    """Half a stream is no answer: the abort stays an abort."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start(EVENTS))
        begin(meter)
        await send(chunk(b"data: 1\n\n", more=True))
        await send(chunk(b"data: 2\n\n", more=True))

    async def send(message: Message) -> None:
        if b"2" in message.get("body", b""):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await CarbonHeadersMiddleware(app)(scope_of(meter), nothing, send)
    meter.receive_energies([energy_of("engine-1", Status.FINAL, outcome=Outcome.ABORTED)])
    (text,) = meter.find("engine-1").values()
    assert json.loads(text)["outcome"] == "aborted"


@pytest.mark.parametrize("kind", ["application/json", EVENTS])
@pytest.mark.parametrize("with_meter", [True, False])
@pytest.mark.parametrize("middleware", [CarbonHeadersMiddleware, ExchangeMiddleware])
async def test_exchanges_without_engine_requests_are_unchanged(
    middleware: Any, with_meter: bool, kind: str
) -> None:
    """Health checks, model lists and servers without a meter: byte for byte as they were."""
    messages = [
        start(kind, x="y"),
        chunk(b"data: [DONE]\n\n" if kind == EVENTS else b"{", more=True),
        chunk(b"}"),
    ]

    async def app(scope: Any, receive: Any, send: Send) -> None:
        for message in messages:
            await send(message)

    meter = front_end() if with_meter else None
    assert await call(middleware(app), meter) == messages


async def test_a_server_without_state_is_served() -> None:
    """A scope without an application is no error."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start())
        await send(chunk(b"{}"))

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await CarbonHeadersMiddleware(app)({"type": "http", "headers": []}, nothing, send)
    assert sent == [start(), chunk(b"{}")]


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
@pytest.mark.parametrize("middleware", [CarbonHeadersMiddleware, ExchangeMiddleware])
async def test_other_protocols_pass(middleware: Any, kind: str) -> None:
    """Only HTTP has exchanges."""
    seen: list[tuple[Any, Any, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))
        assert current_exchange.get() is None

    scope = {"type": kind}
    await middleware(app)(scope, nothing, print)
    assert seen == [(scope, nothing, print)]


async def test_following_changes_no_byte() -> None:
    """The middleware that is always there adds nothing, and the record is found all the same."""
    meter = front_end()
    messages = [start(x="y"), chunk(b"{", more=True), chunk(b"}")]

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energies([energy_of("engine-1", Status.FINAL)])
        for message in messages:
            await send(message)

    sent = await call(ExchangeMiddleware(app), meter, [(b"x-request-id", b"client-7")])
    assert sent == messages
    (text,) = meter.find("client-7").values()
    assert json.loads(text)["external_ids"] == ["client-7", "chatcmpl-1"]


async def test_both_middlewares_share_an_exchange() -> None:
    """Whichever is outside, there is one exchange and one record."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energies([energy_of("engine-1", Status.FINAL)])
        await send(start())
        await send(chunk(b"{}"))

    first, _ = await call(CarbonHeadersMiddleware(ExchangeMiddleware(app)), meter)
    assert headers_of(first)["llm-carbon-status"] == "final"
    assert len(meter.find("engine-1")) == 1


async def test_through_starlette_and_httpx() -> None:
    """The name that vLLM's --middleware asks for, in a real application with a real client."""
    meter = front_end(provisional_wait_s=5.0)

    async def chat(request: Request) -> Response:
        begin(meter, "engine-chat")
        meter.receive_energies([energy_of("engine-chat", Status.FINAL)])
        return JSONResponse({"id": "chatcmpl-1"})

    async def stream(request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            begin(meter, "engine-stream")
            yield "data: 1\n\n"
            meter.receive_energies([energy_of("engine-stream")])
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/chat", chat), Route("/stream", stream)])
    app.state.llm_carbon_meter = meter
    app.add_middleware(llm_carbon_meter.CarbonHeadersMiddleware)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer, streamed, missing = await asyncio.gather(
            client.get("/chat", headers={"X-Request-Id": "mine"}),
            client.get("/stream"),
            client.get("/nowhere"),
        )
    assert answer.json() == {"id": "chatcmpl-1"}
    assert answer.headers["LLM-Carbon-Measured-Wh"] == "0.001"
    assert answer.headers["LLM-Carbon-Status"] == "final"
    assert "engine-chat" in meter.find("mine")
    assert "LLM-Carbon-Measured-Wh" not in streamed.headers
    assert "LLM-Carbon-Estimated-Wh" in streamed.headers
    assert streamed.text.startswith("data: 1\n\n: llm-carbon {")
    assert streamed.text.endswith("}\n\ndata: [DONE]\n\n")
    assert missing.status_code == 404
    assert not [name for name in missing.headers if name.startswith("llm-carbon")]


@pytest.mark.parametrize(
    ("chunks", "name"),
    [
        ([b'{"id":"resp_1","output":[{"id":"msg_1"}]}'], "resp_1"),
        ([b'{"object": "list", "id" : "embd-a/b"}'], "embd-a/b"),
        (
            [b'event: x\ndata: {"type":"created","response":{"id":"resp_1"}}\n\n', b"data: 1"],
            "resp_1",
        ),
        ([b'{"i', b'd":"resp_1","output":[{"id":"msg_1"}]}'], "resp_1"),
        ([b'{"id":"res', b'p_1"}'], "resp_1"),
        ([b": ping\n\n", b'data: {"id":"resp_1"}\n\n', b'data: {"id":"item"}\n\n'], "resp_1"),
    ],
)
async def test_the_id_of_the_answer_leads_to_the_record(chunks: list[bytes], name: str) -> None:
    """Each route makes its own; the first in an answer is the answer's."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        await send(start())
        for number, body in enumerate(chunks):
            await send(chunk(body, more=number < len(chunks) - 1))

    await call(ExchangeMiddleware(app), meter)
    (text,) = meter.find(name).values()
    assert json.loads(text)["external_ids"] == [name, "chatcmpl-1"]
    assert not meter.find("msg_1")
    assert not meter.find("item")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b'{"id": "victim"}'),
        (200, b'{"text": "' + b"a" * 2048 + b'", "id": "victim"}'),
        (200, b'{"id": 7}'),
        (200, b'{"id": ""}'),
    ],
)
async def test_what_is_no_id_of_an_answer_is_none(status: int, body: bytes) -> None:
    """Of an error, far behind the beginning, or no text."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        await send({**start(), "status": status})
        await send(chunk(body))

    await call(ExchangeMiddleware(app), meter)
    assert not meter.find("victim")
    (text,) = meter.find("engine-1").values()
    assert json.loads(text)["external_ids"] == ["chatcmpl-1"]


@pytest.mark.parametrize(
    ("way", "pieces", "tenant"),
    [
        ("claimed_user", [b'{"user": "acme"}'], "acme"),
        ("claimed_user", [b'{"user"', b': "a", "safety_identifier": "of a"}'], "of a"),
        ("claimed_user", [b'{"user": "acme", "prompt": "', b"a" * 1_000_000, b'"}'], None),
        ("claimed_user", [b"[1]"], None),
        ("adapter", [b'{"user": "acme"}'], None),
    ],
)
async def test_a_body_says_whose_it_is_where_that_is_enough(
    way: str, pieces: list[bytes], tenant: str | None
) -> None:
    """The client's own word, of a body of a bounded length."""
    meter, left = front_end(tenant_from=way), list(pieces)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        begin(meter)
        await send(start())
        await send(chunk(b"{}"))

    async def receive() -> Message:
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Message) -> None:
        pass

    await ExchangeMiddleware(app)(scope_of(meter), receive, send)
    (text,) = meter.find("engine-1").values()
    assert json.loads(text).get("tenant") == tenant
