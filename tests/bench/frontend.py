"""What a request costs an API server's process beside the engine's own work; the estimate route.

Everything that the meter does there, without a server around it: the middleware of headers, the
estimate before, an engine's two figures from the channel, metrics, look-ups and the request log.
"""

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, Final

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.prometheus import PrometheusExporter
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.concurrency import Concurrency
from llm_carbon_meter.frontend.exchanges import current_exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.frontend.tenants import Tenants
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import RequestEnergy, Status
from llm_carbon_meter.servers.shared.channel import decode, encode
from llm_carbon_meter.servers.shared.middleware import STATE_NAME, CarbonHeadersMiddleware
from llm_carbon_meter.servers.shared.routes import CarbonRoutes, ServedModels, prompts_of
from tests.support.made.energies import ENERGY
from tests.support.made.records import RECORD

TOGETHER: Final = 8
ROUNDS: Final = 400
PROMPT_TOKENS: Final = 500
ROUTE_PROMPTS: Final = 400
ROUTE_PROMPT_TOKENS: Final = 100
ROUTE_CALLS: Final = 9
TENANTS: Final = 50
TENANT_REQUESTS: Final = 100_000
DEPLOYED: Final = {"engine": "vllm", "engine_version": "0.32.0", "gpu": "NVIDIA H100 80GB HBM3"}


def measure(_model: Path) -> Mapping[str, float]:
    """Milliseconds of the processor for a request, with the meter less without it; the route's."""
    with tempfile.TemporaryDirectory() as folder:
        meter = _meter(Path(folder))
        spent = [_seconds(one) for one in (None, meter)]  # warm
        spent = [_seconds(one) for one in (None, meter)]
        answer, hold = asyncio.run(_route(meter))
        meter.stop()
    return {
        "request_ms": 1e3 * (spent[1] - spent[0]) / (ROUNDS * TOGETHER),
        "route_ms": 1e3 * answer,
        "route_hold_ms": 1e3 * hold,
        "tenant_us": 1e6 * _tenant_seconds(),
    }


def _tenant_seconds() -> float:
    """Of all that a request costs more where requests have tenants: who, which label, counting."""
    config = Config(tenant_from="api_key")
    tenants = Tenants(config, Faults())
    metrics = PrometheusExporter(
        "llama", owns_totals=True, registry=CollectorRegistry(), tenants=()
    )
    headers = [(b"host", b"x"), (b"content-type", b"json"), (b"accept", b"*/*")]
    asked = [[*headers, (b"authorization", b"Bearer key-%d" % number)] for number in range(TENANTS)]
    begun_s = time.process_time()
    for number in range(TENANT_REQUESTS):
        tenant = tenants.of(asked[number % TENANTS])
        metrics.tenant(RECORD, tenants.label(tenant))
    return (time.process_time() - begun_s) / TENANT_REQUESTS


async def _route(meter: FrontendMeter) -> tuple[float, float]:
    """Seconds in which the route answers a list of prompts, and for which it holds the event loop
    at most: medians of some calls."""
    prompts = [
        [random.randrange(100_000) for _ in range(ROUTE_PROMPT_TOKENS)]
        for _ in range(ROUTE_PROMPTS)
    ]
    body = json.dumps({"prompt": prompts, "max_tokens": 100}).encode()

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def read_prompts(_request: Request, parsed: Mapping[str, Any]) -> list[Prompt]:
        return await prompts_of(parsed, _never)

    routes, figures = CarbonRoutes(meter, read_prompts, lambda _: ServedModels()), []
    for _ in range(ROUTE_CALLS):
        gaps: list[float] = []
        watching = asyncio.create_task(_watch(gaps))
        await asyncio.sleep(0)
        begun_s = time.perf_counter()
        answer = await routes.estimate(Request({"type": "http"}, receive))
        took_s = time.perf_counter() - begun_s
        assert answer.status_code == 200
        await asyncio.sleep(0)
        watching.cancel()
        figures.append((took_s, max(gaps)))
    took, held = (median(column) for column in zip(*figures, strict=True))
    return took, held


async def _never(_: Mapping[str, Any]) -> Prompt:
    raise AssertionError("prompts are token ids already")


async def _watch(gaps: list[float]) -> None:
    """Seconds for which the event loop was somebody else's."""
    while True:
        since_s = time.perf_counter()
        await asyncio.sleep(0)
        gaps.append(time.perf_counter() - since_s)


def _seconds(meter: FrontendMeter | None) -> float:
    begun_s = time.process_time()
    asyncio.run(_rounds(meter))
    return time.process_time() - begun_s


def _meter(folder: Path) -> FrontendMeter:
    return FrontendMeter(
        Config(estimator="gnn", request_log=str(folder / "requests.jsonl")),
        "llama",
        built_in_model("Llama-3.1-8B"),
        deployment=DEPLOYED,
        index=0,
        concurrency=Concurrency(0, lambda: TOGETHER, most=256),
        tracing=False,
        share=None,
        faults=Faults(),
        registry=CollectorRegistry(),
        cache_block_tokens=16,
    )


async def _rounds(meter: FrontendMeter | None) -> None:
    """Requests, so many at once, each with a prompt of its own."""
    state = SimpleNamespace(**{STATE_NAME: meter})
    scope = {"type": "http", "headers": [], "app": SimpleNamespace(state=state)}
    for number in range(ROUNDS):
        names = [f"{number}-{client}" for client in range(TOGETHER)]
        calls = [_call(meter, scope, name) for name in names]
        await asyncio.gather(*calls, _engine(meter, names, Status.PROVISIONAL))
        await _engine(meter, names, Status.FINAL)


async def _call(meter: FrontendMeter | None, scope: Any, name: str) -> None:
    tokens = [random.randrange(100_000) for _ in range(PROMPT_TOKENS)]

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        if meter is not None:
            exchange = current_exchange.get()
            assert exchange is not None
            prompt = Prompt(PROMPT_TOKENS, tokens)
            meter.begin(exchange, name, f"chatcmpl-{name}", prompt, 200)
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def nothing(*_: Any) -> Any:
        return {"type": "http.request"}

    called = CarbonHeadersMiddleware(application) if meter is not None else application
    await called(scope, nothing, nothing)


async def _engine(meter: FrontendMeter | None, names: Sequence[str], status: Status) -> None:
    """What the engine's meter sends of them together, as it comes from the channel."""
    await asyncio.sleep(0)
    figures = [
        replace(ENERGY, request_id=name, status=status, prompt_tokens=PROMPT_TOKENS)
        for name in names
    ]
    parts = list(map(encode, figures))
    if meter is not None:
        received = [decode(part, print) for part in parts]
        meter.receive_energies([one for one in received if isinstance(one, RequestEnergy)])
