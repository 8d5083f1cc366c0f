"""``/v1/carbon/estimate`` in process: what it makes of a body."""

from collections.abc import Mapping
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
from llm_carbon_meter.records import EnergyEstimate
from llm_carbon_meter.servers.shared.routes import CarbonRoutes


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

    def estimate(
        self, prompt: Prompt, max_tokens: int | None, **more: Any
    ) -> EnergyEstimate | None:
        self.asked.append((prompt, max_tokens, more))
        return super().estimate(prompt, max_tokens, **more)


async def prompts(request: Request, body: Mapping[str, Any]) -> list[Prompt]:
    """A tokeniser that counts characters."""
    return [Prompt(len(prompt)) for prompt in body["prompt"]]


async def post(meter: FrontendMeter, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The estimate in the answer."""
    app = Starlette()
    app.router.add_route("/estimate", CarbonRoutes(meter, prompts).estimate, ["POST"])
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


async def test_the_estimate_is_the_formula_s_own_to_the_digit() -> None:
    """And says that its GPU is assumed where none was found."""
    estimate = await post(Asked(), {"prompt_tokens": 1000, "output_tokens": 500})
    assert estimate["energy_wh"] == pytest.approx(0.0486448845, abs=5e-11)
    assert estimate["low_wh"] == estimate["high_wh"]
    assert estimate["calibration"] == 1.0
    assert estimate["calibrated"]["energy_wh"] == estimate["energy_wh"]
    assert estimate["out_of_domain"] == "no GPU was found, H100 is assumed"
