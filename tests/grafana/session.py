"""A metered server under load, scraped by a real Prometheus with our rules in short time."""

import contextlib
import math
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grafana.dashboards import FOLDER
from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.receiver import Receiver
from tests.support.servers.metered import Metered
from tests.support.waiting import eventually

from .tools import Prometheus, Tools, dashboards

CLIENTS = 2
PAUSE_S = 0.25
LAST = 60
"""Requests that say what is right."""
ALERT = "EnergyEstimateDrift"
TENANT_HEADER = "X-Tenant"
PRICED = {
    "TENANT_FROM": f"header:{TENANT_HEADER}",
    "ENERGY_PRICE": "0.3",
}
"""So that the rules of tenants have data."""
WINDOW = "10s"
"""Instead of minutes and hours, in rules and dashboards."""
VARIABLES = {
    "$job": ".*",
    "$model_name": ".*",
    "$engine": ".*",
    "$source": "measured",
    "$__rate_interval": WINDOW,
}


def substituted(expr: str) -> str:
    """A panel's expression as Grafana would send it, everything chosen."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def shortened(rules: str) -> str:
    """Rules that wait seconds where they would wait minutes and hours."""
    rules = re.sub(r"\[\w+:\w+\]", f"[{WINDOW}:1s]", rules)
    return re.sub(r"for: \w+", "for: 3s", re.sub(r"\[\w+\]", f"[{WINDOW}]", rules))


@dataclass
class Story:
    """What happened when, in lines that can be read."""

    begun_s: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        self.lines.append(f"{time.monotonic() - self.begun_s:6.1f} s  {line}")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass
class Session:
    """Everything that runs, and how its estimates are spoilt."""

    metered: Metered
    prometheus: Prometheus
    receiver: Receiver
    joules_file: Path
    story: Story
    begun_unix_s: float = field(default_factory=time.time)
    posts: list[tuple[str, Any]] = field(default_factory=list)
    """Messages that came before they were waited for."""
    heard: dict[str, Any] = field(default_factory=dict)
    """Messages by event or status."""
    boards: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The dashboards as they stood at the end, each target with its series."""
    ended_unix_s: float = math.inf

    def estimate(self, times: float) -> None:
        """Let all estimates from now on be so many times what the last requests used."""
        records = self.metered.logged()[-LAST:]
        measured = sum(record["energy_joules"] for record in records)
        # As `scaled_server.JoulesPerToken` has it: a machine that has warmed up needs less.
        tokens = sum(record["output_tokens"] / record["mean_running"] for record in records)
        self.joules_file.write_text(str(times * measured / tokens))

    def finished(self) -> float:
        """Requests so far."""
        return self.metered.metric("llm_carbon_meter_requests_total")

    def drift_ratio(self) -> float:
        """Of the calibrated estimates, given the true lengths."""
        told = {"stage": "calibrated", "basis": "conditional"}
        return self.metered.metric("llm_carbon_meter_drift_ratio", **told)

    def wait_for_alert(self, state: str | None) -> None:
        """Wait until Prometheus has the alert in a state; None: has it no more."""
        eventually(lambda: self.prometheus.alerts().get(ALERT) == state, f"{ALERT} {state}", 60)
        self.story.tell(f"Prometheus: {ALERT} {state or 'is over'}")

    def hear_server(self, event: str) -> None:
        """Wait for the server's own webhook on the estimates that are given the true lengths."""
        self.heard[event] = body = self._hear(
            lambda path, body: path == "/drift" and body["basis"] == "conditional"
        )
        assert body["event"] == event
        self.story.tell(f"server's webhook: {event}, {body['drift_ratio']:+.0%}")

    def hear_alertmanager(self, status: str) -> None:
        """Wait for Alertmanager's word on the drift of estimates that are given the true lengths.

        Other alerts come by the same way; one of a group may be over before the others.
        """
        body = self._hear(lambda path, body: path == "/alerts" and bool(told(body, status)))
        (self.heard[status],) = told(body, status)
        text = self.heard[status]["annotations"]["description"]
        text = re.sub(r"127\.0\.0\.1:\d+", "the server", text)
        self.story.tell(f"Alertmanager: {status}: {text}")

    def _hear(self, wanted: Callable[[str, Any], bool]) -> Any:
        """The first message of a kind that has not been heard yet."""

        def find() -> Any:
            with contextlib.suppress(queue.Empty):
                self.posts.append(self.receiver.next(0.1))
            place = next((i for i, post in enumerate(self.posts) if wanted(*post)), None)
            return None if place is None else self.posts.pop(place)

        return eventually(find, "a message", 60)[1]

    def curves(self, expr: str) -> list[dict[str, Any]]:
        """A panel's expression over the whole session, second by second."""
        end_s = min(time.time(), self.ended_unix_s)
        return self.prometheus.range(substituted(expr), self.begun_unix_s, end_s, 1.0)

    def end(self) -> None:
        """Keep what the dashboards show while there is load."""
        self.ended_unix_s, self.boards = time.time(), dashboards()
        for board in self.boards.values():
            for target in (target for panel in board["panels"] for target in panel["targets"]):
                target["series"] = self.curves(target["expr"])


def told(message: Mapping[str, Any], status: str) -> list[Any]:
    """What a message of Alertmanager says of that drift, where it is of this status."""
    if message["groupLabels"]["alertname"] != ALERT:
        return []
    return [
        alert
        for alert in message["alerts"]
        if alert["labels"]["basis"] == "conditional" and alert["status"] == status
    ]


def ask(metered: Metered, number: int) -> None:
    """A request like many; the same number is the same request."""
    chance = random.Random(number)
    body = {
        "model": MODEL_NAME,
        "prompt": "word " * chance.randint(1, 60),
        "max_tokens": chance.randint(8, 24),
        "ignore_eos": True,
    }
    metered.http("/v1/completions", body, {TENANT_HEADER: "acme"})


@contextlib.contextmanager
def load(metered: Metered) -> Iterator[None]:
    """Some requests a second while the block runs."""
    stop = threading.Event()

    def client(first: int) -> None:
        number = first
        while not stop.wait(PAUSE_S):
            ask(metered, number)
            number += CLIENTS

    clients = [threading.Thread(target=client, args=(first,)) for first in range(CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in clients:
            thread.join()


@contextlib.contextmanager
def watched(tools: Tools, metered: Metered, folder: Path, alerts_url: str) -> Iterator[Prometheus]:
    """Prometheus and Alertmanager with our files, but in seconds."""
    (folder / "rules").mkdir()
    for file in (FOLDER / "prometheus" / "rules").glob("*.yml"):
        (folder / "rules" / file.name).write_text(shortened(file.read_text()))
    routes = yaml.safe_load((FOLDER / "prometheus" / "alertmanager.yml").read_text())
    routes["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    routes["receivers"][0]["webhook_configs"][0]["url"] = alerts_url
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(routes))
    with tools.alertmanager(folder / "alertmanager.yml") as address:
        config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [
            metered.url.removeprefix("http://")
        ]
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [address]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with tools.prometheus(folder / "prometheus.yml") as prometheus:
            yield prometheus


def drift_lines(log: Path) -> list[str]:
    """What the server's log says about drift."""
    lines = log.read_text(errors="replace").splitlines()
    return [line[line.index("drift:") :] for line in lines if "llm_carbon_meter: drift:" in line]
