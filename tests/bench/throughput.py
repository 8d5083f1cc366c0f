"""Tokens per second of two real servers, one metered and one not, asked in turn."""

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import openai
from tqdm import tqdm

from llm_carbon_meter.demo.server import MODEL_NAME, VllmServer

PAIRS = 120
AT_ONCE, REQUESTS, TOKENS = 8, 8, 150


def measure(model: Path) -> Mapping[str, float]:
    """Median of with / without over many short rounds in turn; who goes first alternates.

    Short rounds, because the speed of a shared machine drifts within seconds.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {
            metered: stack.enter_context(_server(model, folder, metered)).url
            for metered in (True, False)
        }
        for url in urls.values():
            asyncio.run(_tokens_per_s(url))  # warm-up
        ratios = []
        for pair in tqdm(range(PAIRS), desc="throughput", unit="pair"):
            order = (True, False) if pair % 2 else (False, True)
            speed = {metered: asyncio.run(_tokens_per_s(urls[metered])) for metered in order}
            ratios.append(speed[True] / speed[False])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"with / without over {PAIRS} pairs: quartiles {low:.3f} {middle:.3f} {high:.3f}")
    return {"tokens_ratio": statistics.median(ratios)}


def _server(model: Path, folder: Path, metered: bool) -> VllmServer:
    return VllmServer(
        model,
        log=folder / f"{metered}.log",
        environment={
            "LLM_CARBON_METER_ENABLED": str(int(metered)),
            "LLM_CARBON_METER_POWER": "modelled",
        },
    )


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
