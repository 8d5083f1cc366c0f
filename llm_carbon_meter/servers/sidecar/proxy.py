"""A reverse proxy that meters an OpenAI-compatible server of this host from outside.

For servers that have no hook. It passes everything on as it comes, and tells the same meter as the
hooks do what it can see; capture.py says what it makes of that.
"""

import asyncio
import contextlib
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, Final, NamedTuple

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route

from llm_carbon_meter.addresses import shown_url, split_login
from llm_carbon_meter.exporters.headers import PREFIX
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.exchanges import Exchange, Registry, current_exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import Outcome, TokenCount
from llm_carbon_meter.servers.shared.api_server import ApiServer
from llm_carbon_meter.servers.shared.middleware import (
    App,
    CarbonHeadersMiddleware,
    Receive,
    Scope,
    Send,
)
from llm_carbon_meter.servers.shared.routes import RefusedError, ServedModels, metrics, prompts_of
from llm_carbon_meter.servers.sidecar.answers import (
    DONE,
    LINES,
    METERED,
    Asked,
    EventSplitter,
    Told,
    asked,
    counted,
    data_of,
    text_tokens,
    together,
    told,
    whole_tokens,
)
from llm_carbon_meter.servers.sidecar.capture import OutsideCapture, Usage

CONNECT_S: Final = 10.0
IDLE_CONNECTION_S: Final = 2.0
"""Shorter than servers keep one open: of the common ones uvicorn has the shortest time, 5 s."""
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)

WISH_REFUSED: Final = (400, 422)
"""Statuses by which a server says that it does not know a field."""
MOST_REFUSING: Final = 64
"""Models of which it is remembered that the server refuses our wish for them."""

RawHeaders = Iterable[tuple[bytes, bytes]]


def passed_on(headers: RawHeaders, *dropped: bytes) -> list[tuple[bytes, bytes]]:
    """Headers without those of one connection, without ours, and without some others."""
    headers = list(headers)
    named = [value for name, value in headers if name.lower() == b"connection"]
    own = {token.strip().lower() for value in named for token in value.split(b",")}
    if any(name.lower() == b"transfer-encoding" for name, _ in headers):
        own.add(b"content-length")  # the chunks count, and they are not passed on as such
    ours, gone = PREFIX.lower().encode(), HOP_BY_HOP | own | set(dropped)
    return [
        (name, value)
        for name, value in headers
        if name.lower() not in gone and not name.lower().startswith((b"proxy-", ours))
    ]


