"""A real server whose processes are killed under load: every request has one record."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from llm_carbon_meter.servers.shared.meter_process import MODULE
from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.servers.metered import MIDDLEWARE, Metered, StartServer
from tests.support.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CLIENTS = 16


@pytest.fixture
def metered(start_server: StartServer) -> Iterator[Metered]:
    """A server of its own: the tests end it."""
    with start_server(*MIDDLEWARE, "--max-num-seqs", "8") as metered:
        yield metered


def kill(metered: Metered, words: str) -> None:
    """End a process of the server's as the kernel does."""
    process = metered.child(words)
    assert process is not None
    process.kill()


class Load:
    """Clients that send one request after the other, and count what became of them."""

    def __init__(self, metered: Metered) -> None:
        self._metered = metered
        self._stopping = threading.Event()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        with self._metered.client() as client:
            while not self._stopping.is_set():
                try:
                    answer = client.completions.create(
                        model=MODEL_NAME,
                        prompt="go on",
                        max_tokens=30,
                        extra_body={"ignore_eos": True},
                    )
                    self.answers[answer.id] += 1
                except openai.OpenAIError as error:
                    self.answers[type(error).__name__] += 1
                    return

    def stop(self) -> set[str]:
        """The ids of all answers."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return {name for name in self.answers if name.startswith("cmpl-")}


def ids_of(records: list[dict[str, Any]]) -> list[str]:
    """As clients know them."""
    return [name for record in records for name in record["external_ids"] if name.endswith("-0")]


def test_a_killed_meter_loses_no_record(metered: Metered) -> None:
    """Those that it knew end as reset; later ones and their estimates are as before."""
    estimate = {"prompt_tokens": 100, "max_tokens": 50}
    before = json.loads(metered.http("/v1/carbon/estimate", estimate)[2])["estimate"]
    load = Load(metered)
    time.sleep(4)
    kill(metered, MODULE)
    time.sleep(10)
    answered = load.stop()
    assert set(load.answers.values()) == {1}
    assert len(answered) == len(load.answers) > 4 * CLIENTS
    eventually(lambda: len(metered.logged()) >= len(answered), "a record of each request", 60)
    logged = ids_of(metered.logged())
    assert Counter(logged) == Counter(f"{name}-0" for name in answered)
    logged_joules = [record["energy_joules"] for record in metered.logged()]
    logged_grams = [record["operational_grams"] for record in metered.logged()]
    assert [joules > 0 for joules in logged_joules] == [grams > 0 for grams in logged_grams]
    counted = metered.metric("llm_carbon_meter_requests_total")
    assert counted == len(answered)
    qualities = Counter(record["quality"] for record in metered.logged())
    assert qualities["reset"] >= CLIENTS / 2
    assert qualities["counter"] > CLIENTS
    after = json.loads(metered.http("/v1/carbon/estimate", estimate)[2])["estimate"]
    assert after["energy_joules"] == pytest.approx(before["energy_joules"], rel=0.5)


def test_a_killed_engine_loses_no_record(metered: Metered) -> None:
    """Requests that ran have what was known of them, or say that nothing was."""
    load = Load(metered)
    time.sleep(3)
    kill(metered, "EngineCore")
    answered = load.stop()
    metered.server.process.wait(60)
    logged = ids_of(metered.logged())
    assert len(logged) == len(set(logged)) == len(answered) + CLIENTS
    assert {f"{name}-0" for name in answered} <= set(logged)
