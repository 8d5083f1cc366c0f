"""``llm-carbon-meter sidecar``: checks its options, meters, and serves the proxy of proxy.py."""

import asyncio
import resource
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import msgspec
import uvicorn

from llm_carbon_meter.addresses import check_url, shown_url, split_login
from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.prometheus import check_metrics_folder
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_list import named_config
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.power.nvml.devices import listed_devices
from llm_carbon_meter.records import ConfigError, MeterError, SpecError
from llm_carbon_meter.servers.shared.gpu_fields import gpu_fields
from llm_carbon_meter.servers.shared.local_meter import LocalMeter
from llm_carbon_meter.servers.shared.meter_process import Setup
from llm_carbon_meter.servers.shared.settings import read_settings, with_channel
from llm_carbon_meter.servers.sidecar.answers import LONGEST_MODEL
from llm_carbon_meter.servers.sidecar.capture import OutsideCapture
from llm_carbon_meter.servers.sidecar.proxy import CONNECT_S, Upstream, application, meter, named

SHUTDOWN_S: Final = 10
"""How long answers in flight may take when the sidecar is stopped."""
ASK_AGAIN_S: Final = 1.0
"""A server that is not there is asked this often."""
MOST_MODELS: Final = 100
"""Of those that a server has: more are not asked about."""
STARTING: Final = (502, 503, 504)
"""Statuses of a server that loads its model, and of a gateway before one."""


def serve(upstream: str, listen: str, model: str, gpus: str, models: Path | None = None) -> int:
    """Run the proxy until it is stopped.

    Args:
        upstream: URL of the server.
        listen: ``HOST:PORT``.
        model: a built-in name or a config.json; empty for the name that the server says.
        gpus: NVML's indices or UUIDs, with commas between.
        models: a TOML table of the server's names and what `model` takes.

    Raises:
        MeterError: one of them cannot be used, or the power source cannot be opened.
    """
    faults = Faults()
    config, url, devices = _settings(faults), _url(upstream), _devices(gpus)
    table = _read_models(models) if models else {}
    with _listening(listen) as place:
        metering = _Metering(config, url, devices, model, table, faults)
        try:
            metering.begin()
            print(f"llm-carbon-meter: {listen} goes to {shown_url(url)}", flush=True)
            _serve(metering.app, place)
        finally:
            metering.stop()
    return 0


class _Metering:
    """The proxy, and the meter from when the server says what it serves.

    Args:
        config: settings.
        url: of the server.
        devices: the server's GPUs.
        model: as `serve` has it.
        table: of several models, by the server's names.
        faults: counts of what went wrong.
    """

    def __init__(
        self,
        config: Config,
        url: str,
        devices: Sequence[str],
        model: str,
        table: Mapping[str, str],
        faults: Faults,
    ) -> None:
        self._config = config
        self._url = url
        self._devices = devices
        self._model = model
        self._table = table
        self._faults = faults
        self._capture = OutsideCapture(faults)
        self._upstream = Upstream(url)
        self._meter: LocalMeter | None = None
        self.app = application(self._upstream, self._capture.keep_time, self._wait)

    def begin(self) -> None:
        """Meter, if the server is there.

        Raises:
            MeterError: the power source cannot be opened.
        """
        served = self._served()
        if served is None:
            return
        names = list(dict.fromkeys((*served.names, *self._table)))
        models = {name: self._spec(name, served) for name in names} if len(names) > 1 else {}
        first = names[0] if names else ""
        spec = models[first] if models else self._spec(first, served)
        self._meter = LocalMeter(
            _setup(self._config, self._devices, spec),
            first or self._model or "unknown",
            held=self._capture.held,
            tracing=False,
            faults=self._faults,
            models=models,
        )
        self._meter.follow(self._capture)
        meter(self.app, self._upstream, self._capture, self._meter.server, self._faults, models)

    async def _wait(self) -> None:
        """Begin later, where the server was not there; until then nothing is metered."""
        while self._meter is None:
            await asyncio.sleep(ASK_AGAIN_S)
            try:
                await asyncio.to_thread(self.begin)
            except (MeterError, OSError) as error:
                self._faults.note("meter", error, "Requests are passed on and not metered.")
                return

    def stop(self) -> None:
        """Settle the last tick, if any was metered."""
        if self._meter is not None:
            self._meter.stop()

    def _served(self) -> "_Served | None":
        """What the server says of its model; None where it is not there yet."""
        address, login = split_login(self._url)  # httpx logs the address that it is given
        models = address.rstrip("/") + "/v1/models"
        try:
            answer = httpx.get(models, auth=login, timeout=CONNECT_S, trust_env=False)
            if answer.status_code not in STARTING:
                return _served_by(answer)
            problem = f"/v1/models of {shown_url(self._url)} answers {answer.status_code}"
        except (httpx.TransportError, httpx.DecodingError) as error:
            problem = f"{shown_url(self._url)} cannot be reached: {named(error)}"
        advice = "Until it answers, clients get its errors or status 502, and nothing is metered."
        self._faults.note("upstream", problem, advice)
        return None

    def _spec(self, name: str, served: "_Served") -> ModelSpec | None:
        """The shape of a model; None, and one line, where it is not known."""
        model, count = self._table.get(name) or self._model or name, len(self._devices)
        try:
            if not model:
                raise SpecError(served.problem)
            spec = model_spec(named_config(model), model)
            if spec.num_heads % count:
                raise SpecError(f"{spec.num_heads} heads of {model} on {count} GPUs")
            return spec
        except SpecError as error:
            advice = (
                "Its requests have no estimate; --model takes a name or a config.json, --models a "
                "table of several."
            )
            self._faults.note("model", error, advice)
            return None


class _Served(NamedTuple):
    """What a server calls its models."""

    names: Sequence[str]
    """The first ones."""
    problem: str
    """Why there is no name."""


def _served_by(answer: httpx.Response) -> _Served:
    """Of the answer to ``/v1/models``."""
    try:
        names = [str(model["id"])[:LONGEST_MODEL] for model in answer.json()["data"][:MOST_MODELS]]
    except (ValueError, LookupError, TypeError, RecursionError):
        names = []
    status, place = f"{answer.status_code} {answer.reason_phrase}", shown_url(str(answer.url))
    problem = "" if names else f"/v1/models of {place} answers {status}, and names no model"
    return _Served(names, problem)


def _read_models(path: Path) -> Mapping[str, str]:
    """A table of the server's names and their models.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), dict[str, str])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--models {path} cannot be used: {error}; "
            'expected lines such as "NAME OF THE SERVER" = "Llama-3.1-8B"'
        ) from error


def _setup(config: Config, devices: Sequence[str], model: ModelSpec | None) -> Setup:
    return Setup(
        config=config,
        engine=0,
        gpus=devices,
        first_gpu=0,
        num_gpus=len(devices),
        model=model,
        tensor_parallel=len(devices),
        start_s=time.monotonic(),
        deployment={
            "engine": "unknown",
            **gpu_fields(config, lambda: devices),
            "tensor_parallel_size": len(devices),
        },
        outside=True,
    )


def _allow_files() -> None:
    """Take all open files that the system grants: a stream takes two, the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve(app: Any, place: socket.socket) -> None:
    _allow_files()
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
    check_metrics_folder()  # now, also where metering begins later
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
