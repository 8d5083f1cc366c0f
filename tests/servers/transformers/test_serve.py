"""A real ``transformers serve``, batching or not: the same book, headers and routes."""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.servers.shared.hooks import Hook
from llm_carbon_meter.servers.transformers import serve as transformers_serve
from tests.support.servers.metered import (
    Metered,
    StartServer,
    assert_balanced,
    assert_charged,
    assert_traced,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.engine

SMALL_BATCH = ("--cb-max-batch-tokens", "64", "--cb-num-blocks", "64")


@pytest.fixture(scope="module")
def metered(start_server: StartServer) -> Iterator[Metered]:
    """One GPU; prompts are prefilled in chunks of at most 64 tokens."""
    with start_server(*SMALL_BATCH, engine="transformers") as metered:
        yield metered


def body(metered: Metered, prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    """A completion of an exact length."""
    exact = {"max_tokens": tokens, **metered.server.exact}
    return {"model": metered.server.model_name, "prompt": prompt, **exact, **more}


def complete(metered: Metered, prompt: str, tokens: int, request_id: str) -> dict[str, Any]:
    """The final record of a completion."""
    headers = {"X-Request-Id": request_id}
    status, _, answer = metered.http("/v1/completions", body(metered, prompt, tokens), headers)
    assert status == 200, answer
    return metered.record(request_id)


async def ask_together(metered: Metered, streams: Sequence[bool]) -> list[dict[str, Any]]:
    """Completions at once by the official client; usage and id of each."""

    async def one(number: int, stream: bool) -> dict[str, Any]:
        asked = body(metered, "word " * (5 + 17 * number), 20 + number)
        extra = {"extra_body": {"generation_config": asked.pop("generation_config")}}
        answer = await client.completions.create(**asked, **extra, stream=stream)
        last = [chunk async for chunk in answer][-1] if stream else answer
        return {"id": last.id, **last.usage.model_dump()}

    async with metered.async_client() as client:
        return await asyncio.gather(*(one(*each) for each in enumerate(streams)))


def test_eight_clients_get_records_of_their_own(metered: Metered) -> None:
    """Streams and not: tokens are those of the answers, and the accounts hold the counter's sum."""
    answers = asyncio.run(ask_together(metered, [False, True] * 4))
    records = [metered.record(answer["id"]) for answer in answers]
    for answer, record in zip(answers, records, strict=True):
        assert record["prompt_tokens"] == answer["prompt_tokens"]
        assert record["output_tokens"] == answer["completion_tokens"]
        assert min(record["prefill_joules"], record["decode_joules"]) > 0
        assert (record["outcome"], record["quality"]) == ("finished", "counter")
        assert record["estimate"]["energy_joules"] > 0
    assert_charged(metered)
    assert_balanced(metered)


def test_a_long_prompt_is_prefilled_in_chunks(metered: Metered) -> None:
    """Three steps for 150 tokens, then one for each further token; no token is counted twice."""
    before = metered.metric("llm_carbon_meter_tokens_total", phase="prefill")
    record = complete(metered, "hello " * 100, 5, "chunks")
    steps = -(-record["prompt_tokens"] // 64) + 4
    assert record["features"]["num_steps"] == steps
    after = metered.metric("llm_carbon_meter_tokens_total", phase="prefill")
    assert after - before == record["prompt_tokens"]


def test_a_shared_prefix_is_not_computed_again(metered: Metered) -> None:
    """The second of two equal prompts finds the first one's blocks, and its record says so."""
    first = complete(metered, "prefix " * 90, 4, "prefix-1")
    before = metered.metric("llm_carbon_meter_tokens_total", phase="prefill")
    second = complete(metered, "prefix " * 90, 4, "prefix-2")
    computed = metered.metric("llm_carbon_meter_tokens_total", phase="prefill") - before
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= 64
    assert computed == second["prompt_tokens"] - second["cached_tokens"]


def test_the_answer_has_headers_and_a_stream_a_comment(metered: Metered) -> None:
    """As with vLLM; this server sends no [DONE], so the comment is the last line."""
    asked = body(metered, "hi", 4)
    _, headers, _ = metered.http("/v1/completions", asked, {"X-Request-Id": "with-headers"})
    names = {name.lower() for name in headers}
    assert {"llm-carbon-estimated-wh", "llm-carbon-measured-wh", "llm-carbon-quality"} <= names
    _, headers, text = metered.http("/v1/completions", asked | {"stream": True})
    assert "llm-carbon-estimated-wh" in {name.lower() for name in headers}
    comment = text.decode().strip().splitlines()[-1]
    record = json.loads(comment.removeprefix(": llm-carbon "))
    assert record["output_tokens"] == 4
    for request_id in ("with-headers", record["id"]):  # other tests count tokens
        metered.record(request_id)


def test_one_after_the_other_is_one_at_a_time(metered: Metered) -> None:
    """Streams and not: who was answered is no company, who runs is."""
    names = [f"turn-{number}" for number in range(12)]
    for number, name in enumerate(names):
        asked = body(metered, "the same", 12, stream=bool(number % 2))
        assert metered.http("/v1/completions", asked, {"X-Request-Id": name})[0] == 200
    assert {metered.record(name)["features"]["concurrency"] for name in names} == {1}
    answers = asyncio.run(ask_together(metered, [False, True] * 2))
    company = [metered.record(answer["id"])["features"]["concurrency"] for answer in answers]
    assert sorted(company) == [1, 2, 3, 4]


def leave_a_stream(metered: Metered) -> None:
    """What ran until then is its own, and the balance closes."""
    asked = body(metered, "leave", 400, stream=True)
    request = {"url": metered.url + "/v1/completions", "json": asked}
    with httpx.stream("POST", **request, headers={"X-Request-Id": "left"}, timeout=30) as answer:
        next(answer.iter_lines())
    record = metered.record("left")
    assert record["outcome"] == "aborted"
    assert 0 < record["output_tokens"] < 400
    assert record["energy_joules"] > 0
    assert_balanced(metered)


def test_a_client_that_leaves_a_stream_is_aborted(metered: Metered) -> None:
    """The batching drops it before one of its next steps."""
    leave_a_stream(metered)


def test_two_requests_of_one_id_are_both_answered(metered: Metered) -> None:
    """Without us the first one's client would wait for ever; the second gets an id of its own."""

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30) as client:
            calls = [
                client.post(
                    metered.url + "/v1/completions",
                    json=body(metered, "twice", 60),
                    headers={"X-Request-Id": "twice"},
                )
                for _ in range(2)
            ]
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200, 200]
    ids = sorted(answer.headers["x-request-id"] for answer in answers)
    assert ids[0] == "twice"
    assert ids[1].startswith("twice-")
    assert all(metered.record(one)["output_tokens"] == 60 for one in ids)


def test_an_estimate_counts_tokens_as_the_server_does(metered: Metered) -> None:
    """The same conversation as a request and as a question about one."""
    chat = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 3}
    asked = {"model": metered.server.model_name, **chat, **metered.server.exact}
    _, _, answer = metered.http("/v1/chat/completions", asked)
    record = metered.record(json.loads(answer)["id"])
    plain = {"prompt_tokens": record["prompt_tokens"], "max_tokens": 3}
    estimates = [
        json.loads(metered.http("/v1/carbon/estimate", each)[2])["estimate"]["prefill_joules"]
        for each in (chat, plain)
    ]
    assert estimates[0] == pytest.approx(estimates[1], rel=1e-6)


