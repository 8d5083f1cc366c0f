"""Writes dashboards, the alerts' links and Kubernetes rules: ``python -m grafana.dashboards``.

``--runbooks URL`` lets the alerts link to another page than the dashboard of runbooks.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import drift, overview, requests, runbooks

FOLDER: Final = Path(__file__).parent
BOARDS: Final = {
    "overview": overview.BOARD,
    "requests": requests.BOARD,
    "drift": drift.BOARD,
    "runbooks": runbooks.BOARD,
}
ALERTS: Final = FOLDER / "prometheus" / "rules" / "alerts.yml"
_LINK: Final = re.compile(r"(- alert: (\w+)\n.*?\n +runbook_url: )\S+", re.DOTALL)


def linked_alerts(base: str) -> str:
    """alerts.yml, each alert with a link to its runbook."""

    def link(rule: re.Match[str]) -> str:
        return rule[1] + runbooks.runbook_url(rule[2], base)

    return _LINK.sub(link, ALERTS.read_text("utf-8"))


def prometheus_rule(alerts: str) -> Mapping[str, object]:
    """All rule files as one object for the Prometheus operator."""
    texts = [
        ALERTS.with_name(f"{name}.yml").read_text("utf-8") for name in ("recording", "budgets")
    ]
    groups = [group for text in (*texts, alerts) for group in yaml.safe_load(text)["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "llm-carbon-meter", "labels": {"release": "prometheus"}},
        "spec": {"groups": groups},
    }


class Readable(yaml.SafeDumper):
    """Texts of several lines stand in several lines."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")


Readable.add_representer(str, _text)


def files(base: str = runbooks.DEFAULT_URL) -> Mapping[Path, str]:
    """Everything that is generated, by where it lies; ``base`` is the page of the runbooks."""
    encoder = JSONEncoder(indent=2, sort_keys=True)
    made = {
        FOLDER / "dashboards" / f"{name}.json": encoder.encode(board.build()) + "\n"
        for name, board in BOARDS.items()
    }
    made[ALERTS] = alerts = linked_alerts(base)
    rule = yaml.dump(prometheus_rule(alerts), Dumper=Readable, sort_keys=False, width=100)
    made[FOLDER / "kubernetes" / "prometheus-rule.yaml"] = rule
    return made


def main() -> None:
    """Write every generated file."""
    parser = argparse.ArgumentParser(prog="python -m grafana.dashboards", description=__doc__)
    parser.add_argument(
        "--runbooks",
        metavar="URL",
        default=runbooks.DEFAULT_URL,
        help=f"where alerts link to: the dashboard in your Grafana (…/d/{runbooks.UID}), or a page "
        "that has the sections of grafana/README.md (default: %(default)s)",
    )
    for path, text in files(parser.parse_args().runbooks).items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