class Upstream:
    """The server that is forwarded to.

    Args:
        url: with ``http://`` or ``https://``; a path in it comes before that of a request. Its user
            and password are not sent: clients send their own.
    """

    def __init__(self, url: str) -> None:
        self.url = httpx.URL(split_login(url)[0].rstrip("/"))
        self._tls = httpx.create_ssl_context()
        self._idle: deque[_Idle] = deque()
        """The one that was used last is at the end."""

    @contextlib.asynccontextmanager
    async def ask(
        self, request: Request, target: bytes, body: bytes | AsyncIterator[bytes], *dropped: bytes
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; the answer's body is still to be read.

        Raises:
            RefusedError: there is no such place, or no answer.
        """
        try:
            url = self.url.copy_with(raw_path=self.url.raw_path.rstrip(b"/") + target)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise RefusedError(400, f"the path cannot be passed on: {error}") from error
        headers = passed_on(request.headers.raw, b"host", *dropped)
        timeout = {"timeout": httpx.Timeout(None, connect=CONNECT_S).as_dict()}
        whole = httpx.Request(
            request.method, url, headers=headers, content=body, extensions=timeout
        )
        async with self._connection() as connection:
            try:
                answer = await connection.handle_async_request(whole)
            except httpx.TransportError as error:
                raise unreachable(self.url, error) from error
            async with contextlib.aclosing(answer):
                yield answer

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        """A connection for one exchange: the one that was used last, else a new one.

        Each has a pool of its own: for every request, httpx looks at all connections of a pool.
        """
        transport = self._idle.pop().transport if self._idle else self._new()
        try:
            yield transport
        finally:
            self._idle.append(_Idle(time.monotonic(), transport))

    async def close_idle(self) -> None:
        """Close connections that were idle for long, for ever: each is an open file of both."""
        while True:
            await asyncio.sleep(IDLE_CONNECTION_S)
            while self._idle and self._idle[0].since_s < time.monotonic() - IDLE_CONNECTION_S:
                await self._idle.popleft().transport.aclose()

    def _new(self) -> httpx.AsyncHTTPTransport:
        # Not a client: that follows cookies and adds headers.
        limits = httpx.Limits(max_connections=1, keepalive_expiry=IDLE_CONNECTION_S)
        return httpx.AsyncHTTPTransport(verify=self._tls, limits=limits)

    async def close(self) -> None:
        """Close all connections."""
        while self._idle:
            await self._idle.pop().transport.aclose()


class _Idle(NamedTuple):
    """A connection that waits for its next exchange."""

    since_s: float
    transport: httpx.AsyncHTTPTransport


def unreachable(url: httpx.URL, error: Exception) -> RefusedError:
    """What a client is told when the server does not answer."""
    where = shown_url(str(url))
    text = f"the server behind this proxy, {where}, does not answer: {named(error)}"
    return RefusedError(502, text, "bad_gateway_error")


def named(error: Exception) -> str:
    """An error with its kind: some have no text."""
    return f"{type(error).__name__}: {error}"


def target_of(scope: Scope) -> bytes:
    """Path and query as the client sent them."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


async def while_connected(work: Coroutine[Any, Any, None], gone: Awaitable[None]) -> None:
    """Do something for a client, until it leaves."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if not tasks[0].cancelled():
        tasks[0].result()


class Clear:
    """ASGI: refuses requests that the server behind could read otherwise than the proxy does.

    Routes see the path without ``.`` and empty segments; the server gets it as the client wrote it.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Follow one connection."""
        if scope["type"] == "http":
            try:
                scope = {**scope, "path": clear_path(scope)}
            except RefusedError as refusal:
                answer = refusal.response()
                answer.headers["connection"] = "close"  # nobody knows where the next one begins
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def clear_path(scope: Scope) -> str:
    """The path of a request as servers agree on it.

    Raises:
        RefusedError: it climbs, or they could disagree where the request ends.
    """
    segments = re.split(r"[/\\]", scope["path"])
    if ".." in segments:
        raise RefusedError(400, f"the path {scope['path']!r} has a segment `..`; write it without")
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        raise RefusedError(400, "Content-Length beside Transfer-Encoding; send one of them")
    return "/" + "/".join(
        segment for segment in scope["path"].split("/") if segment not in ("", ".")
    )


class Forward:
    """ASGI: passes an exchange through, unread.

    Args:
        upstream: where to.
        target: path there, if not the request's own.
        frontend: counts what passes by; None before metering begins.
    """

    def __init__(
        self, upstream: Upstream, target: bytes = b"", frontend: FrontendMeter | None = None
    ) -> None:
        self._upstream = upstream
        self._target = target
        self._frontend = frontend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one exchange."""
        request, sent = Request(scope, receive), asyncio.Event()
        if self._frontend is not None and scope["method"] == "POST":
            self._frontend.unmetered(scope["path"])
        await while_connected(self._pass(request, sent, send), _gone(receive, sent))

    async def _pass(self, request: Request, sent: asyncio.Event, send: Send) -> None:
        target = self._target or target_of(request.scope)
        try:
            async with self._upstream.ask(request, target, _body(request, sent)) as answer:
                await send(_start(answer))
                with contextlib.suppress(httpx.TransportError):  # the client sees it broken off too
                    async for part in answer.aiter_raw():
                        await send(_part(part))
                    await send(_part(b"", more=False))
        except RefusedError as refusal:
            await refusal.response()(request.scope, request.receive, send)
        except ClientDisconnect:
            return


def _body(request: Request, sent: asyncio.Event) -> bytes | AsyncIterator[bytes]:
    """A request's body as it comes, and a word when it is whole."""
    if not {"content-length", "transfer-encoding"} & set(request.headers):
        sent.set()
        return b""

    async def parts() -> AsyncIterator[bytes]:
        async for part in request.stream():
            yield part
        sent.set()

    return parts()


async def _gone(receive: Receive, sent: asyncio.Event) -> None:
    """Wait until a client leaves that has sent its request."""
    await sent.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(answer: httpx.Response, *dropped: bytes) -> dict[str, Any]:
    headers = passed_on(answer.headers.raw, *dropped)
    return {"type": "http.response.start", "status": answer.status_code, "headers": headers}


def _part(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


class MeteredForward:
    """ASGI: passes a request for text on, and meters it; inside `CarbonHeadersMiddleware`.

    Args:
        upstream: where to.
        capture: is told of the request.
        frontend: likewise.
        faults: counts the answers that broke off.
        models: of the server, where it has several: each request has its own.
    """

    def __init__(
        self,
        upstream: Upstream,
        capture: OutsideCapture,
        frontend: FrontendMeter,
        faults: Faults,
        models: Collection[str] = (),
    ) -> None:
        self._models = models
        self._upstream = upstream
        self._capture = capture
        self._frontend = frontend
        self._faults = faults
        self._refusing: set[tuple[str, str]] = set()
        """Path and model of which the server takes no ``stream_options``."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one exchange."""
        request, sent = Request(scope, receive), asyncio.Event()
        try:
            question = asked(scope["path"], await request.body())
        except ClientDisconnect:
            return
        sent.set()
        if (scope["path"], question.model) in self._refusing:
            question = question.plain()
        exchange = current_exchange.get()
        assert exchange is not None
        if self._models:
            exchange.model = question.model
        metered = _Metered(
            self._capture, self._frontend.exchanges, exchange, question, self._models
        )
        prompt = Prompt(question.prompt_tokens)
        self._frontend.begin(exchange, metered.id, metered.id, prompt, question.max_tokens)
        metered.begin()
        try:
            work = self._answer(request, metered, send)
            await while_connected(work, _gone(receive, sent))
        finally:
            metered.end(Outcome.ABORTED)

    async def _answer(self, request: Request, metered: "_Metered", send: Send) -> None:
        try:
            async with self._ask(request, metered) as answer:
                kind = answer.headers.get("content-type", "")
                if kind.startswith(("text/event-stream", LINES)) and answer.status_code < 300:
                    splitter = EventSplitter(lines=kind.startswith(LINES))
                    await self._stream(answer, metered, splitter, send)
                else:
                    await self._whole(answer, metered, send)
        except RefusedError as refusal:
            metered.refuse()
            await refusal.response()(request.scope, request.receive, send)

    @contextlib.asynccontextmanager
    async def _ask(self, request: Request, metered: "_Metered") -> AsyncIterator[httpx.Response]:
        """The server's answer; one to the client's own body where it refuses our wish for usage."""
        async with self._ask_once(request, metered.asked.body) as answer:
            if not (metered.asked.added_usage and answer.status_code in WISH_REFUSED):
                yield answer
                return
            status = answer.status_code
        metered.asked = metered.asked.plain()
        async with self._ask_once(request, metered.asked.body) as answer:
            if answer.status_code < 300:
                self._remember(request.scope["path"], metered.asked.model, status)
            yield answer

    def _ask_once(
        self, request: Request, body: bytes
    ) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        # Without the client's wish for compression: the answer is to be read.
        dropped = (b"accept-encoding", b"content-length")
        return self._upstream.ask(request, target_of(request.scope), body, *dropped)

    def _remember(self, path: str, model: str, status: int) -> None:
        refusal = f"{self._upstream.url} answers {status} to `stream_options` at {path}"
        self._faults.note("usage", refusal, "The chunks of such streams are counted instead.")
        if len(self._refusing) < MOST_REFUSING:
            self._refusing.add((path, model))

    async def _whole(self, answer: httpx.Response, metered: "_Metered", send: Send) -> None:
        try:
            body = b"".join([part async for part in answer.aiter_raw()])
        except httpx.TransportError as error:
            raise unreachable(self._upstream.url, error) from error
        if answer.status_code < 300:
            metered.see(told(body)._replace(tokens=metered.tokens_of(body)))
            metered.end(Outcome.FINISHED)
        else:
            metered.refuse()
        await send(_start(answer))
        await send(_part(body, more=False))

    async def _stream(
        self, answer: httpx.Response, metered: "_Metered", splitter: EventSplitter, send: Send
    ) -> None:
        await send(_start(answer, b"content-length"))
        try:
            async for part in answer.aiter_raw():
                shown = b"".join([event for event in splitter.feed(part) if metered.keeps(event)])
                if shown:
                    await send(_part(shown))
        except httpx.TransportError as error:
            metered.end(Outcome.FAILED)
            self._faults.note("upstream", named(error), "Its client's answer breaks off too.")
            return
        rest = splitter.rest if metered.keeps(splitter.rest) else b""
        metered.end(Outcome.FINISHED)
        await send(_part(rest, more=False))


class _Metered:
    """A metered request: what its answer has told so far."""

    def __init__(
        self,
        capture: OutsideCapture,
        exchanges: Registry,
        exchange: Exchange,
        question: Asked,
        models: Collection[str],
    ) -> None:
        self._models = models
        self.id = f"outside-{os.urandom(8).hex()}"
        self._capture = capture
        self._exchanges = exchanges
        self._exchange = exchange
        self.asked = question
        self._told = Told()
        self._ended = False

    def begin(self) -> None:
        """The question goes to the server."""
        question = self.asked
        # Until the end, an answer without tokens is at its prompt.
        whole = not question.stream and not question.is_pooling
        self._capture.begin(self.id, question.prompt_tokens, whole=whole)

    def tokens_of(self, body: bytes) -> int:
        """Of an answer that came whole, as guessed from its text."""
        return 0 if self.asked.is_pooling else whole_tokens(body)

    def keeps(self, event: bytes) -> bool:
        """Read an event; False where the client is not to have it."""
        data = data_of(event)
        if data == DONE:
            self.end(Outcome.FINISHED)
            return True
        usage = told(data)
        if usage.tokens and not self._ended:
            self._capture.came(self.id, usage.tokens)
        self.see(usage)
        return not (usage.only_usage and self.asked.added_usage)

    def see(self, found: Told) -> None:
        """Remember what an answer or an event tells."""
        before, self._told = self._told, together(self._told, found)
        if self._told.id != before.id:
            self._exchanges.rename(self._exchange, self.id, self._told.id)
        if found.model in self._models:  # another name of the same, or the one that it stands for
            self._exchange.model = found.model

    def end(self, outcome: Outcome) -> None:
        """The answer is over; what comes first counts."""
        if self._ended:
            return
        self._ended = True
        usage, self._exchange.tokens_from = self._count()
        self._capture.end(self.id, Outcome.FAILED if self._told.failed else outcome, usage)

    def refuse(self) -> None:
        """The server did not take the request."""
        self._ended = True
        usage, self._exchange.tokens_from = self._count()
        self._capture.refuse(self.id, usage)

    def _count(self) -> tuple[Usage, TokenCount]:
        return counted(self._told.usage, self.asked.prompt_tokens, self._told.tokens)


async def read_prompts(_request: Any, body: Any) -> list[Prompt]:
    """Guess the tokens of each prompt of a body, for ``/v1/carbon/estimate``."""

    async def guess(one: Any) -> Prompt:
        return Prompt(text_tokens(list(one.values())))

    return await prompts_of(body, guess)


def application(upstream: Upstream, *works: Callable[[], Coroutine[Any, Any, None]]) -> Starlette:
    """Passes everything on, the metrics aside; `meter` adds the meter.

    Args:
        upstream: where to.
        works: what else is to be done on the loop for as long as it runs.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work()) for work in (upstream.close_idle, *works)]
        yield
        for task in tasks:
            task.cancel()
        await upstream.close()

    routes = [
        Route("/metrics", metrics, methods=["GET"]),
        Route("/upstream/metrics", Forward(upstream, b"/metrics")),
        Route("/{path:path}", Forward(upstream)),
    ]
    return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(Clear)])


def meter(
    app: Starlette,
    upstream: Upstream,
    capture: OutsideCapture,
    server: ApiServer,
    faults: Faults,
    models: Collection[str] = (),
) -> None:
    """Meter what an `application` passes on from now on, and answer at our own routes."""
    *own, _ = passed = list(app.router.routes)
    server.attach(
        app, read_prompts, lambda _request: ServedModels()
    )  # it may have more than its first model
    ours = app.router.routes[len(passed) :]
    forward = MeteredForward(upstream, capture, server.meter, faults, models)
    rest = Route("/{path:path}", Forward(upstream, frontend=server.meter))
    headers = [Middleware(CarbonHeadersMiddleware)]
    metered = [Route(path, forward, methods=["POST"], middleware=headers) for path in METERED]
    # At once: the loop may be routing a request.
    app.router.routes = [*ours, *metered, *own, rest]
