"""The proxy before a real vLLM server that has no hook; the GPU is the stub library's."""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_carbon_meter.testing.nvml_stub import LOG_VARIABLE, SCRIPT_VARIABLE
from llm_carbon_meter.testing.servers import MODEL_NAME, free_port
from tests.comparisons.outside import CHARGED, Compared, compare, table
from tests.comparisons.two_engines import ENGINES
from tests.support.servers.metered import SAW, Metered, StartServer, assert_balanced
from tests.support.waiting import eventually

pytestmark = pytest.mark.engine


@contextlib.contextmanager
def sidecar(bare: Metered, model: Path, stub_directory: Path) -> Iterator[Metered]:
    """The proxy's process; it is to end in order."""
    port, folder = free_port(), bare.log.parent
    where = ("--upstream", bare.url, "--listen", f"127.0.0.1:{port}", "--model", str(model))
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_carbon_meter.cli", "sidecar", *where],
        env={
            **os.environ,
            "LLM_CARBON_METER_POWER": "nvml",
            "LLM_CARBON_METER_REQUEST_LOG": str(bare.request_log),
            "LD_LIBRARY_PATH": str(stub_directory),
            SCRIPT_VARIABLE: str(folder / "script"),
            LOG_VARIABLE: str(bare.log),
            "XDG_RUNTIME_DIR": str(folder),
        },
    )
    metered = dataclasses.replace(bare, server=SimpleNamespace(url=f"http://127.0.0.1:{port}"))

    def answers() -> bool:
        assert process.poll() is None, "the sidecar ended"
        with contextlib.suppress(urllib.error.URLError):
            return metered.http("/metrics")[0] == 200
        return False

    try:
        eventually(answers, "the sidecar", timeout_s=60)
        yield metered
    finally:
        process.terminate()
        assert process.wait(30) == 0


async def complete(client: Any, number: int) -> str:
    """One chat, every second one a stream; its id."""
    asked = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": f"{number} times " * (number + 1)}],
        "max_tokens": 20 + 5 * number,
        "extra_body": {"ignore_eos": True},
    }
    if number % 2:
        answer = await client.chat.completions.create(**asked)
        assert answer.usage.completion_tokens == asked["max_tokens"]
        return str(answer.id)
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    assert all(chunk.choices for chunk in chunks), "usage that was not asked for"
    return str(chunks[0].id)


async def complete_together(metered: Metered, count: int) -> list[str]:
    """Some chats at once; their ids."""
    async with metered.async_client() as client:
        return await asyncio.gather(*(complete(client, number) for number in range(count)))


def test_eight_requests_at_once_are_metered_and_the_accounts_close(
    start_server: StartServer, tiny_model: Path, stub_directory: Path
) -> None:
    """Every joule of the counter is in one account, every request has some, and says `outside`."""
    bare = start_server(power=SAW, cycle_s=2.0, environment={"LLM_CARBON_METER_ENABLED": "0"})
    with bare as server, sidecar(server, tiny_model, stub_directory) as metered:
        assert b"llm_carbon_meter_energy" not in server.http("/metrics")[2]
        assert metered.http("/upstream/metrics")[2].startswith(b"# HELP")
        records = [metered.record(name) for name in asyncio.run(complete_together(metered, 8))]
        assert {record["quality"] for record in records} == {"outside"}
        assert {record["source"] for record in records} == {"measured"}
        assert {record["tokens_from"] for record in records} == {"usage"}
        assert [record["output_tokens"] for record in records] == [20 + 5 * n for n in range(8)]
        for record in records:
            assert record["prefill_joules"] > 0
            assert record["decode_joules"] > 0
            assert record["estimate"]["energy_joules"] > 0
            assert record["features"]["mean_running"] > 1
        accounts = assert_balanced(metered)
        charged = accounts["prefill"] + accounts["decode"]
        assert charged == pytest.approx(
            sum(record["energy_joules"] for record in records), rel=1e-9
        )
        assert accounts["idle"] > 0
        assert len(metered.logged()) == 8


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_beside_the_hook_the_sum_is_the_same_and_the_split_is_printed(
    engine: str, tmp_path: Path
) -> None:
    """Between the same two readings both have every joule; pauses are work to the proxy.

    The pauses of one load may be divided otherwise: loads last a few ticks of the counter, and a
    meter that got no processor for a second divides one long tick by expected watts.
    """
    comparisons = compare(engine, tmp_path, loads=[6, 7, 8, 9, 10])
    print(table(comparisons))
    for comparison in comparisons:
        assert_same_sums(comparison)
    more_idle_outside = [
        comparison.accounts["outside"]["idle"] - comparison.accounts["hook"]["idle"]
        for comparison in comparisons
    ]
    assert sum(more < 0 for more in more_idle_outside) >= 2


def assert_same_sums(comparison: Compared) -> None:
    """Both sides' accounts hold the counter's joules, and the records what is charged."""
    for accounts in comparison.accounts.values():
        assert sum(accounts.values()) == pytest.approx(comparison.counted_joules, abs=1e-6)
    for side, records in zip(
        comparison.accounts, zip(*comparison.records, strict=True), strict=True
    ):
        charged = sum(comparison.accounts[side][name] for name in CHARGED)
        assert sum(record["energy_joules"] for record in records) == pytest.approx(
            charged, rel=1e-9
        )
    for hook, outside in comparison.records:
        assert outside["prompt_tokens"] == hook["prompt_tokens"]
        assert outside["output_tokens"] == hook["output_tokens"]
        assert (hook["quality"], outside["quality"]) == ("counter", "outside")
