"""The proxy, on a real socket before a real server that each test makes, with a real meter."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llm_carbon_meter import cli
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.servers.shared.api_server import ApiServer
from llm_carbon_meter.servers.shared.local_meter import LocalMeter
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.shared.routes import RefusedError
from llm_carbon_meter.servers.sidecar import proxy as sidecar
from llm_carbon_meter.servers.sidecar import serve as sidecar_serve
from llm_carbon_meter.servers.sidecar.capture import OutsideCapture
from llm_carbon_meter.servers.sidecar.proxy import (
    Upstream,
    application,
    while_connected,
)
from llm_carbon_meter.testing.servers import free_port
from tests.support.metered import eventually

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
EVENTS = "text/event-stream"


class Metering(NamedTuple):
    """What the proxy tells, and what it asks."""

    capture: OutsideCapture
    server: ApiServer


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metering]:
    """Power as the data sheet has it: this host may have no sensor."""
    channel = tmp_path_factory.mktemp("channel")
    channel.chmod(0o700)
    config = Config(power="modelled", estimator="flop", channel_dir=str(channel))
    model = built_in_model("Llama-3.1-8B")
    setup = Setup(config, 0, ["0"], 0, 1, "", model, 1, time.monotonic(), outside=True)
    capture, local = (
        OutsideCapture(Faults()),
        LocalMeter(setup, "toy", {}, tracing=False, faults=Faults()),
    )
    local.follow(capture)
    yield Metering(capture, local.server)
    local.stop()


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """A real server of an application; its URL."""
    place = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_level="critical", ws="none", server_header=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        eventually(lambda: server.started, "a server")
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        place.close()


Start = Callable[..., httpx.Client]


@pytest.fixture
def start(meter: Metering) -> Iterator[Start]:
    """Starts a server with some routes and the proxy before it; gives a client of the proxy."""
    with contextlib.ExitStack() as stack:

        def begin(*routes: Route, url: str = "") -> httpx.Client:
            url = url or stack.enter_context(running(Starlette(routes=list(routes))))
            app = application(Upstream(url), meter.capture, meter.server, Faults())
            proxy = stack.enter_context(running(app))
            return stack.enter_context(httpx.Client(base_url=proxy, timeout=20, trust_env=False))

        yield begin


def event(**data: Any) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(data)}\n\n".encode()


def chunk(text: str, **more: Any) -> bytes:
    """One chunk of a chat's stream."""
    return event(id="chatcmpl-1", choices=[{"index": 0, "delta": {"content": text}}], **more)


LAST = event(id="chatcmpl-1", choices=[], usage=USAGE)
DONE = b"data: [DONE]\n\n"


def streamed(parts: Sequence[bytes], seen: list[Any] | None = None) -> Route:
    """A chat that streams, and notes what it was asked."""

    async def answer(request: Request) -> Response:
        if seen is not None:
            seen.append(await request.json())

        async def body() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        return StreamingResponse(body(), media_type=EVENTS)

    return Route(CHAT, answer, methods=["POST"])


def record(client: httpx.Client, name: str) -> dict[str, Any]:
    """The final record of a request."""

    def final() -> dict[str, Any] | None:
        answer = client.get(f"/v1/carbon/requests/{name}")
        return answer.json() if answer.json().get("status") == "final" else None

    found: dict[str, Any] = eventually(final, f"a final record of {name}")
    return found


def comment_of(stream: bytes) -> dict[str, Any]:
    """The record in a stream's comment."""
    line = next(one for one in stream.splitlines() if one.startswith(b": llm-carbon "))
    found: dict[str, Any] = json.loads(line.removeprefix(b": llm-carbon "))
    return found


def without_comment(stream: bytes) -> bytes:
    """A stream as a client who does not know the comment reads it."""
    return b"".join(
        each + b"\n\n"
        for each in stream.split(b"\n\n")[:-1]
        if not each.startswith(b": llm-carbon")
    )


# What passes


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
    kept = {"X-Kept": "up", "Authorization": "Bearer key", "Content-Type": "application/json"}
    answer_headers = client.post(path, content=b"{}", headers={**hops, **fake, **kept}).headers
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


@pytest.mark.parametrize("target", [b"/\xff", b"/\x00", b"/" + b"x" * 70_000])
async def test_a_path_that_is_none_is_refused(target: bytes) -> None:
    """With a reason, where the server in front has let it pass."""
    upstream = Upstream("http://127.0.0.1:1")
    request = Request({"type": "http", "method": "GET", "headers": []})
    with pytest.raises(RefusedError, match="cannot be passed on") as refused:
        await upstream.ask(request, target, b"")
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
        found = record(client, "refused")
        assert (found["outcome"], found["output_tokens"]) == ("failed", 0)


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


