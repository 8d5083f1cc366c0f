"""Lines of the request log as OTLP log records: unlike spans, logs are not sampled."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llm_carbon_meter.addresses import shown_url
from llm_carbon_meter.exporters.log_line import Line
from llm_carbon_meter.extras import require
from llm_carbon_meter.faults import Faults

PREFIX: Final = "llm_carbon_meter."
WHERE: Final = "otlp_logs"
MOST_WAITING: Final = 65_536
"""Records; some 100 MB."""
QUEUE: Final = 2 * MOST_WAITING
"""Of the SDK: never full, since a full one drops in silence."""
TIMEOUT_S: Final = 10.0
"""Of one attempt to deliver, its repetitions included."""
STOP_S: Final = 5.0
"""For which a server's end waits for the delivery."""


class OtlpLogs:
    """Sends lines to a receiver, in batches, from a thread of the SDK.

    Args:
        url: of a receiver that speaks gRPC; https is encrypted.
        faults: counts the records that could not be delivered.

    Raises:
        MeterError: a package is not installed.
    """

    def __init__(self, url: str, faults: Faults) -> None:
        require("sending OTLP logs", "otlp", "grpc", "opentelemetry")
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

        exporter = OTLPLogExporter(
            endpoint=url, insecure=url.startswith("http:"), timeout=TIMEOUT_S
        )
        self._counting = _Counting(exporter, shown_url(url), faults)
        counted: Any = self._counting  # the SDK's class for it has had two names
        self._provider = LoggerProvider(shutdown_on_exit=False)
        self._provider.add_log_record_processor(
            BatchLogRecordProcessor(counted, max_queue_size=QUEUE)
        )
        self._logger = self._provider.get_logger("llm_carbon_meter")
        self._faults = faults

    def send(self, lines: Sequence[Line]) -> None:
        """Queue lines and return at once; where too many wait, they are dropped and counted."""
        from opentelemetry._logs import LogRecord, SeverityNumber

        for line in lines:
            if not self._counting.take():
                self._faults.note(WHERE, "too many records wait for the receiver of OTLP logs")
                continue
            name = PREFIX + line["kind"]
            self._logger.emit(
                LogRecord(
                    timestamp=int(line["arrived_unix_s"] * 1e9),
                    observed_timestamp=time.time_ns(),
                    severity_number=SeverityNumber.INFO,
                    body=name,
                    event_name=name,
                    attributes=attributes(line),
                )
            )

    def stop(self) -> None:
        """Deliver what waits, for a bounded time."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(STOP_S)


def attributes(line: Line) -> Mapping[str, Any]:
    """The line's values by prefixed names; the deployment's values each by their own."""
    deployment = line.get("deployment", {})
    return {
        **{PREFIX + name: value for name, value in line.items() if name != "deployment"},
        **{f"{PREFIX}deployment.{name}": value for name, value in deployment.items()},
    }


class _Counting:
    """An exporter of the SDK that knows how many records wait, and counts those that are lost."""

    def __init__(self, exporter: Any, where: str, faults: Faults) -> None:
        self._exporter = exporter
        self._where = where
        self._faults = faults
        self._counting = threading.Lock()
        self._waiting = 0

    def take(self) -> bool:
        """Whether there is room for one more record."""
        with self._counting:
            has_room = self._waiting < MOST_WAITING
            self._waiting += has_room
            return has_room

    def export(self, batch: Sequence[Any]) -> Any:
        """Deliver a batch; as the SDK calls it."""
        result = self._exporter.export(batch)
        with self._counting:
            self._waiting -= len(batch)
        if result.name != "SUCCESS":
            for _ in batch:
                self._faults.note(WHERE, f"{self._where} took no OTLP logs")
        return result

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing waits here."""
        return True

    def shutdown(self) -> None:
        """The end."""
        self._exporter.shutdown()


def open_otlp_logs(url: str, faults: Faults) -> OtlpLogs | None:
    """The sender to an address; None where there is none, or packages are missing.

    Args:
        url: of the receiver; empty for none.
        faults: counts what went wrong.
    """
    return faults.attempt(WHERE, OtlpLogs, url, faults) if url else None
