"""Tells of drift: gauges; a log line, a span and the webhook when it begins and when it ends."""

import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.otel import tell_drift
from llm_carbon_meter.exporters.prometheus import PrometheusExporter
from llm_carbon_meter.exporters.webhook import Webhook
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.predictor.drift import (
    SERIES,
    Alarm,
    DriftMonitor,
    DriftReport,
    Error,
    Verdict,
)
from llm_carbon_meter.records import RequestRecord

logger = logging.getLogger("llm_carbon_meter")

LOOK_S: Final = 1.0
"""The windows are looked at no more often."""
BASES: Final = {
    "conditional": "given the true lengths and concurrency",
    "end_to_end": "as told before the requests ran",
}
ADVICE: Final = {
    "conditional": "Check that model, GPU and engine version in a record's `deployment` are right "
    "and that nobody else computes on the GPU; if so, measure this deployment and run "
    "`llm-carbon-meter train`.",
    "end_to_end": "Where the estimates given the true lengths are right, answers have other "
    "lengths than before, or other requests come and go while one runs.",
}


class DriftWatch:
    """The drift of one model, watched by the one API server that owns the engine-wide metrics.

    Args:
        config: threshold, window, least number of requests, webhook.
        model_name: as clients know it.
        metrics: shows the gauges.
        faults: counts what the webhook did not take.
    """

    def __init__(
        self, config: Config, model_name: str, metrics: PrometheusExporter, faults: Faults
    ) -> None:
        self._config = config
        self._model_name = model_name
        self._metrics = metrics
        self._webhook = Webhook(config.drift_webhook, faults) if config.drift_webhook else None
        self._monitor = DriftMonitor(
            config.drift_threshold, config.drift_window_s, config.drift_min_requests
        )
        self._looked_s = -math.inf
        # Answers end in the server's loop, engines and other servers are heard in a thread.
        self._lock = threading.Lock()

    def observe(self, record: RequestRecord) -> None:
        """A record is final, of this API server or another one."""
        with self._lock:
            self._monitor.observe(record, time.monotonic())

    def look(self) -> None:
        """Show where things stand, and tell of a change; to be called often."""
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._looked_s < LOOK_S:
                return
            self._looked_s = now_s
            verdicts = self._monitor.judge(now_s)
        for verdict in verdicts:
            self._show(verdict)
            for alarm in verdict.alarms:
                if verdict.report is not None and alarm.changed_s is not None:
                    self._tell(verdict.engine, verdict.report, alarm, now_s)

    def _show(self, verdict: Verdict) -> None:
        """Gauges of too few requests are not a number: several processes' cannot be removed."""
        report = verdict.report
        ratios = {
            series: report.errors[series].drift_ratio if report else math.nan for series in SERIES
        }
        alerts = {
            alarm.series: float(alarm.drifting) if report else math.nan for alarm in verdict.alarms
        }
        self._metrics.drift(verdict.engine, ratios, alerts)

    def _tell(self, engine: int, report: DriftReport, alarm: Alarm, now_s: float) -> None:
        text = self._text(engine, report, alarm, now_s)
        # Both: where logging is not configured, nothing below a warning is seen.
        logger.warning("%s", text)
        body = webhook_body(self._model_name, engine, report, alarm, text)
        tell_drift(body["event"], body)
        if self._webhook is not None:
            self._webhook.post(body)

    def _text(self, engine: int, report: DriftReport, alarm: Alarm, now_s: float) -> str:
        stage, basis = alarm.series
        which = f"{stage}, {BASES[basis]}"
        who = (
            f"llm_carbon_meter: drift: estimates of {self._model_name}, engine {engine}, {which}, "
        )
        errors = describe(report, report.errors[alarm.series], now_s)
        if not alarm.drifting:
            return f"{who}are right again after {alarm.changed_s:.0f} s: {errors}."
        limit = f"the threshold is {self._config.drift_threshold:.0%}"
        return f"{who}are off: {errors}; {limit}. {ADVICE[basis]}"


def describe(report: DriftReport, error: Error, now_s: float) -> str:
    """By how much, over what, and since when."""
    since = time.gmtime(time.time() - (now_s - report.since_s))
    return (
        f"{error.drift_ratio:+.1%} in sum over {report.num_requests} requests since "
        f"{time.strftime('%Y-%m-%d %H:%M:%S', since)} UTC (median {error.median_ratio:+.1%}, nine "
        f"in ten within {error.p90_absolute_ratio:.1%})"
    )


def webhook_body(
    model_name: str, engine: int, report: DriftReport, alarm: Alarm, text: str
) -> Mapping[str, Any]:
    """What the webhook gets; ``text`` is what chat services show."""
    stage, basis = alarm.series
    return {
        "event": "drift_began" if alarm.drifting else "drift_ended",
        "model_name": model_name,
        "engine": engine,
        "stage": stage,
        "basis": basis,
        **report.errors[alarm.series]._asdict(),
        "num_requests": report.num_requests,
        "text": text,
    }