# Usage


def test_usage_is_asked_for_and_not_shown_to_who_did_not_ask(start: Start) -> None:
    """The client gets the stream that it would have got; the record has the server's count."""
    seen: list[Any] = []
    parts = [chunk("a"), chunk("b") + LAST, DONE]
    client = start(streamed(parts, seen))
    back = client.post(CHAT, json={"stream": True, "messages": []})
    assert seen[0]["stream_options"] == {"include_usage": True}
    assert without_comment(back.content) == chunk("a") + chunk("b") + DONE
    assert comment_of(back.content)["energy_joules"] > 0
    found = record(client, comment_of(back.content)["id"])
    counts = found["prompt_tokens"], found["output_tokens"], found["tokens_from"]
    assert counts == (7, 3, "usage")
    assert "chatcmpl-1" in found["external_ids"]


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
    found = record(client, comment_of(back.content)["id"])
    counts = found["prompt_tokens"], found["output_tokens"], found["tokens_from"]
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
    found = record(client, "resp_7")
    counts = found["prompt_tokens"], found["cached_tokens"], found["output_tokens"]
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
    found = record(client, "cmpl-5")
    assert found["prefill_joules"] > 0
    assert found["decode_joules"] > found["prefill_joules"]
    assert found["output_tokens"] == 3


# Our own routes


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


# The command


def command(*arguments: str) -> int:
    """Its exit status."""
    return cli.main(["sidecar", *arguments])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--upstream", "localhost:8000"), "expected a URL such as http://127.0.0.1:8000"),
        (("--upstream", "http://x:99999"), "expected a URL such as http://127.0.0.1:8000"),
        (("--upstream", "http://x", "--gpus", "0,,1"), "--gpus 0,,1: expected indices or UUIDs"),
        (("--upstream", "http://x", "--listen", "8010"), "expected HOST:PORT"),
        (("--upstream", "http://x", "--listen", "127.0.0.1:x"), "expected HOST:PORT"),
    ],
)
def test_wrong_usage_is_one_clear_line(
    arguments: Sequence[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was given, and what is expected."""
    assert command(*arguments) == 1
    assert says in capsys.readouterr().err


def test_a_meter_that_is_switched_off_is_no_proxy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which variable did that."""
    monkeypatch.setenv("LLM_CARBON_METER_ENABLED", "0")
    assert command("--upstream", "http://127.0.0.1:1") == 1
    assert "LLM_CARBON_METER_ENABLED=0" in capsys.readouterr().err


def test_the_server_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no default to meter by mistake."""
    with pytest.raises(SystemExit):
        command()
    assert "--upstream" in capsys.readouterr().err


async def test_a_tick_that_fails_is_counted_and_the_next_one_comes() -> None:
    """Nothing of the meter ends the clock that cuts steps."""
    faults, ticked = Faults(), asyncio.Event()

    class Broken:
        def tick(self) -> None:
            if faults.counts:
                ticked.set()
            raise ValueError("broken")

    ticking = asyncio.create_task(sidecar._tick(Broken(), faults))  # type: ignore[arg-type]
    await asyncio.wait_for(ticked.wait(), 5)
    ticking.cancel()
    assert faults.counts["engine"] >= 1


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert command("--upstream", "http://127.0.0.1:1", "--listen", place) == 1
    assert f"--listen {place}: Address already in use" in capsys.readouterr().err


def test_it_starts_before_its_server_and_without_a_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each; then it goes on."""
    started = []

    def stop_here(setup: Setup, *_: Any, **__: Any) -> None:
        started.append(setup)
        raise MeterError("far enough")

    monkeypatch.setattr(sidecar_serve, "LocalMeter", stop_here)
    monkeypatch.setenv("LLM_CARBON_METER_CHANNEL_DIR", "/nowhere")
    url = f"http://127.0.0.1:{free_port()}"
    assert command("--upstream", url, "--listen", "127.0.0.1:0", "--gpus", "1,2") == 1
    (setup,) = started
    assert (setup.gpus, setup.model, setup.outside) == (["1", "2"], None, True)
    unreachable, unknown = (line.getMessage() for line in caplog.records)
    assert f"Until {url} answers, clients get status 502" in unreachable
    assert "does not say which model it serves" in unknown
