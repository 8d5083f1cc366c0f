"""Tokens per second of real servers that are asked in turn: what metering costs a server."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from llm_carbon_meter.testing.servers import Server

AT_ONCE: Final = 8
TOKENS: Final = 150
"""Of each answer, exactly."""


def tokens_per_s(server: Server, tokens: int = TOKENS, at_once: int = AT_ONCE) -> float:
    """Of one round: requests that are sent together, not streamed."""
    return asyncio.run(_round(server, tokens, at_once))


def by_turns(
    servers: Mapping[bool, Server], pair: int, tokens: int = TOKENS
) -> Mapping[bool, float]:
    """Tokens per second of a server with the meter (True) and of one without.

    Args:
        servers: both are running.
        pair: its number; who is asked first alternates.
        tokens: of each answer.
    """
    order = (True, False) if pair % 2 else (False, True)
    return {metered: tokens_per_s(servers[metered], tokens) for metered in order}


async def _round(server: Server, tokens: int, at_once: int) -> float:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    async with client:

        async def one(index: int) -> None:
            await client.completions.create(
                model=server.model_name,
                prompt="word " * (20 + index),
                max_tokens=tokens,
                extra_body=dict(server.exact),
            )

        start = time.perf_counter()
        await asyncio.gather(*(one(index) for index in range(at_once)))
        return at_once * tokens / (time.perf_counter() - start)
