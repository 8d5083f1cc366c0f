"""Tokens per second of servers that are asked in turn."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llm_carbon_meter.testing import throughput
from tests.support.servers.proxied import running

ANSWER_S = 0.4


async def answer(_request: Request) -> Response:
    """After a while."""
    await asyncio.sleep(ANSWER_S)
    return JSONResponse({"id": "a", "object": "text_completion", "created": 1, "choices": []})


def test_a_round_counts_all_tokens_over_its_time() -> None:
    """Four answers of ten tokens at once, each after 0.4 s: below 100 tokens a second."""
    pytest.importorskip("openai")
    app = Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])
    with running(app) as url:
        server: Any = SimpleNamespace(url=url, model_name="m", exact={})
        assert 30 < throughput.tokens_per_s(server, tokens=10, at_once=4) < 4 * 10 / ANSWER_S


def test_two_servers_are_asked_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is first alternates."""
    asked: list[Any] = []

    def noted(server: Any, _tokens: int) -> float:
        asked.append(server)
        return 10.0

    monkeypatch.setattr(throughput, "tokens_per_s", noted)
    servers: Any = {True: "with", False: "without"}
    assert throughput.by_turns(servers, 0) == {True: 10.0, False: 10.0}
    throughput.by_turns(servers, 1)
    assert asked == ["without", "with", "with", "without"]
