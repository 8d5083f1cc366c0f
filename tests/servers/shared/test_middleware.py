"""The middleware in process, with the real front end behind it and an application in each test."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import llm_carbon_meter
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.exchanges import Exchange, current_exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.records import Outcome, Quality, Source, Status
from llm_carbon_meter.servers.shared.middleware import (
    STATE_NAME,
    CarbonHeadersMiddleware,
    ExchangeMiddleware,
)
from tests.support import energies

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

ESTIMATED = [
    "llm-carbon-estimated-wh",
    "llm-carbon-estimated-low-wh",
    "llm-carbon-estimated-high-wh",
    "llm-carbon-estimated-gco2eq",
]


def front_end(**settings: Any) -> FrontendMeter:
    """The meter of an API server, with a Prometheus registry of its own."""
    return FrontendMeter(
        Config(**{"estimator": "flop", **settings}),
        "llama",
        built_in_model("Llama-3.1-8B"),
        index=0,
        deployment={},
        tracing=False,
        share=lambda key, ids, record: None,
        faults=Faults(),
        registry=CollectorRegistry(),
    )


def energy_of(request_id: str, status: Status = Status.PROVISIONAL, **changes: Any) -> Any:
    """An engine's figure of 3.6 J, a milliwatt-hour."""
    joules = {"prefill_joules": 0.6, "decode_joules": 3.0, "operational_grams": 0.000475}
    return energies.energy_of(request_id, status, **{**joules, **changes})


def begin(meter: FrontendMeter, internal_id: str = "engine-1", prompt_tokens: int = 10) -> Exchange:
    """What the hook in the server does when an engine request is made."""
    exchange = current_exchange.get()
    assert exchange is not None
    meter.begin(exchange, internal_id, "chatcmpl-1", prompt_tokens, 5)
    return exchange


def start(kind: str = "application/json", status: int = 200, **more: str) -> Message:
    """A start message with a content type."""
    headers = [(b"content-type", kind.encode())]
    headers += [(name.encode(), value.encode()) for name, value in more.items()]
    return {"type": "http.response.start", "status": status, "headers": headers}


def chunk(data: bytes, more: bool = False) -> Message:
    """A body message."""
    return {"type": "http.response.body", "body": data, "more_body": more}


EVENTS = "text/event-stream; charset=utf-8"


async def nothing() -> Message:
    """A client that says no more."""
    return {"type": "http.disconnect"}


async def call(
    app: App, meter: object | None = None, headers: Sequence[tuple[bytes, bytes]] = ()
) -> list[Message]:
    """The messages that reach the client."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope_of(meter, headers), nothing, send)
    return sent


def scope_of(meter: object | None, headers: Sequence[tuple[bytes, bytes]] = ()) -> Message:
    """An HTTP scope of an application with our meter in its state."""
    state = SimpleNamespace(**({STATE_NAME: meter} if meter else {}))
    return {"type": "http", "headers": list(headers), "app": SimpleNamespace(state=state)}


def headers_of(message: Message) -> Mapping[str, str]:
    """The headers of a start message."""
    return {name.decode(): value.decode() for name, value in message["headers"]}


def carbon_headers(message: Message) -> Mapping[str, str]:
    """Ours among them."""
    return {k: v for k, v in headers_of(message).items() if k.startswith("llm-carbon-")}


def comments(messages: Sequence[Message]) -> list[Any]:
    """The records in the comments of a stream."""
    text = b"".join(message.get("body", b"") for message in messages).decode()
    return [
        json.loads(event.removeprefix(": llm-carbon "))
        for event in text.split("\n\n")
        if event.startswith(": llm-carbon ")
    ]


async def test_an_answer_carries_estimate_and_measurement() -> None:
    """All headers of the contract beside the server's own; the body is as it was."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energy(energy_of("engine-1"))
        await send(start(server="vllm"))
        await send(chunk(b'{"id": "chatcmpl-1"}'))

    first, body = await call(CarbonHeadersMiddleware(app), meter)
    headers = headers_of(first)
    assert headers["content-type"] == "application/json"
    assert headers["server"] == "vllm"
    assert list(carbon_headers(first)) == [
        *ESTIMATED,
        "llm-carbon-measured-wh",
        "llm-carbon-measured-gco2eq",
        "llm-carbon-quality",
        "llm-carbon-status",
    ]
    assert headers["llm-carbon-measured-wh"] == "0.001"
    assert headers["llm-carbon-measured-gco2eq"] == "0.000475"
    assert (headers["llm-carbon-quality"], headers["llm-carbon-status"]) == (
        "counter",
        "provisional",
    )
    assert body == chunk(b'{"id": "chatcmpl-1"}')


