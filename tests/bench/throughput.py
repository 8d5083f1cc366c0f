"""Tokens per second of the real server, metered and not, in turn."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import openai
from tqdm import tqdm

from llm_carbon_meter.demo.server import MODEL_NAME, VllmServer

PAIRS, ROUNDS = 5, 3
AT_ONCE, REQUESTS, TOKENS = 8, 24, 300


def measure(model: Path) -> Mapping[str, float]:
    """Median of with / without over pairs of fresh servers; who goes first alternates.

    One server at a time: an idle one still spins for work and would slow the other.
    """
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in tqdm(range(PAIRS), desc="throughput", unit="pair"):
            order = (True, False) if pair % 2 else (False, True)
            speed = {metered: _speed(model, Path(folder), metered) for metered in order}
            ratios.append(speed[True] / speed[False])
    print("with / without, pair by pair:", " ".join(f"{ratio:.3f}" for ratio in sorted(ratios)))
    return {"tokens_ratio": statistics.median(ratios)}


def _speed(model: Path, folder: Path, metered: bool) -> float:
    """Median tokens per second of a fresh server, after a round of warm-up."""
    variables = {
        "LLM_CARBON_METER_ENABLED": str(int(metered)),
        "LLM_CARBON_METER_POWER": "modelled",
    }
    with VllmServer(model, log=folder / "server.log", environment=variables) as server:
        rounds = [asyncio.run(_tokens_per_s(server.url)) for _ in range(1 + ROUNDS)]
    return statistics.median(rounds[1:])


async def _tokens_per_s(url: str) -> float:
    """Exact output lengths, eight at a time, not streamed."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:

        async def one(index: int) -> None:
            async with gate:
                await client.completions.create(
                    model=MODEL_NAME,
                    prompt=[5 + index] * 20,
                    max_tokens=TOKENS,
                    extra_body={"ignore_eos": True},
                )

        start = time.perf_counter()
        await asyncio.gather(*(one(index) for index in range(REQUESTS)))
        return REQUESTS * TOKENS / (time.perf_counter() - start)
