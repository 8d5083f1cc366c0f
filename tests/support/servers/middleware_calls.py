"""Calls an ASGI application through a middleware, and reads what reaches the client."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from llm_carbon_meter.frontend.exchanges import Exchange, current_exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import RequestEnergy, Status
from llm_carbon_meter.servers.shared.middleware import STATE_NAME
from tests.support.made import energies

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]


ESTIMATED = [
    "llm-carbon-estimated-wh",
    "llm-carbon-estimated-low-wh",
    "llm-carbon-estimated-high-wh",
    "llm-carbon-estimated-gco2eq",
]


def energy_of(
    request_id: str,
    status: Status = Status.PROVISIONAL,
    joules: Mapping[str, float] | None = None,
    **changes: Any,
) -> RequestEnergy:
    """An engine's figure of 3.6 J, a milliwatt-hour."""
    accounts = {"prefill": 0.6, "decode": 3.0, **(joules or {})}
    figures = {"operational_grams": 0.000475, **changes}
    return energies.energy_of(request_id, status, accounts, **figures)


def begin(meter: FrontendMeter, internal_id: str = "engine-1", prompt_tokens: int = 10) -> Exchange:
    """What the hook in the server does when an engine request is made."""
    exchange = current_exchange.get()
    assert exchange is not None
    meter.begin(exchange, internal_id, "chatcmpl-1", Prompt(prompt_tokens), 5)
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