async def test_modelled_joules_are_never_called_measured() -> None:
    """A modelled figure has the modelled names, and the measured ones are absent."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        modelled = {"source": Source.MODELLED, "quality": Quality.MODELLED}
        meter.receive_energy(energy_of("engine-1", **modelled))
        await send(start())
        await send(chunk(b"{}"))

    headers = carbon_headers((await call(CarbonHeadersMiddleware(app), meter))[0])
    assert headers["llm-carbon-modelled-wh"] == "0.001"
    assert headers["llm-carbon-quality"] == "modelled"
    assert not any("measured" in name for name in headers)


async def test_children_are_summed_in_the_headers() -> None:
    """With n = 2 the client sees what both cost."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter, "0_x")
        begin(meter, "1_x")
        meter.receive_energy(energy_of("0_x"))
        meter.receive_energy(energy_of("1_x"))
        await send(start())
        await send(chunk(b"{}"))

    first, _ = await call(CarbonHeadersMiddleware(app), meter)
    assert headers_of(first)["llm-carbon-measured-wh"] == "0.002"


async def test_the_answer_waits_for_its_figure() -> None:
    """A figure that comes a moment later is still in the headers."""
    meter = front_end(provisional_wait_s=5.0)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        asyncio.get_running_loop().call_later(0.05, meter.receive_energy, energy_of("engine-1"))
        await send(start())
        await send(chunk(b"{}"))

    began_s = time.monotonic()
    first, _ = await call(CarbonHeadersMiddleware(app), meter)
    assert headers_of(first)["llm-carbon-status"] == "provisional"
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
async def test_the_wait_is_bounded(wait_s: float) -> None:
    """Where no figure comes, the answer leaves with the estimate alone."""
    meter = front_end(provisional_wait_s=wait_s)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        await send(start())
        await send(chunk(b"{}"))

    began_s = time.monotonic()
    first, body = await call(CarbonHeadersMiddleware(app), meter)
    assert wait_s <= time.monotonic() - began_s < 2
    assert list(carbon_headers(first)) == ESTIMATED
    assert body == chunk(b"{}")


async def test_a_setting_makes_the_answer_wait_for_the_final_figure() -> None:
    """With final_wait_s the header says final."""
    meter = front_end(final_wait_s=5.0)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energy(energy_of("engine-1"))
        final = energy_of("engine-1", Status.FINAL, decode_joules=6.6)
        asyncio.get_running_loop().call_later(0.05, meter.receive_energy, final)
        await send(start())
        await send(chunk(b"{}"))

    first, _ = await call(CarbonHeadersMiddleware(app), meter)
    headers = headers_of(first)
    assert (headers["llm-carbon-status"], headers["llm-carbon-measured-wh"]) == ("final", "0.002")


