"""``llm-carbon-meter sidecar``: checks its options, meters, and serves the proxy of proxy.py."""

import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import httpx
import uvicorn

from llm_carbon_meter.addresses import check_url, shown_url, split_login
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_list import named_config
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.power.nvml.devices import listed_devices
from llm_carbon_meter.records import ConfigError, SpecError
from llm_carbon_meter.servers.shared.gpu_fields import gpu_fields
from llm_carbon_meter.servers.shared.local_meter import LocalMeter
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.shared.settings import read_settings, with_channel
from llm_carbon_meter.servers.sidecar.capture import OutsideCapture
from llm_carbon_meter.servers.sidecar.proxy import CONNECT_S, Upstream, application, named

SHUTDOWN_S: Final = 10
"""How long answers in flight may take when the sidecar is stopped."""


def serve(upstream: str, listen: str, model: str, gpus: str) -> int:
    """Run the proxy until it is stopped.

    Args:
        upstream: URL of the server.
        listen: ``HOST:PORT``.
        model: a built-in name or a config.json; empty for the name that the server says.
        gpus: NVML's indices or UUIDs, with commas between.

    Raises:
        MeterError: one of them cannot be used, or the power source cannot be opened.
    """
    begun_s, faults = time.monotonic(), Faults()
    config, url, devices = _settings(faults), _url(upstream), _devices(gpus)
    with _listening(listen) as place:
        name = _served_name(url, faults)
        setup = _setup(config, devices, model or name, begun_s, faults)
        capture = OutsideCapture(faults)
        meter = _meter(setup, name or model or "unknown", capture, faults)
        meter.follow(capture)
        try:
            app = application(Upstream(url), capture, meter.server, faults)
            where = shown_url(url)
            print(f"llm-carbon-meter: {listen} goes to {where}, metered on GPU {gpus}", flush=True)
            _serve(app, place)
        finally:
            meter.stop()
    return 0


def _setup(
    config: Config, devices: Sequence[str], model: str, begun_s: float, faults: Faults
) -> Setup:
    return Setup(
        config=config,
        engine=0,
        gpus=devices,
        first_gpu=0,
        num_gpus=len(devices),
        model=_spec(model, len(devices), faults),
        tensor_parallel=len(devices),
        start_s=begun_s,
        deployment={
            "engine": "unknown",
            **gpu_fields(config, lambda: devices),
            "tensor_parallel_size": len(devices),
        },
        outside=True,
    )


def _meter(setup: Setup, name: str, capture: OutsideCapture, faults: Faults) -> LocalMeter:
    return LocalMeter(setup, name, held=capture.held, tracing=False, faults=faults)


def _serve(app: Any, place: socket.socket) -> None:
    # uvicorn ends in order and then raises the signal again: so does the meter.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws="none",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    uvicorn.Server(config).run(sockets=[place])


def _settings(faults: Faults) -> Config:
    config = read_settings(faults)
    if not config.enabled:
        raise ConfigError("LLM_CARBON_METER_ENABLED=0: then a sidecar has nothing to do")
    return with_channel(config)


def _url(text: str) -> str:
    try:
        httpx.URL(check_url(text, query=False))
    except (ValueError, httpx.InvalidURL):
        raise ConfigError(
            f"--upstream {shown_url(text)}: expected a URL such as http://127.0.0.1:8000, without "
            "a query"
        ) from None
    return text


def _devices(text: str) -> list[str]:
    devices = listed_devices(text)
    if not devices or len(devices) < len(text.split(",")):
        raise ConfigError(f"--gpus {text}: expected indices or UUIDs of nvidia-smi, as in 0,1")
    return devices


def _listening(text: str) -> socket.socket:
    host, _, port = text.rpartition(":")
    try:
        if not host:
            raise ValueError
        return socket.create_server((host.strip("[]"), int(port)), family=_family(host))
    except ValueError:
        raise ConfigError(f"--listen {text}: expected HOST:PORT, as in 127.0.0.1:8010") from None
    except OSError as error:
        raise ConfigError(f"--listen {text}: {error.strerror}; choose another place") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _served_name(url: str, faults: Faults) -> str:
    """What the server calls its first model; empty where it does not say."""
    try:
        address, login = split_login(url)  # httpx logs the address that it is given
        place = address.rstrip("/") + "/v1/models"
        answer = httpx.get(place, auth=login, timeout=CONNECT_S, trust_env=False)
        return str(answer.json()["data"][0]["id"])
    except httpx.TransportError as error:
        advice = f"Until {shown_url(url)} answers, clients get status 502."
        faults.note("upstream", named(error), advice)
    except (ValueError, LookupError, TypeError):  # it asks for a key, or has no such list
        pass
    return ""


def _spec(model: str, num_gpus: int, faults: Faults) -> ModelSpec | None:
    """The model's shape; None, and one line, where it is not known."""
    try:
        if not model:
            raise SpecError("the server does not say which model it serves")
        spec = model_spec(named_config(model), model)
        if spec.num_heads % num_gpus:
            raise SpecError(f"{spec.num_heads} heads of {model} on {num_gpus} GPUs")
        return spec
    except SpecError as error:
        advice = "Requests have no estimate; --model takes a name or a config.json."
        faults.note("model", error, advice)
        return None
