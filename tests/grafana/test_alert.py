"""The whole way of an alert: a real server's estimates go wrong, operators hear of it, and it ends.

From the same session: every panel and rule has data, and Prometheus likes the exposition.
"""

import csv
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from grafana.boards.runbooks import runbook_url
from grafana.dashboards import FOLDER
from llm_carbon_meter.cli import main
from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.receiver import Receiver
from tests.support.servers.metered import VLLM_SERVE, StartServer
from tests.support.waiting import eventually

from .draw import draw
from .scaled_server import FILE_VARIABLE
from .session import ALERT, PRICED, Session, Story, ask, drift_lines, load, watched
from .tools import Tools

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PROGRAM = (sys.executable, "-m", "tests.grafana.scaled_server")
SETTINGS = {
    "DRIFT_WINDOW_S": "15",
    "DRIFT_MIN_REQUESTS": "10",
    # Right estimates may be off by half and by double where others compute on this machine.
    "DRIFT_THRESHOLD": "1.0",
    # Refused on purpose: `errors_total` shall have something to show.
    "PUE": "nonsense",
}
POWER = {0: [(0.0, 250.0), (10.0, 350.0), (20.0, 250.0)]}
SPOILT = 7.0


@pytest.fixture(scope="module")
def session(
    start_server: StartServer, prometheus_tools: Tools, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """Server, Prometheus, Alertmanager and a receiver of both webhooks, after all has happened."""
    folder = tmp_path_factory.mktemp("prometheus")
    joules_file = folder / "joules_per_token"
    joules_file.write_text("1.0")
    with Receiver() as receiver:
        settings = SETTINGS | PRICED | {"DRIFT_WEBHOOK": f"{receiver.url}/drift"}
        environment = {f"LLM_CARBON_METER_{name}": value for name, value in settings.items()}
        environment[FILE_VARIABLE] = str(joules_file)
        with (
            start_server(
                program=PROGRAM, environment=environment, power=POWER, cycle_s=20.0
            ) as metered,
            watched(prometheus_tools, metered, folder, f"{receiver.url}/alerts") as prometheus,
        ):
            session = Session(metered, prometheus, receiver, joules_file, Story())
            with load(metered):
                go_wrong_and_right_again(session)
                session.end()
            yield session


def go_wrong_and_right_again(session: Session) -> None:
    """Spoil the estimates until the alert is with the operators; mend them until it is over."""
    # What is right is measured under the load, and far below it nothing alarms.
    session.story.tell("load begins")
    eventually(lambda: session.finished() > 100, "requests that show what is right", 300)
    session.estimate(1.0)
    session.story.tell(f"{session.finished():.0f} requests; now estimates are right")
    eventually(lambda: session.metered.metric("llm_carbon_meter_drift_alert") == 0, "no drift", 60)
    eventually(lambda: ALERT not in session.prometheus.alerts(), "no alert", 60)
    session.estimate(SPOILT)
    session.story.tell(f"{session.finished():.0f} requests; now estimates are {SPOILT:.0f}-fold")
    session.hear_server("drift_began")
    session.wait_for_alert("firing")
    session.hear_alertmanager("firing")
    session.estimate(1.0)
    session.story.tell("estimates are right again")
    session.hear_server("drift_ended")
    session.wait_for_alert(None)
    session.hear_alertmanager("resolved")
    eventually(lambda: abs(session.drift_ratio()) < 0.4, "a window of right estimates", 60)


def test_the_server_itself_tells_of_drift_and_of_its_end(session: Session) -> None:
    """One line in the log and one message each, with the same figure."""
    lines = drift_lines(session.metered.server.log)
    began, ended = [line for line in lines if "given the true lengths and concurrency" in line]
    assert "are off" in began
    assert "are right again" in ended
    told = session.heard["drift_began"]
    assert f"{told['drift_ratio']:+.1%}" in began
    assert told["drift_ratio"] > 1.0
    assert session.heard["drift_ended"]["drift_ratio"] < 0.8


def test_operators_get_the_alert_and_its_end(session: Session) -> None:
    """By Alertmanager's webhook, with the value and where to read on."""
    firing, resolved = session.heard["firing"], session.heard["resolved"]
    (value,) = re.findall(r"is (\S+)% off", firing["annotations"]["description"])
    assert float(value) > 100
    assert firing["annotations"]["runbook_url"] == runbook_url(ALERT)
    assert resolved["fingerprint"] == firing["fingerprint"]


def test_every_panel_has_data_and_can_be_drawn(session: Session, tmp_path: Path) -> None:
    """No query of a dashboard is empty; the pictures are made from the same answers."""
    empty = [
        (name, panel["title"], target["expr"])
        for name, board in session.boards.items()
        for panel in board["panels"]
        for target in panel["targets"]
        if not target["series"]
    ]
    assert not empty
    for name, board in session.boards.items():
        picture = tmp_path / f"{name}.png"
        draw(board, session.begun_unix_s, session.ended_unix_s, picture)
        assert picture.stat().st_size > 10_000
    lines = (session.story.text(), "The server's log:", *drift_lines(session.metered.server.log))
    (tmp_path / "alert-log.txt").write_text("\n".join(lines) + "\n")


def test_a_period_is_reported_from_prometheus(session: Session, tmp_path: Path) -> None:
    """Requests, tokens, energy by account and grams of both scopes, as the counters grew."""
    begun = datetime.fromtimestamp(session.begun_unix_s, UTC).isoformat()
    table = tmp_path / "report.csv"
    asked = ["report", session.prometheus.url, "--since", begun, "--csv", str(table)]
    assert main(asked) == 0
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert (row["model"], row["source"]) == (MODEL_NAME, "measured")
    figures = {name: float(row[name]) for name in list(row)[2:]}
    accounts = [name for name in figures if name.endswith("_wh") and name != "energy_wh"]
    assert figures["energy_wh"] == pytest.approx(sum(figures[name] for name in accounts))
    counted = sum(session.metered.accounts(source="measured").values()) / 3600
    assert 0.5 * counted < figures["energy_wh"] < 1.1 * counted
    assert 50 < figures["requests"] <= 1.1 * session.finished()
    assert min(figures["operational_grams"], figures["embodied_grams"]) > 0


def test_every_rule_is_well_and_has_data(session: Session) -> None:
    """What is recorded is there, alerts are evaluated, and the series that they ask for exist."""
    groups = session.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    written = [
        rule
        for file in (FOLDER / "prometheus" / "rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    assert len(rules) == len(written)
    names = {rule["record"] for rule in written if "record" in rule}
    for rule in written:
        names |= set(re.findall(r"(?<![\w:])llm_carbon_meter_\w+", rule["expr"]))
    assert not [name for name in sorted(names) if not session.curves(name)]


def test_prometheus_finds_no_fault_with_the_exposition(
    session: Session, prometheus_tools: Tools
) -> None:
    """``promtool check metrics`` on our part of what a scraper reads."""
    check_exposition(session.metered.http("/metrics")[2].decode(), prometheus_tools)


def check_exposition(text: str, tools: Tools) -> None:
    """Let promtool look at our families."""
    lines = [line for line in text.splitlines() if "llm_carbon_meter_" in line]
    assert len(lines) > 100
    faults = tools.faults_of_metrics("\n".join(lines) + "\n")
    # It takes watt-hours for hours; users ask for them, and joules stand beside.
    misread = re.compile(r'\S+_watt_hours\S* use base unit "seconds" instead of "hours"')
    assert not [fault for fault in faults if not misread.fullmatch(fault)]


class TestTwoApiServers:
    """Multi-process mode, where the scrape is put together from files."""

    PROGRAM = VLLM_SERVE

    def test_the_exposition_is_as_good_and_drift_has_one_owner(
        self, start_server: StartServer, prometheus_tools: Tools
    ) -> None:
        """Requests of either server count in one window; no family is there twice."""
        settings = {"LLM_CARBON_METER_DRIFT_MIN_REQUESTS": "12"}
        two = ("--api-server-count", "2")
        with start_server(*two, program=self.PROGRAM, environment=settings) as metered:
            for number in range(24):
                ask(metered, number)

            def series() -> list[str]:
                return [
                    sample.labels["stage"] + " " + sample.labels["basis"]
                    for sample in metered.samples()
                    if sample.name == "llm_carbon_meter_drift_ratio"
                ]

            eventually(series, "a verdict on drift")
            samples = series()
            assert len(samples) == len(set(samples)) == 4
            check_exposition(metered.http("/metrics")[2].decode(), prometheus_tools)
