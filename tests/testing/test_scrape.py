"""Looking at a server of this host."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from llm_carbon_meter.testing.scrape import fetch_record, scrape
from llm_carbon_meter.testing.servers import _answers
from tests.support.servers.proxied import running


async def health(_request: Request) -> Response:
    """As servers have it."""
    return Response()


async def metrics(_request: Request) -> Response:
    """One of ours."""
    return PlainTextResponse('llm_carbon_meter_accounted_ratio{model_name="m",engine="0"} 1.0\n')


async def record(request: Request) -> Response:
    """Known of one request."""
    known = request.path_params["name"] == "one"
    return JSONResponse({"id": "one"}, 200 if known else 404)


ROUTES = [
    Route("/health", health),
    Route("/metrics", metrics),
    Route("/v1/carbon/requests/{name}", record),
]


def test_no_proxy_stands_before_a_server_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its probe, its metrics and its records are asked directly, whatever the environment says."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with running(Starlette(routes=ROUTES)) as url:
        assert _answers(url + "/health")
        assert not _answers(url + "/other")
        assert scrape(url).accounted_ratios == (1.0,)
        assert fetch_record(url, "one") == {"id": "one"}
        assert fetch_record(url, "two") is None