class TestPlain:
    """Without continuous batching: one ``generate`` after the other."""

    @pytest.fixture(scope="class")
    @staticmethod
    def metered(start_server: StartServer) -> Iterator[Metered]:
        with start_server(engine="transformers-plain") as metered:
            yield metered

    def test_requests_that_wait_for_each_other_have_their_own_steps(self, metered: Metered) -> None:
        """As many steps as tokens each, in prefill and decode; the accounts hold the sum."""
        answers = asyncio.run(ask_together(metered, [False, True] * 2))
        for answer in answers:
            record = metered.record(answer["id"])
            assert record["prompt_tokens"] == answer["prompt_tokens"]
            assert record["output_tokens"] == answer["completion_tokens"]
            assert record["features"]["num_steps"] == answer["completion_tokens"]
            assert min(record["prefill_joules"], record["decode_joules"]) > 0
            assert record["estimate"]["energy_joules"] > 0
            assert record["features"]["concurrency"] == 1
        assert_charged(metered)
        assert_balanced(metered)

    def test_a_client_that_leaves_a_stream_is_aborted(self, metered: Metered) -> None:
        """At the next token."""
        leave_a_stream(metered)


class TestOpenTelemetry:
    """``opentelemetry-instrument transformers serve``, without our command."""

    @pytest.fixture(scope="class", params=["transformers", "transformers-plain"])
    @staticmethod
    def metered(request: Any, start_server: StartServer) -> Iterator[Metered]:
        own = Path(sys.executable).parent
        exporters = ("--traces_exporter=otlp", "--metrics_exporter=none", "--logs_exporter=none")
        program = (own / "opentelemetry-instrument", *exporters, own / "transformers", "serve")
        with start_server(engine=request.param, program=list(map(str, program))) as metered:
            yield metered

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_request_is_metered_and_traced(self, metered: Metered, stream: bool) -> None:
        """Figures, headers and books as with our command; the span is that of FastAPI."""
        asked = body(metered, "trace me", 8, stream=stream)
        name = f"traced-{stream}"
        _, headers, _ = metered.http("/v1/completions", asked, {"X-Request-Id": name})
        assert "llm-carbon-estimated-wh" in {each.lower() for each in headers}
        record = metered.record(name)
        assert min(record["prefill_joules"], record["decode_joules"]) > 0
        assert assert_traced(metered, record).name == "POST /v1/completions"
        assert_charged(metered)
        assert_balanced(metered)


