"""Writes our dashboards and the Kubernetes rules: ``python -m grafana.dashboards``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import drift, overview, requests

FOLDER: Final = Path(__file__).parent
BOARDS: Final = {
    "overview": overview.BOARD,
    "requests": requests.BOARD,
    "drift": drift.BOARD,
}


def prometheus_rule() -> Mapping[str, object]:
    """Both rule files as one object for the Prometheus operator."""
    groups = []
    for name in ("recording", "alerts"):
        text = (FOLDER / "prometheus" / "rules" / f"{name}.yml").read_text("utf-8")
        groups += yaml.safe_load(text)["groups"]
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


def files() -> Mapping[Path, str]:
    """Everything that is generated, by where it lies."""
    encoder = JSONEncoder(indent=2, sort_keys=True)
    made = {
        FOLDER / "dashboards" / f"{name}.json": encoder.encode(board.build()) + "\n"
        for name, board in BOARDS.items()
    }
    rule = yaml.dump(prometheus_rule(), Dumper=Readable, sort_keys=False, width=100)
    made[FOLDER / "kubernetes" / "prometheus-rule.yaml"] = rule
    return made


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, "utf-8")
