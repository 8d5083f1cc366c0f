"""One real vLLM server, API key, headers, tracing and request log on; all its requests metered."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from llm_carbon_meter.exporters.columns import figure
from llm_carbon_meter.exporters.headers import decimal
from llm_carbon_meter.testing.servers import MODEL_NAME
from llm_carbon_meter.units import watt_hours
from tests.support.servers.metered import (
    KEY,
    MIDDLEWARE,
    SAW,
    Metered,
    StartServer,
    assert_balanced,
    assert_charged,
    assert_traced,
    attributes,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def metered(start_server: StartServer) -> Iterator[Metered]:
    """Prompts are filled 64 tokens at a time, so that prefill and decode mix."""
    chunked = ("--max-num-batched-tokens", "64", "--max-num-seqs", "16")
    with start_server(*MIDDLEWARE, *chunked, power=SAW, cycle_s=2.0, key=KEY) as metered:
        yield metered


def chat(text: str, tokens: int, **more: object) -> dict[str, object]:
    """A body of /v1/chat/completions with an exact output length."""
    messages = [{"role": "user", "content": text}]
    body = {"model": MODEL_NAME, "messages": messages, "max_tokens": tokens, "ignore_eos": True}
    return body | more


def stream(metered: Metered, body: dict[str, object]) -> tuple[dict[str, str], str]:
    """Headers and text of a streamed chat completion."""
    _, headers, data = metered.http("/v1/chat/completions", body | {"stream": True})
    return headers, data.decode()


def test_an_answer_carries_its_estimate_and_measurement(metered: Metered) -> None:
    """A plain answer has both in its headers; the record has the same, and the final one."""
    start_s = time.monotonic()
    _, headers, body = metered.http("/v1/chat/completions", chat("What is a joule?", 60))
    took_s = time.monotonic() - start_s
    record = metered.record(json.loads(body)["id"])
    assert headers["llm-carbon-estimated-wh"] == decimal(
        record["estimate"]["calibrated"]["energy_wh"]
    )
    assert headers["llm-carbon-estimated-low-wh"] == decimal(
        record["estimate"]["calibrated"]["low_wh"]
    )
    assert headers["llm-carbon-measured-wh"] == decimal(record["provisional"]["energy_wh"])
    assert headers["llm-carbon-quality"] == "counter"
    assert headers["llm-carbon-status"] in ("provisional", "final")
    assert "llm-carbon-modelled-wh" not in headers
    assert record["source"] == "measured"
    assert record["output_tokens"] == 60
    assert record["energy_joules"] == pytest.approx(
        record["prefill_joules"] + record["decode_joules"]
    )
    # The stub never draws more than 600 W, and a tick can begin before and end after the answer.
    assert 0 < record["energy_joules"] < 600 * (took_s + 0.2)
    # What is not settled yet is filled in at the power of late; the stub's varies by a factor of 5.
    assert 0.2 < record["provisional"]["energy_joules"] / record["energy_joules"] < 5


def test_a_stream_carries_the_estimate_in_front_and_the_measurement_at_its_end(
    metered: Metered,
) -> None:
    """The comment is the last event before ``data: [DONE]``, and no header claims a measurement."""
    headers, text = stream(metered, chat("Tell me of watts", 30))
    assert float(headers["llm-carbon-estimated-wh"]) > 0
    assert "llm-carbon-measured-wh" not in headers
    comment, done = text.strip().split("\n\n")[-2:]
    assert done == "data: [DONE]"
    shown = json.loads(comment.removeprefix(": llm-carbon "))
    record = metered.record(shown["id"])
    assert record["estimate"] == shown["estimate"]
    assert record["provisional"] == shown["provisional"]
    assert headers["llm-carbon-estimated-wh"] == decimal(
        record["estimate"]["calibrated"]["energy_wh"]
    )
    assert record["output_tokens"] == 30


def test_the_official_client_reads_metered_streams(metered: Metered) -> None:
    """Clients who do not know the comment skip it."""
    with metered.client() as client:
        chunks = client.chat.completions.create(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        usage = [chunk.usage for chunk in chunks][-1]
    assert usage is not None
    assert usage.completion_tokens == 12


def test_children_of_one_exchange_are_summed(metered: Metered) -> None:
    """With n = 3 there is one record and one count, with the tokens of all three."""
    _, _, body = metered.http("/v1/chat/completions", chat("three of you", 10, n=3))
    record = metered.record(json.loads(body)["id"])
    assert len(record["internal_ids"]) == 3
    assert record["output_tokens"] == 30
    assert [line["id"] for line in metered.logged()].count(record["id"]) == 1
    eventually(
        lambda: metered.metric("llm_carbon_meter_requests_total") == len(metered.logged()),
        "one count for each record",
    )


def test_a_list_of_prompts_is_one_exchange(metered: Metered) -> None:
    """Two prompts of one completion are two engine requests under the response's id."""
    body = {"model": MODEL_NAME, "prompt": ["one", "two two"], "max_tokens": 7, "ignore_eos": True}
    _, _, answer = metered.http("/v1/completions", body)
    record = metered.record(json.loads(answer)["id"])
    assert len(record["internal_ids"]) == 2
    assert record["output_tokens"] == 14


