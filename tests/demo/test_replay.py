"""The demo's client against a server that answers late."""

import asyncio
import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llm_carbon_meter.demo.replay import NOT_ANSWERED, NOT_SENT, Answer, Prompts, replay
from llm_carbon_meter.demo.trace import TraceRequest
from llm_carbon_meter.testing.tiny_model import make_tiny_model
from tests.support.servers.proxied import running

pytest.importorskip("openai")
LATE_S = 0.4


async def late(request: Request) -> Response:
    """An answer of two tokens, which is never a stream."""
    body = await request.json()
    await asyncio.sleep(LATE_S)
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    choice = {"index": 0, "text": "so", "message": {"role": "assistant", "content": "so"}}
    kind = "chat.completion" if "messages" in body else "text_completion"
    return JSONResponse(
        {
            "id": "one",
            "object": kind,
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """As `testing.servers` describe one to their clients."""
    kinds = ("completions", "chat/completions")
    routes = [Route(f"/v1/{kind}", late, methods=["POST"]) for kind in kinds]
    with running(Starlette(routes=routes)) as url:
        yield SimpleNamespace(url=url, model_name="m", exact={})


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    """Of the tiny model's tokenizer."""
    pytest.importorskip("torch")
    return Prompts(make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"), 0)


def replayed(server: Any, prompts: Prompts, count: int, **limits: Any) -> list[Answer]:
    """Requests one after the other, the first at once; every other of them is no stream."""
    requests = [TraceRequest(0.0, 8, 2)] * count
    return asyncio.run(replay(server, requests, prompts, pace=1.0, at_once=1, **limits))


def test_no_proxy_stands_before_the_demos_server(
    server: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says: it is on this host."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    (answer,) = replayed(server, prompts, 1)
    assert (answer.failure, answer.output_tokens) == (None, 2)


def test_what_is_due_after_the_end_is_not_sent(server: Any, prompts: Prompts) -> None:
    """What was under way is waited for, and its place is told."""
    told: list[int] = []
    first, second = replayed(
        server,
        prompts,
        2,
        until_s=time.monotonic() + LATE_S / 2,
        on_answer=lambda place, _: told.append(place),
    )
    assert (first.failure, first.output_tokens) == (None, 2)
    assert second.failure == NOT_SENT
    assert told == [0]


def test_an_answer_that_takes_too_long_is_given_up(server: Any, prompts: Prompts) -> None:
    """After the end it has so many seconds."""
    until_s = time.monotonic() + LATE_S / 8
    (answer,) = replayed(server, prompts, 1, until_s=until_s, answered_within_s=LATE_S / 8)
    assert answer.failure == NOT_ANSWERED


def test_without_an_end_everything_is_answered(server: Any, prompts: Prompts) -> None:
    """As long as it takes."""
    (answer,) = replayed(server, prompts, 1, until_s=math.inf)
    assert answer.failure is None
