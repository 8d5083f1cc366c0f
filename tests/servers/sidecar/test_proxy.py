"""What passes through the proxy, and what does not."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.servers.shared.routes import RefusedError
from llm_carbon_meter.servers.sidecar.proxy import IDLE_CONNECTION_S, Upstream, while_connected
from llm_carbon_meter.servers.sidecar.serve import _Metering
from llm_carbon_meter.testing.servers import free_port
from tests.support.servers.proxied import (
    CHAT,
    DONE,
    EVENTS,
    Metering,
    Start,
    chunk,
    record,
    running,
    without_comment,
)


@pytest.mark.parametrize("path", [CHAT, "/other"])
def test_headers_pass_but_those_of_a_connection_and_ours(start: Start, path: str) -> None:
    """In both directions; a client or server cannot pretend to have been metered."""
    seen: list[tuple[bytes, bytes]] = []

    async def answer(request: Request) -> Response:
        seen.extend(request.headers.raw)
        given = {"X-Kept": "down", "Keep-Alive": "timeout=9", "X-Hop": "1", "Connection": "x-hop"}
        more = {"LLM-Carbon-Status": "fake", "Proxy-Authenticate": "Basic"}
        return JSONResponse({"id": "x"}, headers={**given, **more})

    client = start(Route(path, answer, methods=["POST"]))
    hops = {"Connection": "keep-alive, X-Mine", "X-Mine": "1", "TE": "trailers", "Upgrade": "h2c"}
    fake = {"LLM-Carbon-Measured-Wh": "0", "Proxy-Authorization": "secret"}
    passed = {"X-Kept": "up", "Authorization": "Bearer key", "Content-Type": "application/json"}
    answer_headers = client.post(path, content=b"{}", headers={**hops, **fake, **passed}).headers
    names = {name for name, _ in seen}
    assert not names & {b"x-mine", b"te", b"upgrade", b"proxy-authorization"}
    assert not any(name.startswith(b"llm-carbon") for name in names)
    assert dict(seen)[b"x-kept"] == b"up"
    assert dict(seen)[b"authorization"] == b"Bearer key"
    assert answer_headers["x-kept"] == "down"
    assert not set(answer_headers) & {"keep-alive", "x-hop", "proxy-authenticate"}
    assert answer_headers.get_list("llm-carbon-status") in ([], ["provisional"], ["final"])
    assert ("llm-carbon-status" in answer_headers) == (path == CHAT)


def test_paths_queries_and_bodies_pass_byte_for_byte(start: Start) -> None:
    """Escapes in a path, order in a query, a body of many parts, any method and status."""
    seen: list[Any] = []

    async def answer(request: Request) -> Response:
        seen.append((request.method, request.scope["raw_path"], request.scope["query_string"]))
        return Response(await request.body(), 207, {"X-Length": request.headers["content-length"]})

    client = start(Route("/{path:path}", answer, methods=["PUT"]))
    body = bytes(range(256)) * 4000
    back = client.put("/v1/files/a%2Fb%20c?z=1&a=%41", content=body)
    assert seen == [("PUT", b"/v1/files/a%2Fb%20c", b"z=1&a=%41")]
    assert (back.status_code, back.content) == (207, body)
    assert back.headers["x-length"] == str(len(body))


@pytest.mark.parametrize("path", [CHAT, "/other"])
def test_clients_never_see_the_login_of_the_server_behind(
    start: Start, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in a refusal nor in a log; it is not sent for them either."""
    client = start(url=f"http://user:SECRET@127.0.0.1:{free_port()}/SECRET")
    with caplog.at_level(logging.DEBUG):
        back = client.post(path, json={})
    assert back.status_code == 502
    assert "SECRET" not in back.text + str(back.headers) + caplog.text
    assert "the server behind this proxy, http://127.0.0.1:" in back.text


def test_the_model_is_asked_with_the_login_that_no_log_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """httpx logs every address that it is given."""
    seen: list[str] = []

    async def models(request: Request) -> Response:
        seen.append(request.headers["authorization"])
        return JSONResponse({"data": [{"id": "toy"}]})

    server = running(Starlette(routes=[Route("/v1/models", models)]))
    with caplog.at_level(logging.DEBUG), server as url:
        secret = url.replace("//", "//user:SECRET@")
        served = _Metering(Config(), secret, ["0"], "", {}, Faults())._served()
    assert served is not None
    assert (served.names, seen) == (["toy"], ["Basic dXNlcjpTRUNSRVQ="])
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("target", [b"/\xff", b"/\x00", b"/" + b"x" * 70_000])
async def test_a_path_that_is_none_is_refused(target: bytes) -> None:
    """With a reason, where the server in front has let it pass."""
    upstream = Upstream("http://127.0.0.1:1")
    request = Request({"type": "http", "method": "GET", "headers": []})
    with pytest.raises(RefusedError, match="cannot be passed on") as refused:
        async with upstream.ask(request, target, b""):
            pass
    assert refused.value.status == 400
    await upstream.close()


def test_a_compressed_answer_that_is_not_metered_stays_so(start: Start) -> None:
    """It is passed on, not unpacked."""

    async def answer(request: Request) -> Response:
        headers = {"Content-Encoding": "gzip", "X-Wish": request.headers["accept-encoding"]}
        return Response(b"not really gzip", headers=headers)

    client = start(Route("/v1/models", answer))
    with client.stream("GET", "/v1/models", headers={"Accept-Encoding": "gzip"}) as back:
        assert b"".join(back.iter_raw()) == b"not really gzip"
        assert back.headers["x-wish"] == "gzip"


