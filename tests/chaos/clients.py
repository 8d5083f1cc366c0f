"""Clients of a server: 32 at once, each with one request after the other."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from llm_carbon_meter.testing.servers import MODEL_NAME

SECRET: Final = "the-words-of-a-client"
"""In every prompt; no log may have it."""
TIMEOUT_S: Final = 60.0
KINDS: Final = {"completion": 12, "stream": 5, "left": 2, "two answers": 1}
"""How often a client sends what."""
DONE: Final = "data: [DONE]"


@dataclass
class Clients:
    """What was sent, and what became of it.

    Args:
        url: of the server.
        key: of its API.
        seed: of the choices.
    """

    url: str
    key: str
    seed: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    """By kind."""
    failed: Counter[str] = field(default_factory=Counter)
    """By what was got instead of an answer."""
    stopping: bool = False

    @property
    def served(self) -> int:
        """Requests that were answered, or that the client left while they ran."""
        return self.sent.total() - self.failed.total()

    async def run(self, count: int) -> None:
        """Send until `stopping`."""
        headers = {"Authorization": f"Bearer {self.key}"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False
        ) as client:
            await asyncio.gather(
                *(self._one(client, random.Random(self.seed + number)) for number in range(count))
            )

    async def _one(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        while not self.stopping:
            (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
            self.sent[kind] += 1
            try:
                told = await self._send(client, kind, chance.randint(3, 60))
            except httpx.HTTPError as error:
                told = type(error).__name__
            if told:
                self.failed[told] += 1
                await asyncio.sleep(0.5)

    async def _send(self, client: httpx.AsyncClient, kind: str, tokens: int) -> str:
        """What went wrong; empty where nothing did."""
        body: dict[str, Any] = {
            "model": MODEL_NAME,
            "prompt": f"{SECRET} {tokens}",
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        if kind in ("completion", "two answers"):
            body["n"] = 2 if kind == "two answers" else 1
            answer = await client.post("/v1/completions", json=body)
            return "" if answer.status_code == 200 else f"status {answer.status_code}"
        return await _stream(client, {**body, "stream": True}, leaves=kind == "left")


async def _stream(client: httpx.AsyncClient, body: Mapping[str, Any], *, leaves: bool) -> str:
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        lines = [line async for line in _until(answer, "data: " if leaves else DONE)]
    return "" if leaves or DONE in lines else "a stream without an end"


async def _until(answer: httpx.Response, last: str) -> Any:
    async for line in answer.aiter_lines():
        yield line
        if line.startswith(last):
            return
