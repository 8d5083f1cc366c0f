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

PAIRS = 9
AT_ONCE, REQUESTS, TOKENS = 8, 24, 300


def measure(model: Path) -> Mapping[str, float]:
    """Median of with / without over the pairs; who goes first alternates."""
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
    print("with / without, pair by pair:", " ".join(f"{ratio:.3f}" for ratio in sorted(ratios)))
    return {"tokens_ratio": statistics.median(ratios)}


def _server(model: Path, folder: Path, metered: bool) -> VllmServer:
    return VllmServer(
        model,
        log=folder / f"{metered}.log",
        environment={
            "LLM_CARBON_METER_ENABLED": str(int(metered)),
            "LLM_CARBON_METER_POWER": "modelled",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
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
