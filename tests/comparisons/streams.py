"""Many streams at once, to a server and through the proxy before it, side by side.

``python -m tests.comparisons.streams`` prints the answers, both times and their ratio.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llm_carbon_meter.testing.servers import Server, free_port
from tests.support.servers.proxied import CHAT, DONE, EVENTS, LAST, chunk

STREAMS = 800
TOKENS = 100
STEP_S = 0.1
"""Of the server: the time of a decode step of a batch that large."""
ANSWER_S = 120.0
TURNS = 3
"""Of both, in alternation; the median counts."""
PAUSE_S = 6.0
"""Between loads: longer than any of the three keeps a connection open that nobody uses."""
USUAL_FILES = ("sh", "-c", 'ulimit -Sn 1024; exec "$@"', "sh")
"""Starts a command with as many open files as most systems allow at first."""


class Load(NamedTuple):
    """What came of streams that began together."""

    seconds: float
    """Until the last one ended."""
    whole: int
    """Streams with status 200 and an end."""


async def health(_request: Request) -> Response:
    """The server is there."""
    return Response(b"")


async def answer(request: Request) -> Response:
    """A chat: one chunk a step, as an engine that batches all streams sends them."""
    tokens = (await request.json())["max_tokens"]

    async def body() -> AsyncIterator[bytes]:
        for _ in range(tokens):
            await asyncio.sleep(STEP_S)
            yield chunk("a")
        yield LAST + DONE

    return StreamingResponse(body(), media_type=EVENTS)


def serve(port: int) -> None:
    """Be the server."""
    app = Starlette(routes=[Route("/health", health), Route(CHAT, answer, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


async def load(url: str, streams: int, tokens: int) -> Load:
    """Begin streams together and read them to their ends.

    A client of our own on bare connections: any other would cost more than what is compared.
    """
    begun_s = time.monotonic()
    whole = sum(await asyncio.gather(*(_stream(url, tokens) for _ in range(streams))))
    return Load(time.monotonic() - begun_s, whole)


async def _stream(url: str, tokens: int) -> bool:
    place = urlsplit(url)
    asked = {"model": "toy", "stream": True, "messages": [], "max_tokens": tokens}
    body = json.dumps(asked).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(head.encode() + body)
            text = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return text.startswith(b"HTTP/1.1 200 ") and DONE in text


def compare(
    folder: Path, streams: int = STREAMS, tokens: int = TOKENS, turns: int = TURNS
) -> tuple[list[Load], list[Load]]:
    """The loads of the server alone, and those through the proxy, in turns."""
    port, front = free_port(), free_port()
    own = ("-m", "tests.comparisons.streams", "--serve", str(port))
    where = ("--upstream", f"http://127.0.0.1:{port}", "--listen", f"127.0.0.1:{front}")
    proxy = ("-m", "llm_carbon_meter.cli", "sidecar", *where, "--model", "Llama-3.1-8B")
    power = {"LLM_CARBON_METER_POWER": "modelled"}
    with (
        _server(own, port, folder / "server.txt") as server,
        _server(proxy, front, folder / "sidecar.txt", power) as sidecar,
    ):
        loads = []
        for url in (server.url, sidecar.url) * turns:
            loads.append(asyncio.run(load(url, streams, tokens)))
            time.sleep(PAUSE_S)
    return loads[::2], loads[1::2]


def _server(
    arguments: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Server:
    command = [*USUAL_FILES, sys.executable, *arguments]
    return Server(command, port, log=log, model_name="toy", exact={}, environment=environment)


def table(streams: int, alone: Sequence[Load], through: Sequence[Load]) -> str:
    """Both, and the ratio of their medians."""
    middle = [median(one.seconds for one in side) for side in (alone, through)]
    rows = [
        f"| {name} | {min(one.whole for one in side)} of {streams} "
        f"| {', '.join(f'{one.seconds:.2f}' for one in side)} |"
        for name, side in (("alone", alone), ("through the proxy", through))
    ]
    heading = f"| {streams} streams of {TOKENS} tokens, one each {STEP_S:g} s | answered | s |"
    return "\n".join(
        [heading, "| --- | --- | --- |", *rows, f"\nratio {middle[1] / middle[0]:.2f}"]
    )


def main() -> None:
    """Compare, or be the server that is compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--serve", type=int, metavar="PORT")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    with tempfile.TemporaryDirectory() as name:
        print(table(options.streams, *compare(Path(name), options.streams)))


if __name__ == "__main__":
    main()
