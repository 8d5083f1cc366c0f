"""Streams: the estimate comes in headers first, the measurement in a comment at the end."""

import asyncio
from typing import Any

import pytest

from llm_carbon_meter.servers.shared.middleware import CarbonHeadersMiddleware
from tests.support.servers.front_ends import front_end
from tests.support.servers.middleware_calls import (
    ESTIMATED,
    EVENTS,
    Message,
    Send,
    begin,
    call,
    carbon_headers,
    chunk,
    comments,
    energy_of,
    nothing,
    scope_of,
    start,
)


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
        meter.receive_energies([energy_of("engine-1")])
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
        [b"data: 1\n\ndata:[DONE]\n\n"],
        [b"data:1\n\n", b"data:[DONE]\n\n", b""],
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
                meter.receive_energies([energy_of("engine-1")])
            await send(chunk(data, more=number < len(chunks) - 1))

    _, *bodies = await call(CarbonHeadersMiddleware(app), meter)
    (record,) = comments(bodies)
    assert record["energy_joules"] == pytest.approx(3.6)
    assert (record["status"], record["id"]) == ("provisional", "engine-1")
    text = b"".join(body["body"] for body in bodies)
    before, _, after = text.partition(b": llm-carbon ")
    comment, _, end = after.partition(b"\n\n")
    assert end.replace(b" ", b"") == b"data:[DONE]\n\n"
    assert b"\n" not in comment
    assert before + end == b"".join(chunks)


async def test_a_stream_without_an_end_mark_has_the_comment_last() -> None:
    """Streams of other endpoints know no [DONE]."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start(EVENTS))
        begin(meter)
        meter.receive_energies([energy_of("engine-1")])
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
        meter.receive_energies([energy_of("engine-1")])
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


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (500, {}),
        (200, {"content-encoding": "gzip"}),
        (200, {"Content-Length": "14"}),
    ],
)
async def test_what_cannot_grow_gets_no_comment(status: int, more: dict[str, str]) -> None:
    """The bytes of errors, compressed streams and streams of a told length stay as they are."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energies([energy_of("engine-1")])
        await send({**start(EVENTS, **more), "status": status})
        await send(chunk(b"data: [DONE]\n\n"))

    first, body = await call(CarbonHeadersMiddleware(app), meter)
    assert body["body"] == b"data: [DONE]\n\n"
    assert list(carbon_headers(first)) == ESTIMATED


@pytest.mark.parametrize("setting", ["headers", "comment"])
async def test_one_of_headers_and_comment_can_be_had_alone(setting: str) -> None:
    """A stream without headers starts at once."""
    meter = front_end(**{setting: False})

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(start(EVENTS))
        begin(meter)
        meter.receive_energies([energy_of("engine-1")])
        await send(chunk(b"data: [DONE]\n\n"))

    messages = await call(CarbonHeadersMiddleware(app), meter)
    assert bool(carbon_headers(messages[0])) == (setting != "headers")
    assert bool(comments(messages)) == (setting != "comment")
