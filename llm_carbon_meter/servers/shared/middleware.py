"""Pure ASGI: follows an HTTP exchange, and on request puts its figures into the response.

`ExchangeMiddleware` only follows; `CarbonHeadersMiddleware` (opt-in) also adds headers and, to
streams, a last comment. All state of an exchange is inside ``__call__``.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.headers import energy_headers, estimate_headers, sse_comment
from llm_carbon_meter.frontend.exchanges import Exchange, current_exchange
from llm_carbon_meter.frontend.tenants import MOST_BODY, Tenants, claim_of
from llm_carbon_meter.records import RequestRecord

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EVENTS: Final = b"text/event-stream"
LINES: Final = b"application/x-ndjson"
"""A stream that has no comments."""
STATE_NAME: Final = "llm_carbon_meter"
"""Of the meter in the state of the server's application."""
_DONE: Final = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
"""The end of a stream; the space is the server's choice (WHATWG HTML, server-sent events)."""
_ID: Final = re.compile(rb'"id" ?: ?"([^"\\]+)"')
MOST_BEFORE_ID: Final = 2048
"""Bytes; the id of an answer is its first field, or that of what it holds first."""
REQUEST_ID_HEADER: Final = b"x-request-id"
EXPOSE_HEADER: Final = "Access-Control-Expose-Headers"


class Frontend(Protocol):
    """What the middleware needs of `frontend_meter.FrontendMeter`."""

    @property
    def config(self) -> Config:
        """Settings: which figures answers carry."""
        ...

    @property
    def tenants(self) -> Tenants:
        """Whether bodies say whose requests are."""
        ...

    def answer(self, exchange: Exchange, answer_id: str) -> None:
        """The client is told an id."""

    def end(self, exchange: Exchange, answered: bool) -> None:
        """The HTTP side is over."""

    def record(self, exchange: Exchange) -> RequestRecord:
        """The exchange as known now."""
        ...

    def knows(self, request_id: str) -> bool:
        """Whether an engine request of this id is in flight or on record."""
        ...

    @property
    def provisional_wait_s(self) -> float:
        """How long an answer may wait for its provisional figure."""
        ...

    @property
    def final_wait_s(self) -> float:
        """How long it may wait for its final one."""
        ...


class ExchangeMiddleware:
    """Lets engine requests know which HTTP exchange they belong to; changes nothing."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Follow one connection."""
        if scope["type"] != "http" or current_exchange.get() is not None:
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        await _follow(self.app, scope, answer.follow, answer)