def test_a_repeated_client_id_never_mixes_records(metered: Metered) -> None:
    """The id that two requests share answers 409 with the internal ids, and each has its own."""
    for tokens in (5, 9):
        metered.http("/v1/chat/completions", chat("hi", tokens), {"X-Request-Id": "mine"})
    status, _, body = metered.http("/v1/carbon/requests/chatcmpl-mine")
    assert status == 409
    message = json.loads(body)["error"]["message"]
    ids = message.split("one of ")[1].split(", ")
    assert sorted(metered.record(internal)["output_tokens"] for internal in ids) == [5, 9]


def test_a_cached_prefix_is_not_charged_again(metered: Metered) -> None:
    """The second of two equal prompts reads its prefix from the cache."""
    text = "the same long prompt again and again " * 8
    records = []
    for _ in range(2):
        _, _, body = metered.http("/v1/chat/completions", chat(text, 2))
        records.append(metered.record(json.loads(body)["id"]))
    assert records[0]["cached_tokens"] < records[1]["cached_tokens"]
    assert records[1]["cached_tokens"] >= 64


def test_a_client_that_goes_away_pays_for_what_ran(metered: Metered) -> None:
    """An aborted stream has a record with joules and the outcome aborted."""

    async def leave() -> str:
        async with metered.async_client() as client:
            chunks = await client.chat.completions.create(
                model=MODEL_NAME,
                messages=[{"role": "user", "content": "go on and on"}],
                max_tokens=900,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async for chunk in chunks:
                if chunk.choices and chunk.choices[0].delta.content:
                    await chunks.close()
                    return chunk.id
        raise AssertionError("the stream was empty")

    record = metered.record(asyncio.run(leave()))
    assert record["outcome"] == "aborted"
    assert record["energy_joules"] > 0
    assert record["output_tokens"] < 900


def test_a_stop_string_is_no_abort(metered: Metered) -> None:
    """The frontend finds it and aborts the engine's request; the client got its answer."""
    body = chat("anything", 200, stop=["e"], include_stop_str_in_output=True)
    _, _, answer = metered.http("/v1/chat/completions", body)
    choice = json.loads(answer)["choices"][0]
    record = metered.record(json.loads(answer)["id"])
    assert choice["finish_reason"] == "stop"
    assert record["outcome"] == "stopped"


def test_structured_output_is_metered(metered: Metered) -> None:
    """A grammar changes what is sampled, not how it is counted."""
    body = chat("yes or no", 20, structured_outputs={"choice": ["yes", "no"]}, ignore_eos=False)
    status, _, answer = metered.http("/v1/chat/completions", body)
    assert status == 200
    assert metered.record(json.loads(answer)["id"])["energy_joules"] > 0


def test_routes_are_behind_the_servers_key(metered: Metered) -> None:
    """Without the key both routes answer 401."""
    for path, body in (("/v1/carbon/requests/x", None), ("/v1/carbon/estimate", b"{}")):
        assert metered.http(path, body, authorised=False)[0] == 401


def test_an_unknown_id_is_not_found(metered: Metered) -> None:
    """The answer has the OpenAI error shape."""
    status, _, body = metered.http("/v1/carbon/requests/no-such-request")
    assert status == 404
    assert "no-such-request" in json.loads(body)["error"]["message"]


def test_an_estimate_needs_no_generation(metered: Metered) -> None:
    """The body of a chat gets the estimate that the chat itself then gets."""
    body = chat("How many joules are in a watt-hour?", 25)
    status, _, answer = metered.http("/v1/carbon/estimate", body)
    assert status == 200
    estimate = json.loads(answer)["estimate"]
    _, headers, _ = metered.http("/v1/chat/completions", body)
    assert decimal(estimate["prefill_wh"]) == decimal(
        metered.record(json.loads(_)["id"])["estimate"]["prefill_wh"]
    )
    assert float(headers["llm-carbon-estimated-wh"]) > 0


CALL: Final = {"name": "add", "arguments": "{}"}
CALLED: Final = [
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "1", "content": "2"},
]
"""A chat in which the model called a tool."""


