"""A server and a proxy before it on real sockets, and the streams that pass."""

import contextlib
import json
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llm_carbon_meter.servers.shared.api_server import ApiServer
from llm_carbon_meter.servers.sidecar.capture import OutsideCapture
from llm_carbon_meter.testing.servers import Server, free_port
from tests.support.waiting import eventually

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
EVENTS = "text/event-stream"


class Metering(NamedTuple):
    """What the proxy tells, and what it asks."""

    capture: OutsideCapture
    server: ApiServer


class Sidecar(Server):
    """The command before a server that may not be there yet; power from a data sheet."""

    def __init__(self, upstream: str, folder: Path, *arguments: str) -> None:
        port = free_port()
        where = ("--upstream", upstream, "--listen", f"127.0.0.1:{port}")
        super().__init__(
            [sys.executable, "-m", "llm_carbon_meter.cli", "sidecar", *where, *arguments],
            port,
            log=folder / "sidecar.txt",
            model_name="",
            exact={},
            environment={"LLM_CARBON_METER_POWER": "modelled"},
        )

    def _wait_until_healthy(self) -> None:
        eventually(lambda: "goes to" in self.log_tail(), "the sidecar")
        eventually(lambda: self.get("/metrics").status_code == 200, "its metrics")

    def get(self, path: str) -> httpx.Response:
        try:
            return httpx.get(self.url + path, trust_env=False)
        except httpx.TransportError:
            return httpx.Response(599)

    def chat(self, **more: str) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, **more}
        return httpx.post(self.url + CHAT, json=body, trust_env=False)


@contextlib.contextmanager
def running(app: Any, http: str = "auto", port: int = 0) -> Iterator[str]:
    """A real server of an application, with one of uvicorn's parsers; its URL."""
    place = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        app,
        log_level="critical",
        ws="none",
        http=http,  # type: ignore[arg-type]
        server_header=False,
        timeout_graceful_shutdown=1,
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

    answer: dict[str, Any] = eventually(final, f"a final record of {name}")
    return answer


def comment_of(stream: bytes) -> dict[str, Any]:
    """The record in a stream's comment."""
    comment = next(line for line in stream.splitlines() if line.startswith(b": llm-carbon "))
    answer: dict[str, Any] = json.loads(comment.removeprefix(b": llm-carbon "))
    return answer


def without_comment(stream: bytes) -> bytes:
    """A stream as a client who does not know the comment reads it."""
    return b"".join(
        part + b"\n\n"
        for part in stream.split(b"\n\n")[:-1]
        if not part.startswith(b": llm-carbon")
    )