def test_nothing_is_left_when_the_server_ends(start_server: StartServer) -> None:
    """SIGTERM settles the last tick: the log has every request, and no process of ours stays."""
    with start_server(*SMALL_BATCH, engine="transformers") as metered:
        complete(metered, "the last words", 30, "last")
        metered.server.process.terminate()
        eventually(lambda: metered.server.process.poll() is not None, "the server's end", 20)
        (record,) = metered.logged()
        assert (record["id"], record["status"]) == ("last", "final")


def test_a_transformers_that_does_not_fit_serves_unmetered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One fault that names what is missing; an error where the settings are strict."""
    faults = Faults()
    monkeypatch.setattr(transformers_serve, "Faults", lambda: faults)
    monkeypatch.setattr(transformers_serve, "NEEDED", [Hook("transformers:Nothing", "at_all")])
    monkeypatch.setenv("LLM_CARBON_METER_CHANNEL_DIR", "/nowhere")
    before = ContinuousBatchProcessor.prepare_next_batch
    transformers_serve.install()
    assert faults.counts == {"install": 1}
    assert ContinuousBatchProcessor.prepare_next_batch is before
    monkeypatch.setenv("LLM_CARBON_METER_STRICT", "1")
    with pytest.raises(ConfigError, match=r"has no transformers:Nothing .*5\.6 is the oldest"):
        transformers_serve.install()


def test_its_own_log_says_once_that_it_is_metered(metered: Metered) -> None:
    """By which sensor, and where the records are, when the model is there."""
    complete(metered, "hi", 2, "said")
    said = [line for line in metered.server.log.read_text().splitlines() if "is metered" in line]
    (line,) = said
    assert "measured, quality counter" in line
    assert f"request log: {metered.request_log}" in line