@pytest.mark.parametrize("path", [CHAT, "/other"])
def test_streams_are_not_buffered(start: Start, path: str) -> None:
    """The server sends its second part only when the client has had the first."""
    had_first = threading.Event()

    async def answer(_request: Request) -> Response:
        def body() -> Iterator[bytes]:
            yield chunk("one")
            assert had_first.wait(10)
            yield chunk("two") + DONE

        return StreamingResponse(body(), media_type=EVENTS)

    client = start(Route(path, answer, methods=["POST"]))
    with client.stream("POST", path, json={"stream": True}) as back:
        parts = back.iter_raw()
        assert next(parts) == chunk("one")
        had_first.set()
        assert without_comment(b"".join(parts)) == chunk("two") + DONE


def test_uploads_are_not_buffered(start: Start) -> None:
    """The server answers before the client has sent everything."""
    had_first = threading.Event()

    async def answer(request: Request) -> Response:
        async for _ in request.stream():
            had_first.set()
        return Response(b"thanks")

    def upload() -> Iterator[bytes]:
        yield b"one"
        assert had_first.wait(10)
        yield b"two"

    client = start(Route("/v1/audio", answer, methods=["POST"]))
    assert client.post("/v1/audio", content=upload()).content == b"thanks"


@pytest.mark.parametrize("path", [CHAT, "/other"])
def test_errors_of_the_server_pass(start: Start, path: str) -> None:
    """Status, headers and text; a request that was refused costs nothing."""

    async def answer(_request: Request) -> Response:
        return JSONResponse({"error": "slow down"}, 429, {"Retry-After": "7"})

    client = start(Route(path, answer, methods=["POST"]))
    back = client.post(path, json={}, headers={"X-Request-Id": "refused"})
    assert (back.status_code, back.json()) == (429, {"error": "slow down"})
    assert back.headers["retry-after"] == "7"
    if path == CHAT:
        final = record(client, "refused")
        assert (final["outcome"], final["output_tokens"]) == ("failed", 0)


@pytest.mark.parametrize("path", [CHAT, "/other"])
def test_a_server_that_cannot_be_reached_is_a_502(start: Start, path: str) -> None:
    """In the shape of OpenAI's errors, with its address."""
    url = f"http://127.0.0.1:{free_port()}"
    back = start(url=url).post(path, json={})
    assert back.status_code == 502
    assert back.json()["error"]["code"] == 502
    assert url in back.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, "/other"])
def test_an_answer_that_breaks_off_breaks_off_here_too(start: Start, path: str) -> None:
    """A client must not take half an answer for a whole one."""

    async def answer(_request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield chunk("half")
            raise RuntimeError("out of memory")

        return StreamingResponse(body(), media_type=EVENTS)

    client = start(Route(path, answer, methods=["POST"]))
    back = client.send(client.build_request("POST", path, json={"stream": True}), stream=True)
    with pytest.raises(httpx.RemoteProtocolError):
        back.read()


@pytest.mark.parametrize(("path", "stream"), [(CHAT, True), (CHAT, False), ("/other", False)])
def test_a_client_that_leaves_ends_the_servers_work(
    start: Start, meter: Metering, path: str, stream: bool
) -> None:
    """Before the answer or in the middle of it; the record says aborted."""
    came, left = threading.Event(), threading.Event()

    async def server(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        came.set()
        if stream:
            headers = [(b"content-type", EVENTS.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": chunk("one"), "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    endpoint = Starlette()
    endpoint.router.default = server  # type: ignore[assignment]
    name = f"leaves-{stream}"
    with running(endpoint) as url:
        client = start(url=url)
        leaving = httpx.Client(base_url=client.base_url, timeout=httpx.Timeout(5, read=0.5))
        with leaving, pytest.raises(httpx.ReadTimeout):
            leaving.post(path, json={"stream": stream}, headers={"X-Request-Id": name})
        assert came.is_set()
        assert left.wait(5)
        if path == CHAT:
            assert record(client, name)["outcome"] == "aborted"
    assert not meter.capture._open


async def test_a_fault_of_ours_is_not_hidden() -> None:
    """The server in front logs it and answers 500."""

    async def work() -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        await while_connected(work(), asyncio.sleep(10))


def test_our_routes_are_ours_and_the_servers_metrics_move(start: Start) -> None:
    """The record and estimate routes, and both metrics."""

    async def metrics(_request: Request) -> Response:
        return Response(b"theirs 1")

    client = start(Route("/metrics", metrics))
    assert "llm_carbon_meter_energy_joules_total" in client.get("/metrics").text
    assert client.get("/upstream/metrics").text == "theirs 1"
    assert client.get("/v1/carbon/requests/none").status_code == 404
    short, long = (
        client.post("/v1/carbon/estimate", json={"prompt": "x" * size, "max_tokens": 5}).json()
        for size in (40, 40_000)
    )
    assert long["estimate"]["prefill_joules"] > 100 * short["estimate"]["prefill_joules"]


def test_connections_that_nobody_uses_are_closed(start: Start) -> None:
    """By the proxy, before the server would: each takes one of both's open files."""
    left = threading.Event()

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                connection.settimeout(15 * IDLE_CONNECTION_S)
                if connection.recv(1) == b"":
                    left.set()

        server = threading.Thread(target=answer)
        server.start()
        client = start(url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert client.get("/other").status_code == 200
        server.join()
    assert left.is_set()


def test_a_connection_is_used_again(start: Start) -> None:
    """Whoever asks in turn opens one."""
    seen: set[Any] = set()

    async def answer(request: Request) -> Response:
        seen.add(request.client)
        return Response(b"")

    client = start(Route("/other", answer))
    for _ in range(5):
        client.get("/other")
    assert len(seen) == 1