async def test_the_record_keeps_what_the_header_said() -> None:
    """The header's figure is the record's provisional one, the final one stands beside it."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energy(energy_of("engine-1"))
        await send(start())
        await send(chunk(b"{}"))

    first, _ = await call(CarbonHeadersMiddleware(app), meter)
    meter.receive_energy(energy_of("engine-1", Status.FINAL, decode_joules=6.6))
    (text,) = meter.find("chatcmpl-1").values()
    record = json.loads(text)
    assert record["status"] == "final"
    assert record["energy_wh"] == pytest.approx(0.002)
    header = float(headers_of(first)["llm-carbon-measured-wh"])
    assert record["provisional"]["energy_wh"] == pytest.approx(header)
    assert record["provisional"]["status"] == "provisional"


async def test_a_stream_starts_with_its_estimate_before_the_first_byte() -> None:
    """The start leaves as soon as the engine request is made, not with the first token."""
    meter, order = front_end(), list[str]()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start(EVENTS))
        order.append("start given")
        await asyncio.sleep(0.01)
        begin(meter)
        order.append("begun")
        await asyncio.sleep(0.05)
        order.append("first token")
        await send(chunk(b"data: 1\n\n", more=True))
        await send(chunk(b""))

    sent: list[Message] = []

    async def send(message: Message) -> None:
        order.append(message["type"])
        sent.append(message)

    await CarbonHeadersMiddleware(app)(scope_of(meter), nothing, send)
    assert order == [
        "start given",
        "begun",
        "http.response.start",
        "first token",
        "http.response.body",
        "http.response.body",
    ]
    assert list(carbon_headers(sent[0])) == ESTIMATED


async def test_a_stream_has_its_measurement_in_the_comment_alone() -> None:
    """Even where a figure is known already when the stream starts."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energy(energy_of("engine-1"))
        await send(start(EVENTS))
        await send(chunk(b"data: [DONE]\n\n"))

    messages = await call(CarbonHeadersMiddleware(app), meter)
    assert list(carbon_headers(messages[0])) == ESTIMATED
    assert len(comments(messages)) == 1


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: 1\n\n", b"data: [DONE]\n\n"],
        [b"data: 1\n\ndata: [DONE]\n\n"],
        [b"data: 1\n\n", b"data: 2\n\ndata: [DONE]\n\n", b""],
        [b"data: 1\r\n\r\ndata: 2\n\n", b"data: [DONE]\n\n", b""],
    ],
)
async def test_the_comment_stands_before_the_end_of_a_stream(chunks: list[bytes]) -> None:
    """One comment, right before `data: [DONE]`, also inside a bigger chunk; the rest as it was."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start(EVENTS))
        begin(meter)
        for number, data in enumerate(chunks):
            if b"[DONE]" in data:
                meter.receive_energy(energy_of("engine-1"))
            await send(chunk(data, more=number < len(chunks) - 1))

    _, *bodies = await call(CarbonHeadersMiddleware(app), meter)
    (record,) = comments(bodies)
    assert record["energy_joules"] == pytest.approx(3.6)
    assert (record["status"], record["id"]) == ("provisional", "engine-1")
    text = b"".join(body["body"] for body in bodies)
    before, _, after = text.partition(b": llm-carbon ")
    comment, _, end = after.partition(b"\n\n")
    assert end == b"data: [DONE]\n\n"
    assert b"\n" not in comment
    assert before + end == b"".join(chunks)


async def test_a_stream_without_an_end_mark_has_the_comment_last() -> None:
    """Streams of other endpoints know no [DONE]."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start(EVENTS))
        begin(meter)
        meter.receive_energy(energy_of("engine-1"))
        await send(chunk(b"event: done\n\n", more=True))
        await send(chunk(b""))

    *_, first, last = await call(CarbonHeadersMiddleware(app), meter)
    assert first["body"] == b"event: done\n\n"
    assert len(comments([last])) == 1


async def test_words_of_the_answer_are_not_the_end_of_the_stream() -> None:
    """A model that writes `data: [DONE]` gets no comment into the midst of its text."""
    meter = front_end()
    text = b'data: {"text": "data: [DONE]"}\n\n'

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start(EVENTS))
        begin(meter)
        meter.receive_energy(energy_of("engine-1"))
        await send(chunk(text, more=True))
        await send(chunk(b"data: [DONE]\n\n"))

    _, first, last = await call(CarbonHeadersMiddleware(app), meter)
    assert first["body"] == text
    assert last["body"].startswith(b": llm-carbon ")


