"""The folder grafana/: as the code makes it, and naming only what exists."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.boards.runbooks import DEFAULT_URL, UID, runbook_url, runbooks
from grafana.dashboards import FOLDER, files
from llm_carbon_meter.exporters.prometheus import PREFIX
from tests.support.made.exporters import whole_exporter

from .tools import Tools
from .tools import dashboards as read_dashboards

RULES = FOLDER / "prometheus" / "rules"
RULE_FILES = ("recording", "budgets", "alerts")
DASHBOARDS = read_dashboards()
PANELS = [(name, panel) for name, board in DASHBOARDS.items() for panel in board["panels"]]
UNITS = {"watt", "watth", "massg", "percentunit", "s", "reqps", "cps", "none", "suffix: g/kWh"}


def rules(name: str) -> Iterator[dict[str, Any]]:
    """Every rule of a file."""
    for group in yaml.safe_load((RULES / f"{name}.yml").read_text())["groups"]:
        yield from group["rules"]


def exported() -> set[str]:
    """Names of all series that the exporter can have."""
    exporter = whole_exporter()
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        metric._name + suffix for metric in exporter._metrics for suffix in suffixes[metric._type]
    }


def test_what_is_generated_is_what_the_code_makes() -> None:
    """``python -m grafana.dashboards`` mends a difference."""
    for path, text in files().items():
        assert path.read_text("utf-8") == text, f"{path.name} is not what the code makes"


def test_every_metric_in_dashboards_and_rules_is_exported() -> None:
    """A renamed metric would leave an empty panel or an alert that never fires."""
    text = "".join(target["expr"] for _, panel in PANELS for target in panel["targets"])
    text += "".join(rule["expr"] for name in RULE_FILES for rule in rules(name))
    names = set(re.findall(rf"(?<![\w:]){PREFIX}\w+", text))
    assert names
    assert names <= exported()


def test_every_recorded_series_that_is_used_is_recorded() -> None:
    """And is called level:metric:operations."""
    recorded = {rule["record"] for name in ("recording", "budgets") for rule in rules(name)}
    assert all(re.fullmatch(r"\w+:llm_carbon_meter_\w+:\w+", name) for name in recorded)
    used = {
        name
        for file in RULE_FILES
        for rule in rules(file)
        for name in re.findall(r"\w+:llm_carbon_meter_\w+:\w+", rule["expr"])
    }
    assert used <= recorded


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_panel_has_unit_and_description(board: str, panel: dict[str, Any]) -> None:
    """The description names every metric; rates follow the resolution of the picture."""
    unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
    assert unit in UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert set(re.findall(rf"{PREFIX}\w+", target["expr"])) <= set(
            re.findall(rf"{PREFIX}\w+", panel["description"])
        )
        assert all(span == "$__rate_interval" for span in re.findall(r"\[(.*?)\]", target["expr"]))


@pytest.mark.parametrize("board", DASHBOARDS.values(), ids=DASHBOARDS)
def test_a_dashboard_fits_beside_vllms_own(board: dict[str, Any]) -> None:
    """Its variables, tags, cursor and a uid that stays; panels neither overlap nor stick out."""
    variables = [variable["name"] for variable in board["templating"]["list"]]
    assert variables == ["datasource", "job", "model_name", "engine", "source"]
    assert {"vllm", "llm_carbon_meter"} == set(board["tags"])
    assert board["graphTooltip"] == 1
    assert board["uid"].startswith("llm-carbon-meter-")
    cells = [
        (x, y)
        for panel in board["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    """Severity, a description with the value, a runbook, and a guard against silence."""
    for rule in rules("alerts"):
        notes = rule["annotations"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "$value" in notes["description"]
        assert notes["runbook_url"] == runbook_url(rule["alert"])
        assert "> 0" in rule["expr"] or "up == 1" in rule["expr"]


def test_every_alert_has_a_runbook_that_its_link_opens() -> None:
    """A section of README, and the panel of Grafana's dashboard that has its text and its id."""
    alerts = [rule["alert"] for rule in rules("alerts")]
    assert list(runbooks()) == alerts
    board = json.loads((FOLDER / "dashboards" / "runbooks.json").read_text("utf-8"))
    assert board["uid"] == UID
    panels = {f"{DEFAULT_URL}?viewPanel={panel['id']}": panel for panel in board["panels"]}
    for alert in alerts:
        panel = panels[runbook_url(alert)]
        assert panel["title"] == alert
        assert panel["options"] == {"mode": "markdown", "content": runbooks()[alert]}
        # A relative link would lead nowhere from Grafana.
        assert "](" not in panel["options"]["content"]


def test_the_default_link_is_to_grafana_as_compose_starts_it() -> None:
    """Its published port, and a folder of dashboards that it provisions."""
    grafana = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["grafana"]
    assert grafana["ports"] == ["3000:3000"]
    assert DEFAULT_URL.startswith("http://localhost:3000/d/")
    assert any(mount.startswith("./dashboards:") for mount in grafana["volumes"])


def test_links_lead_elsewhere_where_that_is_asked_for() -> None:
    """The dashboard in another Grafana, or another page's anchors: in both files of rules."""
    assert runbook_url("IdleEnergyHigh", "https://g/d/" + UID) == f"https://g/d/{UID}?viewPanel=7"
    made = files("https://wiki/energy")
    for path in (RULES / "alerts.yml", FOLDER / "kubernetes" / "prometheus-rule.yaml"):
        assert made[path].count("runbook_url: https://wiki/energy#") == len(runbooks())
    assert "https://wiki/energy#idleenergyhigh" in made[RULES / "alerts.yml"]


def test_the_examples_of_deployments_are_readable() -> None:
    """Compose mounts what is there; provisioning and manifests are YAML of the right kind."""
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert set(compose["services"]) == {"vllm", "prometheus", "alertmanager", "grafana"}
    mounts = [
        mount for service in compose["services"].values() for mount in service.get("volumes", ())
    ]
    assert all((FOLDER / mount.split(":")[0]).exists() for mount in mounts)
    kinds = {
        yaml.safe_load(path.read_text())["kind"] for path in (FOLDER / "kubernetes").glob("*.yaml")
    }
    assert kinds == {"ServiceMonitor", "PrometheusRule"}
    for path in (FOLDER / "provisioning").rglob("*.yaml"):
        assert yaml.safe_load(path.read_text())["apiVersion"] == 1


@pytest.mark.slow
def test_promtool_accepts_the_configuration(prometheus_tools: Tools) -> None:
    """Prometheus, its rules and Alertmanager, all as they are in the folder."""
    prometheus_tools.promtool("check", "config", str(FOLDER / "prometheus" / "prometheus.yml"))
    prometheus_tools.amtool("check-config", str(FOLDER / "prometheus" / "alertmanager.yml"))


@pytest.mark.slow
def test_every_alert_fires_when_it_should(prometheus_tools: Tools) -> None:
    """The cases of rules_test.yml: with a reason, without one, and without traffic."""
    cases = Path(__file__).with_name("rules_test.yml")
    assert "SUCCESS" in prometheus_tools.promtool("test", "rules", str(cases))


def test_every_alert_has_a_case() -> None:
    """None is left out of rules_test.yml."""
    cases = yaml.safe_load(Path(__file__).with_name("rules_test.yml").read_text())["tests"]
    fired = {
        alert["alertname"]
        for case in cases
        for alert in case.get("alert_rule_test", ())
        if alert.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in rules("alerts")}
