"""The proxy with a real meter, before a real server that each test makes."""

import contextlib
import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.routing import Route

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.servers.shared.local_meter import LocalMeter
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.sidecar import proxy
from llm_carbon_meter.servers.sidecar.capture import OutsideCapture
from llm_carbon_meter.servers.sidecar.proxy import Upstream, application
from tests.support.servers.proxied import Metering, Start, running


@contextlib.contextmanager
def metrics_withdrawn() -> Iterator[None]:
    """Take the metrics of a meter out of this process's registry again: it can hold one's only."""
    before = set(REGISTRY._collector_to_names)
    try:
        yield
    finally:
        for collector in set(REGISTRY._collector_to_names) - before:
            REGISTRY.unregister(collector)


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metering]:
    """Power as the data sheet has it: this host may have no sensor."""
    channel = tmp_path_factory.mktemp("channel")
    channel.chmod(0o700)
    config = Config(power="modelled", estimator="flop", channel_dir=str(channel))
    model = built_in_model("Llama-3.1-8B")
    setup = Setup(config, 0, ["0"], 0, 1, model, 1, time.monotonic(), outside=True)
    with metrics_withdrawn():
        capture = OutsideCapture(Faults())
        local = LocalMeter(setup, "toy", held=capture.held, tracing=False, faults=Faults())
        local.follow(capture)
        yield Metering(capture, local.server)
        local.stop()


@pytest.fixture
def start(meter: Metering) -> Iterator[Start]:
    """Starts a server with some routes and the proxy before it; gives a client of the proxy."""
    with contextlib.ExitStack() as stack:

        def begin(*routes: Route, url: str = "", http: str = "auto") -> httpx.Client:
            url = url or stack.enter_context(running(Starlette(routes=list(routes))))
            upstream = Upstream(url)
            app = application(upstream, meter.capture.keep_time)
            proxy.meter(app, upstream, meter.capture, meter.server, Faults())
            front = stack.enter_context(running(app, http))
            return stack.enter_context(httpx.Client(base_url=front, timeout=20, trust_env=False))

        yield begin