async def test_a_stream_does_not_wait_for_ever_at_its_end() -> None:
    """Without a figure the comment has the estimate and no energy."""
    meter = front_end(provisional_wait_s=0.05)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start(EVENTS))
        begin(meter)
        await send(chunk(b"data: [DONE]\n\n"))

    (record,) = comments(await call(CarbonHeadersMiddleware(app), meter))
    assert "energy_joules" not in record
    assert record["estimate"]["method"] == "flop"


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
        figure = energy_of(f"engine-{number}", decode_joules=3600.0 * number, prefill_joules=0.0)
        asyncio.get_running_loop().call_later(0.002, meter.receive_energy, figure)
        if not number % 2:
            await send(start())
        await send(chunk(b"" if number % 2 else b"{}"))

    middleware = CarbonHeadersMiddleware(app)

    async def one(number: int) -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            await asyncio.sleep(0)
            sent.append(message)

        scope = {**scope_of(meter), "number": number}
        await middleware(scope, nothing, send)
        return sent

    answers = await asyncio.gather(*map(one, range(20)))
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
    meter.receive_energy(energy_of("engine-1", Status.FINAL, outcome=Outcome.ABORTED))
    (text,) = meter.records.find("engine-1").values()
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
        meter.receive_energy(energy_of("engine-1", Status.FINAL, outcome=Outcome.ABORTED))
        await send(start(status=status))
        await send(chunk(b"{}"))

    await call(middleware(app), meter)
    (text,) = meter.records.find("engine-1").values()
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
    meter.receive_energy(energy_of("engine-1", Status.FINAL, outcome=Outcome.ABORTED))
    (text,) = meter.records.find("engine-1").values()
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
        meter.receive_energy(energy_of("engine-1", Status.FINAL))
        for message in messages:
            await send(message)

    sent = await call(ExchangeMiddleware(app), meter, [(b"x-request-id", b"client-7")])
    assert sent == messages
    (text,) = meter.records.find("client-7").values()
    assert json.loads(text)["external_ids"] == ["client-7", "chatcmpl-1"]


async def test_both_middlewares_share_an_exchange() -> None:
    """Whichever is outside, there is one exchange and one record."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energy(energy_of("engine-1", Status.FINAL))
        await send(start())
        await send(chunk(b"{}"))

    first, _ = await call(CarbonHeadersMiddleware(ExchangeMiddleware(app)), meter)
    assert headers_of(first)["llm-carbon-status"] == "final"
    assert len(meter.records.find("engine-1")) == 1


async def test_through_starlette_and_httpx() -> None:
    """The name that vLLM's --middleware asks for, in a real application with a real client."""
    meter = front_end(provisional_wait_s=5.0)

    async def chat(request: Request) -> Response:
        begin(meter, "engine-chat")
        meter.receive_energy(energy_of("engine-chat", Status.FINAL))
        return JSONResponse({"id": "chatcmpl-1"})

    async def stream(request: Request) -> Response:
        async def events() -> AsyncIterator[str]:
            begin(meter, "engine-stream")
            yield "data: 1\n\n"
            meter.receive_energy(energy_of("engine-stream"))
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


def test_nobody_waits_for_an_engine_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unmetered engine must not delay every answer by the time that is allowed for waiting."""
    meter = front_end(provisional_wait_s=0.2, final_wait_s=0.3)
    assert (meter.provisional_wait_s, meter.final_wait_s) == (0.2, 0.3)
    later_s = time.monotonic() + 60
    monkeypatch.setattr("llm_carbon_meter.frontend.frontend_meter.time.monotonic", lambda: later_s)
    assert (meter.provisional_wait_s, meter.final_wait_s) == (0.0, 0.0)
