"""The watch of an API server: gauges, log lines and the webhook, in time."""

import logging
import math
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.prometheus import PrometheusExporter
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend import drift_watch
from llm_carbon_meter.frontend.drift_watch import DriftWatch
from tests.support.made.records import judged_estimate, judged_record
from tests.support.receiver import Receiver

LABELS = {"model_name": "llama", "engine": "0", "stage": "calibrated"}


class Clock:
    """Stands where the test puts it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(drift_watch.time, "monotonic", lambda: self.now_s)


class World:
    """A watch with a registry of its own: 10 requests, a window of a minute."""

    def __init__(self, clock: Clock, webhook: str = "") -> None:
        self.clock, self.registry, self.faults = clock, CollectorRegistry(), Faults()
        metrics = PrometheusExporter("llama", owns_totals=True, registry=self.registry)
        config = Config(drift_min_requests=10, drift_window_s=60.0, drift_webhook=webhook)
        self.watch = DriftWatch(config, "llama", metrics, self.faults)

    def serve(self, estimated: float, count: int = 20, end_to_end: float = 10.0) -> None:
        """Requests of 10 J, one a second, each followed by a look.

        Args:
            estimated: joules, given the length.
            count: of requests.
            end_to_end: joules that clients were told.
        """
        for _ in range(count):
            self.clock.now_s += 1.0
            self.watch.observe(
                judged_record(10.0, estimated, estimate=judged_estimate(20.0, end_to_end))
            )
            self.watch.look()

    def gauge(self, name: str, basis: str = "conditional") -> float | None:
        labels = LABELS | {"basis": basis}
        return self.registry.get_sample_value(f"llm_carbon_meter_{name}", labels)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Makes worlds with a clock of ours."""
    clock = Clock(monkeypatch)
    return lambda **arguments: World(clock, **arguments)


def test_gauges_are_absent_until_there_is_enough(make: Callable[..., World]) -> None:
    """Then they show the drift, and no alarm while it is small."""
    world = make()
    world.serve(11.0, count=9)
    assert world.gauge("drift_ratio") is None
    assert world.gauge("drift_alert") is None
    world.serve(11.0, count=1)
    assert world.gauge("drift_ratio") == pytest.approx(0.1)
    assert world.gauge("drift_alert") == 0


def test_too_few_are_no_number_again(make: Callable[..., World]) -> None:
    """A quiet hour neither keeps an old figure nor shows a 0."""
    world = make()
    world.serve(20.0)
    world.clock.now_s += 3600
    world.watch.look()
    for name in ("drift_ratio", "drift_alert"):
        value = world.gauge(name)
        assert value is not None
        assert math.isnan(value)


def test_drift_is_logged_once_when_it_begins_and_once_when_it_ends(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """By how much, over how many, since when, and what to do."""
    world = make()
    with caplog.at_level(logging.INFO, "llm_carbon_meter"):
        world.serve(5.0, count=60)
        assert world.gauge("drift_alert") == 1
        world.serve(10.0, count=90)
        assert world.gauge("drift_alert") == 0
    began, ended = (entry.getMessage() for entry in caplog.records)
    which = "llama, engine 0, calibrated, given the true lengths and concurrency, are off"
    assert f"estimates of {which}: -50.0% in sum over 10 requests since" in began
    assert "the threshold is 25%" in began
    assert "llm-carbon-meter train" in began
    assert "are right again after" in ended


def test_what_clients_were_told_has_an_alarm_of_its_own(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """Right given length and company, a quarter as told: gauge, log line and webhook say which."""
    with Receiver() as receiver, caplog.at_level(logging.INFO, "llm_carbon_meter"):
        world = make(webhook=f"{receiver.url}/hook")
        world.serve(10.0, end_to_end=2.5)
        began = receiver.next()[1]
        alerts = [world.gauge("drift_alert", basis) for basis in ("conditional", "end_to_end")]
        world.serve(10.0, count=90)
        ended = receiver.next()[1]
    assert alerts == [0, 1]
    assert world.gauge("drift_alert", "end_to_end") == 0
    assert (began["event"], began["basis"]) == ("drift_began", "end_to_end")
    assert (ended["event"], ended["basis"]) == ("drift_ended", "end_to_end")
    assert began["drift_ratio"] == pytest.approx(-0.75)
    assert [entry.getMessage() for entry in caplog.records] == [began["text"], ended["text"]]
    assert "calibrated, as told before the requests ran, are off: -75.0%" in began["text"]
    assert "other lengths" in began["text"]


def test_a_webhook_hears_of_both(make: Callable[..., World]) -> None:
    """With the figures and the sentence of the log."""
    with Receiver() as receiver:
        world = make(webhook=f"{receiver.url}/hook")
        world.serve(5.0, count=60)
        path, began = receiver.next()
        world.serve(10.0, count=90)
        ended = receiver.next()[1]
    assert path == "/hook"
    assert (began["event"], ended["event"]) == ("drift_began", "drift_ended")
    assert began["drift_ratio"] == pytest.approx(-0.5)
    assert began["num_requests"] == 10
    assert "are off" in began["text"]
    assert not world.faults.counts


def test_looking_often_costs_nothing(make: Callable[..., World]) -> None:
    """Within a second of the last look nothing is judged."""
    world = make()
    world.serve(11.0, count=9)
    world.watch.observe(judged_record(10.0, 11.0))
    world.watch.look()
    assert world.gauge("drift_ratio") is None
