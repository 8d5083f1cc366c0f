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
from llm_carbon_meter.predictor.drift import SERIES, WATCHED, DriftMonitor, DriftReport, Verdict
from llm_carbon_meter.records import RequestRecord

logger = logging.getLogger("llm_carbon_meter")

LOOK_S: Final = 1.0
"""The windows are looked at no more often."""
ADVICE: Final = (
    "Check that model, GPU and engine version in a record's `deployment` are right and that nobody "
    "else computes on the GPU; if so, measure this deployment and run `llm-carbon-meter train`."
)


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
            if verdict.report is not None and verdict.changed_s is not None:
                self._tell(verdict, verdict.report, now_s)

    def _show(self, verdict: Verdict) -> None:
        """Gauges of too few requests are not a number: several processes' cannot be removed."""
        report = verdict.report
        ratios = {
            series: report.errors[series].drift_ratio if report else math.nan for series in SERIES
        }
        alert = float(verdict.drifting) if report else math.nan
        self._metrics.drift(verdict.engine, ratios, {WATCHED: alert})

    def _tell(self, verdict: Verdict, report: DriftReport, now_s: float) -> None:
        changed_s = verdict.changed_s or 0.0
        text = self._text(verdict, report, now_s, changed_s)
        # Both: where logging is not configured, nothing below a warning is seen.
        logger.warning("%s", text)
        body = webhook_body(self._model_name, verdict, report, text)
        tell_drift(body["event"], body)
        if self._webhook is not None:
            self._webhook.post(body)

    def _text(self, verdict: Verdict, report: DriftReport, now_s: float, changed_s: float) -> str:
        who = f"llm_carbon_meter: drift: estimates of {self._model_name}, engine {verdict.engine}, "
        errors = describe(report, now_s)
        if not verdict.drifting:
            return f"{who}are right again after {changed_s:.0f} s: {errors}."
        limit = f"the threshold is {self._config.drift_threshold:.0%}"
        return f"{who}are off: {errors}; {limit}. {ADVICE}"


def describe(report: DriftReport, now_s: float) -> str:
    """By how much, over what, and since when."""
    error = report.watched
    since = time.gmtime(time.time() - (now_s - report.since_s))
    return (
        f"{error.drift_ratio:+.1%} in sum over {report.num_requests} requests since "
        f"{time.strftime('%Y-%m-%d %H:%M:%S', since)} UTC (median {error.median_ratio:+.1%}, nine "
        f"in ten within {error.p90_absolute_ratio:.1%}; calibrated, given the true lengths)"
    )


def webhook_body(
    model_name: str, verdict: Verdict, report: DriftReport, text: str
) -> Mapping[str, Any]:
    """What the webhook gets; ``text`` is what chat services show."""
    stage, basis = WATCHED
    return {
        "event": "drift_began" if verdict.drifting else "drift_ended",
        "model_name": model_name,
        "engine": verdict.engine,
        "stage": stage,
        "basis": basis,
        **report.watched._asdict(),
        "num_requests": report.num_requests,
        "text": text,
    }
