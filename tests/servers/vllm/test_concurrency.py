"""Whom a request shares its batch with: what vLLM's own classes and a real server say."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.concurrency import Held
from llm_carbon_meter.servers.vllm import frontend_hooks
from llm_carbon_meter.servers.vllm.frontend_hooks import FrontendHooks
from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.servers.completions import complete
from tests.support.servers.metered import MIDDLEWARE, Metered, StartServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.engine

REQUESTS = 60
MOST = 4
"""Requests that the server batches at once."""
RUNNING = "vllm:num_requests_running"


class Processor:
    """vLLM's real `OutputProcessor`, with requests and outputs that are made by hand."""

    def __init__(self) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        self.real = OutputProcessor(None, log_stats=False)

    def add(self, name: str, parent: Any = None, index: int = 0) -> None:
        self.real.add_request(request_of(name), None, parent, index)

    def output(self, name: str, *, last: bool) -> None:
        """A step of the engine gave a request a token."""
        from vllm.v1.engine import EngineCoreOutput, FinishReason

        reason = FinishReason.LENGTH if last else None
        self.real.process_outputs([EngineCoreOutput(name, [5], finish_reason=reason)])


def request_of(name: str, n: int = 1) -> Any:
    """vLLM's request for some answers."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(n=n, detokenize=False),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=name,
    )


@pytest.fixture
def processor() -> Processor:
    """Without requests."""
    return Processor()


@pytest.fixture
def held(processor: Processor, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Held:
    """What the hooks give an API server that begins to count by."""
    from tests.support.servers.driving import engine_config

    given: dict[str, Any] = {}

    class Server:
        """Takes what it is given."""

        def __init__(self, *_: Any, **named: Any) -> None:
            given.update(named)

        def connect(self) -> None:
            pass

    monkeypatch.setattr(frontend_hooks, "ApiServer", Server)
    llm = SimpleNamespace(
        vllm_config=engine_config(tiny_model, max_num_seqs=MOST), output_processor=processor.real
    )
    FrontendHooks(Config(), Faults()).after_init(llm)
    assert given["most"] == MOST
    count: Held = given["held"]
    return count


def test_a_request_counts_from_its_adding_to_its_last_output(
    processor: Processor, held: Held
) -> None:
    """Whatever else begins or ends meanwhile, and whether or not a client still reads."""
    assert held() == 0
    processor.add("a")
    processor.add("b")
    processor.output("a", last=False)
    assert held() == 2
    processor.output("a", last=True)
    assert held() == 1
    processor.add("c")
    processor.output("b", last=True)
    processor.output("c", last=True)
    assert held() == 0


def test_children_count_one_by_one_and_their_parent_does_not(
    processor: Processor, held: Held
) -> None:
    """With n = 3 the engine runs three requests."""
    from vllm.v1.engine.parallel_sampling import ParentRequest

    parent = ParentRequest(request_of("p", n=3))
    for index in range(3):
        processor.add(parent.get_child_info(index)[0], parent, index)
    assert held() == 3
    processor.output("1_p", last=True)
    assert held() == 2
    processor.real.abort_requests(["p"], internal=True)
    assert held() == 0


def test_an_aborted_request_counts_no_more(processor: Processor, held: Held) -> None:
    """Also where it is aborted twice, or its last output comes after that."""
    processor.add("a")
    processor.add("b")
    processor.real.abort_requests(["a"], internal=True)
    processor.real.abort_requests(["a"], internal=True)
    processor.output("a", last=True)
    assert held() == 1


@pytest.fixture(scope="module")
def metered(start_server: StartServer) -> Iterator[Metered]:
    """Batches of four at most; answers that are made in the background are kept."""
    store = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
    limits = ("--max-num-seqs", str(MOST))
    with start_server(*MIDDLEWARE, *limits, environment=store) as metered:
        yield metered


def ask(metered: Metered, *, stream: bool) -> tuple[str, float]:
    """A request like all the others: its id, and the estimate in the headers of its answer."""
    body = {"model": MODEL_NAME, "prompt": "the same", "max_tokens": 12, "ignore_eos": True}
    status, headers, answer = metered.http("/v1/completions", body | {"stream": stream})
    assert status == 200, answer
    first = answer.decode().splitlines()[0].removeprefix("data: ") if stream else answer
    return json.loads(first)["id"], float(headers["llm-carbon-estimated-wh"])


def test_one_after_the_other_is_one_at_a_time(metered: Metered) -> None:
    """The sixtieth is estimated as the first, but for what the server learnt of its deployment."""
    answers = [ask(metered, stream=bool(number % 2)) for number in range(REQUESTS)]
    records = [metered.record(name) for name, _ in answers]
    assert {record["features"]["concurrency"] for record in records} == {1}
    learnt = [record["estimate"]["calibration"] for record in records]
    estimates = [shown / factor for (_, shown), factor in zip(answers, learnt, strict=True)]
    assert max(abs(estimate / median(estimates) - 1) for estimate in estimates) < 0.25
    third = REQUESTS // 3
    assert fmean(estimates[-third:]) == pytest.approx(fmean(estimates[:third]), rel=0.1)


async def with_running(metered: Metered, count: int) -> dict[str, Any]:
    """The record of a short request that comes while some long ones run, which are then left."""
    async with metered.async_client() as client:
        streams = [
            await client.completions.create(
                model=MODEL_NAME,
                prompt="on and on",
                max_tokens=900,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            for _ in range(count)
        ]
        await asyncio.gather(*(anext(aiter(stream)) for stream in streams[:MOST]))
        record = asyncio.to_thread(ask, metered, stream=False)
        left = asyncio.gather(*(leave(stream) for stream in streams))
        name, _ = (await asyncio.gather(record, left))[0]
    return await asyncio.to_thread(metered.record, name)


async def leave(stream: openai.AsyncStream[Any]) -> None:
    """Close it once the request that counts has begun."""
    await asyncio.sleep(0.3)
    await stream.close()


@pytest.mark.parametrize(("running", "concurrency"), [(2, 3), (6, MOST)])
def test_company_counts_up_to_a_full_batch_and_no_more_once_it_has_left(
    metered: Metered, running: int, concurrency: int
) -> None:
    """Who waits for a place shares no batch."""
    record = asyncio.run(with_running(metered, running))
    assert record["features"]["concurrency"] == concurrency
    eventually(lambda: metered.metric(RUNNING) == 0, "the end of those that were left")
    assert complete(metered, "alone", 2)["features"]["concurrency"] == 1


def test_an_answer_that_is_made_in_the_background_counts(metered: Metered) -> None:
    """Its HTTP exchange is over long before its engine request."""
    body = {"model": MODEL_NAME, "input": "later", "max_output_tokens": 900, "background": True}
    status, _, answer = metered.http("/v1/responses", body)
    assert (status, json.loads(answer)["status"]) == (200, "queued")
    eventually(lambda: metered.metric(RUNNING) == 1, "its begin")
    assert complete(metered, "beside it", 2)["features"]["concurrency"] == 2
    metered.http(f"/v1/responses/{json.loads(answer)['id']}/cancel", b"")
    eventually(lambda: metered.metric(RUNNING) == 0, "its end")
    assert complete(metered, "after it", 2)["features"]["concurrency"] == 1
