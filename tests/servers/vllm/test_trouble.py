"""A real server whose GPU is shared and whose driver is slow, from the middle of the load on."""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from llm_carbon_meter.power.contention import REVIEW_S
from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.servers.completions import complete
from tests.support.servers.metered import Metered, StartServer, assert_balanced
from tests.support.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.slow]  # waits for a review

STRANGER = 2**22 + 1
"""Above every process number that Linux gives."""
SLOW_MS = 40
LONGEST_PAUSE_S = 2.0
"""Between two chunks of a stream, on a machine that others use too."""


@pytest.fixture(scope="module")
def metered(start_server: StartServer) -> Iterator[Metered]:
    """Healthy at first."""
    with start_server() as metered:
        yield metered


def trouble(metered: Metered) -> None:
    """From now on a stranger is on the GPU, beside the server itself, and calls are slow."""
    script = metered.script
    now_s = time.monotonic() - script.origin_s
    extra = (
        f"process 0 {now_s} 9e9 {metered.server.process.pid}",
        f"process 0 {now_s} 9e9 {STRANGER}",
        f"slow_ms 0 {now_s} 9e9 {SLOW_MS}",
    )
    path = metered.log.parent / "script"
    dataclasses.replace(script, extra=extra).write(path)


def longest_pause_s(metered: Metered, tokens: int) -> float:
    """Between two chunks of a streamed completion."""
    with metered.client() as client:
        chunks = client.completions.create(
            model=MODEL_NAME,
            prompt="go on",
            max_tokens=tokens,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        times_s = [time.monotonic() for _ in chunks]
    assert len(times_s) >= tokens / 2  # where the engine is ahead, tokens share a chunk
    return max(after - before for before, after in itertools.pairwise(times_s))


def labelled(metered: Metered, quality: str) -> Mapping[str, Any] | None:
    """A record, if it has this quality."""
    record = complete(metered, "meanwhile", 30)
    return record if record["quality"] == quality else None


def test_trouble_is_labelled_and_the_balance_closes(metered: Metered) -> None:
    """Requests say contended, readings become rarer, the server's stream never pauses."""
    assert complete(metered, "before", 30)["quality"] == "counter"
    trouble(metered)
    assert longest_pause_s(metered, 300) < LONGEST_PAUSE_S
    record = eventually(
        lambda: labelled(metered, "contended"), "a contended request", REVIEW_S + 15
    )
    assert record["source"] == "measured"
    assert record["energy_joules"] > 0
    assert metered.metric("llm_carbon_meter_sampler_read_seconds") >= SLOW_MS / 1000
    assert metered.metric("llm_carbon_meter_accounted_ratio") == pytest.approx(1, abs=1e-9)
    assert not metered.metric("llm_carbon_meter_errors_total")
    assert json.loads(metered.http("/v1/models")[2])["data"]
    time.sleep(1.0)
    assert_balanced(metered)