class CarbonHeadersMiddleware:
    """Adds ``LLM-Carbon-*`` headers, and to streams a comment before ``data: [DONE]``.

    The settings ``headers`` and ``comment`` leave out one of them.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Follow one connection and decorate its response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        await _follow(self.app, scope, answer.decorate, answer)


class UniqueIdMiddleware:
    """Gives a request another ``X-Request-Id`` where one of the same id is in flight or on record.

    transformers uses the client's id as its scheduler's: with two of the same at once the first
    client would wait for ever.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self._live: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Follow one connection."""
        sent = _client_ids(scope) if scope["type"] == "http" else []
        if not sent:
            await self.app(scope, receive, send)
            return
        frontend = _frontend(scope)
        name = sent[0]
        while name in self._live or (frontend is not None and frontend.knows(name)):
            name = f"{sent[0]}-{os.urandom(4).hex()}"
        others = [header for header in scope["headers"] if header[0] != REQUEST_ID_HEADER]
        headers = [*others, (REQUEST_ID_HEADER, name.encode("latin-1"))]
        self._live.add(name)
        try:
            await self.app({**scope, "headers": headers}, receive, send)
        finally:
            self._live.discard(name)


async def _follow(app: App, scope: Scope, send: Send, answer: "_Answer") -> None:
    token = current_exchange.set(answer.exchange)
    try:
        await app(scope, answer.listen, send)
    finally:
        current_exchange.reset(token)
        answer.end()


def _client_ids(scope: Scope) -> list[str]:
    return [
        value.decode("latin-1") for name, value in scope["headers"] if name == REQUEST_ID_HEADER
    ]


class _Answer:
    """The response of one exchange on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.exchange = Exchange(_client_ids(scope), scope["headers"])
        self._scope = scope
        self._receive = receive
        self._send = send
        self._shows_headers = self._shows_comment = False
        self._crosses_origins = any(name == b"origin" for name, _ in scope["headers"])
        self._held: Message | None = None
        self._starting = asyncio.Lock()
        self._release: asyncio.Task[None] | None = None
        self._stream = False
        self._good = False
        self._complete = False
        """The last byte of a good answer was sent."""
        self._beginning = b""
        """Of the answer, while its id is looked for."""
        self._body = bytearray()
        """Of the request, as far as it is read."""
        self._left = False
        """The client went before that; an application may still end its answer in order."""

    @property
    def _frontend(self) -> Frontend | None:
        """The meter of this process; it may begin with the request that loads the model."""
        return _frontend(self._scope)

    async def listen(self) -> Message:
        """Pass on what comes from the client, watching whether it leaves."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._read_claim(message)
        self._left = self._left or message["type"] == "http.disconnect"
        return message

    def _read_claim(self, message: Message) -> None:
        """Of the body, where the settings believe it."""
        if self._frontend is None or not self._frontend.tenants.are_claimed:
            return
        self._body += message.get("body", b"")[: MOST_BODY + 1 - len(self._body)]
        if not message.get("more_body") and len(self._body) <= MOST_BODY:
            self.exchange.claim = claim_of(bytes(self._body))

    async def follow(self, message: Message) -> None:
        """Pass a message on, watching for the end."""
        if message["type"] == "http.response.start":
            self._good = message["status"] < 400
        if message["type"] == "http.response.body" and self._good:
            self._read_id(message.get("body", b""))
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._complete = self._good and not self._left

    def _read_id(self, body: bytes) -> None:
        """Of the answer, near its beginning: each route makes its own out of the engine's."""
        if len(self._beginning) >= MOST_BEFORE_ID or self._frontend is None:
            return
        self._beginning += body[: MOST_BEFORE_ID - len(self._beginning)]
        if found := _ID.search(self._beginning):
            self._frontend.answer(self.exchange, found[1].decode("utf-8", "replace"))
            self._beginning = bytes(MOST_BEFORE_ID)  # nothing more is looked for

    async def decorate(self, message: Message) -> None:
        """Hold the start until its headers are known; put the comment before the end."""
        if message["type"] == "http.response.start":
            self._held = message
            self._stream = _kind(message).startswith((EVENTS, LINES))
            config = self._frontend.config if self._frontend else Config()
            self._shows_headers = config.headers
            self._shows_comment = config.comment and _may_grow(message)
            if not self._shows_headers:
                await self._start()
            elif self._stream:
                # The engine request of a stream is made after its start message.
                self._release = asyncio.create_task(self._release_with_estimate())
            return
        body = message["type"] == "http.response.body"
        if body and not self._stream and self._held is not None:
            await self._wait_for_energy()
        await self._start()
        await self.follow(await self._with_comment(message) if body else message)

    async def _release_with_estimate(self) -> None:
        await self.exchange.wait(lambda: bool(self.exchange.members), timeout_s=60)
        await self._start()

    async def _start(self) -> None:
        """Send the start message, with what is known; once."""
        async with self._starting:
            message, self._held = self._held, None
            if message is not None and self._shows_headers:
                headers = [*message.get("headers", ()), *self._headers()]
                message = {**message, "headers": headers}
            if message is not None:
                await self.follow(message)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        estimate = self.exchange.estimate
        headers = estimate_headers(estimate) if estimate else {}
        energy = None if self._stream else self.exchange.show()
        if energy is not None:
            headers |= energy_headers(energy)
        if headers and self._crosses_origins:  # else a browser shows a page none of them
            headers[EXPOSE_HEADER] = ", ".join(headers)
        return [(name.lower().encode(), str(value).encode()) for name, value in headers.items()]

    async def _wait_for_energy(self) -> None:
        """Wait a bounded time for the provisional figure, and the final one where that is set."""
        frontend, exchange = self._frontend, self.exchange
        if frontend is None or not exchange.members:
            return
        await exchange.wait(exchange.has_energy, frontend.provisional_wait_s)
        if frontend.final_wait_s:
            await exchange.wait(exchange.is_final, frontend.final_wait_s)

    async def _with_comment(self, message: Message) -> Message:
        body = message.get("body", b"")
        end = _DONE.search(body)
        if not self._shows_comment or not (end or not message.get("more_body")):
            return message
        self._shows_comment = False
        at = end.start() if end else len(body)
        return {**message, "body": body[:at] + await self._comment() + body[at:]}

    async def _comment(self) -> bytes:
        if self._frontend is None or not self.exchange.members:
            return b""
        await self._wait_for_energy()
        self.exchange.show()
        return sse_comment(self._frontend.record(self.exchange))

    def end(self) -> None:
        """The application is through with this exchange."""
        if self._release is not None:
            self._release.cancel()
        if self._frontend is not None and self.exchange.members:
            self._frontend.end(self.exchange, self._complete)


def _frontend(scope: Scope) -> Frontend | None:
    """The meter of this process, put into the application's state by the server's hook."""
    state = getattr(scope.get("app"), "state", None)
    return getattr(state, STATE_NAME, None)


def _kind(message: Message) -> bytes:
    """The content type."""
    headers = message.get("headers", ())
    return next((value for name, value in headers if name.lower() == b"content-type"), b"")


def _may_grow(message: Message) -> bool:
    """Whether a comment may come in: to events, of no error, not compressed, no length told."""
    names = {name.lower() for name, _ in message.get("headers", ())}
    whole = names & {b"content-encoding", b"content-length"}
    return message["status"] < 400 and not whole and _kind(message).startswith(EVENTS)
