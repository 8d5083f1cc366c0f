"""``/v1/carbon/estimate`` in process: what it makes of a body."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.concurrency import Concurrency
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import EnergyEstimate, EstimateQuery
from llm_carbon_meter.servers.shared.routes import (
    MAX_SEQUENCES,
    TOGETHER,
    CarbonRoutes,
    ServedModels,
    prompts_of,
)


class Asked(FrontendMeter):
    """A front end that remembers what it was asked."""

    def __init__(self, running: int = 0) -> None:
        super().__init__(
            Config(estimator="flop"),
            "llama",
            built_in_model("Llama-3.1-8B"),
            deployment={},
            index=0,
            concurrency=Concurrency(0, lambda: running, most=None),
            tracing=False,
            share=lambda *_: None,
            faults=Faults(),
            registry=CollectorRegistry(),
        )
        self.asked: list[tuple[Prompt, int | None, Mapping[str, Any]]] = []
        self.estimated: list[int] = []

    def query(self, prompt: Prompt, max_tokens: int | None, **more: Any) -> EstimateQuery:
        self.asked.append((prompt, max_tokens, more))
        return super().query(prompt, max_tokens, **more)

    def estimates(self, queries: Sequence[EstimateQuery]) -> list[EnergyEstimate]:
        self.estimated.append(len(queries))
        return super().estimates(queries)


async def prompts(request: Request, body: Mapping[str, Any]) -> list[Prompt]:
    """A tokeniser that counts characters."""
    return [Prompt(len(prompt)) for prompt in body["prompt"]]


async def post(meter: FrontendMeter, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The estimate in the answer."""
    app = Starlette()
    routes = CarbonRoutes(meter, prompts, lambda _: ServedModels(["llama"], ["mine"]))
    app.router.add_route("/estimate", routes.estimate, ["POST"])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/estimate", json=body)
    assert answer.status_code == 200
    estimate: Mapping[str, Any] = answer.json()["estimate"]
    return estimate


async def test_the_estimate_counts_the_company_of_the_moment() -> None:
    """Requests that run now, and all answers that are asked for."""
    meter = Asked(running=1)
    await post(meter, {"prompt": ["ab", "abc"], "n": 2, "max_tokens": 7})
    more = {"num_sequences": 2, "concurrency": 5, "output_tokens": None}
    assert meter.asked == [(Prompt(2), 7, more), (Prompt(3), 7, more)]


async def test_the_estimate_knows_the_adapter() -> None:
    """Its answers have lengths of their own."""
    meter = Asked()
    for model in ("mine", "llama"):
        await post(meter, {"prompt": ["ab"], "model": model})
    assert [prompt.adapter for prompt, *_ in meter.asked] == ["mine", ""]


async def test_the_estimate_is_the_formula_s_own_to_the_digit() -> None:
    """And says that its GPU is assumed where none was found."""
    estimate = await post(Asked(), {"prompt_tokens": 1000, "output_tokens": 500})
    assert estimate["energy_wh"] == pytest.approx(0.0486448845, abs=5e-11)
    assert estimate["low_wh"] == estimate["high_wh"]
    assert estimate["calibration"] == 1.0
    assert estimate["calibrated"]["energy_wh"] == estimate["energy_wh"]
    assert estimate["out_of_domain"] == "no GPU was found, H100 is assumed"


async def test_a_long_list_lets_others_have_the_event_loop() -> None:
    """Its estimate is the sum of all, though others had their turn in between."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    meter, lengths = Asked(), range(1, MAX_SEQUENCES + 1)
    task = asyncio.create_task(others())
    whole = await post(meter, {"prompt": ["a" * length for length in lengths], "max_tokens": 7})
    task.cancel()
    assert meter.estimated == [TOGETHER] * (MAX_SEQUENCES // TOGETHER)
    assert turns >= 10
    assert whole["output_tokens"] > MAX_SEQUENCES


async def test_equal_prompts_are_estimated_once() -> None:
    """And all of them count."""
    meter = Asked()
    whole = await post(meter, {"prompt": ["ab"] * MAX_SEQUENCES, "max_tokens": 7})
    assert meter.estimated == [1]
    company = {"prompt_tokens": 2, "max_tokens": 7, "n": MAX_SEQUENCES}
    one = await post(Asked(), company)
    assert whole["energy_joules"] == pytest.approx(one["energy_joules"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 100_000, "the body is no JSON"),
        (b'{"prompt": ', "the body is no JSON"),
        (b"[1]", "the body is a list"),
        (b"{}", "give `messages`, `prompt` or `prompt_tokens`"),
        (b'{"prompt": []}', "`prompt` is empty"),
        (b'{"prompt": [[1, 2], []]}', "`prompt` holds nothing"),
        (b'{"prompt": [[1, 2], [[3]]]}', "`prompt` holds list"),
        (b'{"prompt": [1, true]}', "`prompt` holds int"),
        (b'{"prompt": {"text": "a"}}', "`prompt` holds dict"),
        (b'{"prompt": ' + b"[" * 400 + b"]" * 400 + b"}", "`prompt` holds list"),
        (b'{"prompt": [-1], "output_tokens": true}', "`output_tokens` is True"),
        (b'{"prompt_tokens": 0}', "`prompt_tokens` is 0"),
        (b'{"prompt_tokens": 1' + b"0" * 400 + b"}", "`prompt_tokens` is 1000"),
        (b'{"prompt_tokens": 1' + b"0" * 160 + b"}", "whole number of 1 to 10000000"),
        (b'{"prompt_tokens": 1e5}', "`prompt_tokens` is 100000.0"),
        (b'{"prompt_tokens": 5, "max_tokens": 1' + b"0" * 99 + b"}", "`max_tokens` is 1000"),
        (b'{"prompt_tokens": 5, "n": 1025}', "`n` is 1025; expected a whole number of 1 to 1024"),
        (b'{"prompt_tokens": 9999999}', "the context of Llama-3.1-8B holds"),
        (b'{"prompt_tokens": 5, "model": "gpt"}', "`model` is 'gpt'; this server has llama"),
        (b'{"prompt_tokens": 5, "model": ["llama"]}', "`model` is ['llama']"),
        (b'{"prompt": [' + b"[1]," * 1024 + b"[1]]}", "`prompt` holds 1025 prompts, at most 1024"),
        (b'{"prompt": "a"}', "cannot read the body: ZeroDivisionError: 'of the template'"),
    ],
)
async def test_what_is_no_request_is_told_so(body: bytes, words: str) -> None:
    """400, in OpenAI's shape."""

    async def read(_request: Request, parsed: Mapping[str, Any]) -> list[Prompt]:
        return await prompts_of(parsed, never)

    async def never(_: Mapping[str, Any]) -> Prompt:
        raise ZeroDivisionError("of the template")

    async def receive() -> Mapping[str, Any]:
        return {"type": "http.request", "body": body}

    routes = CarbonRoutes(Asked(), read, lambda _: ServedModels(["llama"]))
    answer = await routes.estimate(Request({"type": "http"}, receive))  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert words in json.loads(bytes(answer.body))["error"]["message"]