def deep(levels: int) -> object:
    """A list in a list in a list."""
    nested: object = []
    for _ in range(levels):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt_tokens": 500, "output_tokens": 500}, 200),
        ({"prompt_tokens": 1000, "output_tokens": 500}, 400),
        ({"prompt": "some text", "max_tokens": 4}, 200),
        ({"prompt": [1, 2, 3], "max_tokens": 4}, 200),
        (b"no json", 400),
        (b"[1]", 400),
        ({"max_tokens": 4}, 400),
        ({"prompt_tokens": 0}, 400),
        ({"prompt_tokens": "many"}, 400),
        ({"prompt": []}, 400),
        ({"messages": "hello"}, 400),
        ({"messages": CALLED, "max_tokens": 4}, 200),
        ({"messages": [{"role": "user", "content": deep(900)}]}, 400),
        ({"messages": CALLED, "tools": [{"type": "function", "function": deep(600)}]}, 400),
        ({"prompt_tokens": 10**8}, 400),
        ({"prompt_tokens": 10**400}, 400),
        ({"prompt_tokens": 5, "model": "gpt-5"}, 400),
        ({"prompt_tokens": 5, "model": MODEL_NAME}, 200),
        ({"prompt": [[1]] * 100_000}, 400),
        (b'{"prompt": "' + b"x" * 1_000_001 + b'"}', 413),
    ],
)
def test_bodies_of_the_estimate(metered: Metered, body: object, status: int) -> None:
    """What cannot be estimated gets its reason in the OpenAI error shape."""
    found, _, answer = metered.http("/v1/carbon/estimate", body)  # type: ignore[arg-type]
    assert found == status, answer
    if status != 200:
        assert json.loads(answer)["error"]["message"]


def test_our_routes_answer_as_they_are_described(metered: Metered) -> None:
    """Whatever they are sent: schemathesis makes bodies and ids out of the server's OpenAPI."""
    checks = "not_a_server_error,status_code_conformance,response_schema_conformance"
    with tempfile.TemporaryDirectory() as folder:
        told = subprocess.run(
            metered.fuzz(checks, 100), cwd=folder, capture_output=True, text=True, timeout=300
        )
    assert told.returncode == 0, told.stdout[-6000:]
    assert "Tested: 2" in told.stdout


def test_spans_carry_estimate_and_measurement(metered: Metered) -> None:
    """The server's span has the estimate; its child ends when the last tick is settled."""
    _, _, body = metered.http("/v1/chat/completions", chat("trace me", 20))
    request_id = json.loads(body)["id"]
    parent = assert_traced(metered, metered.record(request_id))
    assert (parent.name, attributes(parent)["gen_ai.request.id"]) == ("llm_request", request_id)


def test_eight_at_a_time_and_every_joule_is_booked(metered: Metered, tmp_path: Path) -> None:
    """The request log, the metrics and the stub's own integral agree; so does the replay."""

    async def load() -> None:
        async with metered.async_client() as client:

            async def one(index: int) -> None:
                await client.completions.create(
                    model=MODEL_NAME,
                    prompt="word " * (1 + 13 * index % 90),
                    max_tokens=5 + 7 * index % 40,
                    extra_body={"ignore_eos": True},
                )

            await asyncio.gather(*(one(index) for index in range(24)))

    before = len(metered.logged())
    asyncio.run(load())
    eventually(lambda: len(metered.logged()) >= before + 24, "the final figures of all")
    assert_charged(metered)
    accounts = assert_balanced(metered)
    assert metered.metric("llm_carbon_meter_requests_total") == len(metered.logged())
    assert metered.metric("llm_carbon_meter_accounted_ratio") == pytest.approx(1, abs=1e-9)
    assert metered.metric("llm_carbon_meter_steps_total", phase="mixed") > 0
    assert accounts["overhead"] > 0  # loading the model
    total = sum(accounts[name] for name in ("prefill", "decode", "recompute", "waste"))
    command = [sys.executable, "-m", "llm_carbon_meter.cli", "replay", str(metered.request_log)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    words = " ".join(printed.stdout.split())
    assert f"total {figure(total)} J {figure(watt_hours(total))} Wh" in words


SPINE = """energy_joules_total energy_watt_hours_total request_energy_watt_hours_count
request_emissions_grams_count emissions_grams_total gpu_power_watts
carbon_intensity_grams_per_kwh carbon_intensity_age_seconds steps_total tokens_total
requests_total accounted_ratio sampler_gap_seconds estimate_error_ratio_count"""


def test_every_metric_of_the_spine_is_there(metered: Metered) -> None:
    """Names of the contract, none that nothing feeds yet."""
    _, _, body = metered.http("/v1/chat/completions", chat("count me", 3))
    metered.record(json.loads(body)["id"])  # counted once it is final
    names = {sample.name for sample in metered.samples()}
    ours = {name for name in names if name.startswith("llm_carbon_meter_")}
    assert {f"llm_carbon_meter_{name}" for name in SPINE.split()} <= ours
    assert not any("drift" in name or "allreduce" in name for name in ours)


def test_nothing_of_the_prompt_is_in_the_log(metered: Metered) -> None:
    """The request log has figures only."""
    metered.http("/v1/chat/completions", chat("unmistakable-xylophone", 3))
    time.sleep(0.5)
    assert "xylophone" not in metered.request_log.read_text()


def test_its_own_log_says_once_that_it_is_metered(metered: Metered) -> None:
    """By which sensor, and where the records are."""
    said = [line for line in metered.server.log.read_text().splitlines() if "is metered" in line]
    (line,) = said
    assert "GPU GPU-" in line
    assert "measured, quality counter" in line
    assert f"request log: {metered.request_log}" in line
