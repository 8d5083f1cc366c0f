"""What to do about each alert: the runbooks of README.md, a text panel each."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import dashboard, text
from grafana_foundation_sdk.models.text import TextMode

UID: Final = "llm-carbon-meter-runbooks"
DEFAULT_URL: Final = f"http://localhost:3000/d/{UID}"
"""The dashboard in the Grafana of compose.yaml."""
README: Final = Path(__file__).parents[1] / "README.md"
CHAPTER: Final = "## Runbooks"
HEIGHT: Final = 7


def runbooks() -> Mapping[str, str]:
    """Alert -> its section in README.md, in the order of the sections."""
    _, _, rest = README.read_text("utf-8").partition(f"\n{CHAPTER}\n")
    chapter, *_ = re.split(r"^## ", rest, flags=re.MULTILINE)
    _, *parts = re.split(r"^### (\w+)$", chapter, flags=re.MULTILINE)
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


def runbook_url(alert: str, base: str = DEFAULT_URL) -> str:
    """Where an alert's section is read: a panel of this dashboard, or an anchor of another page."""
    if base.endswith(UID):
        # A panel's plain id: Grafana 10 knows no other, later ones take it beside `panel-N`..
        return f"{base}?viewPanel={list(runbooks()).index(alert) + 1}"
    return f"{base}#{alert.lower()}"


def _board() -> dashboard.Dashboard:
    built = dashboard.Dashboard("LLM energy: runbooks").uid(UID)
    built.description("What to do about each alert of llm_carbon_meter.")
    built.tags(["llm_carbon_meter", "vllm"]).editable()
    for number, (alert, section) in enumerate(runbooks().items(), 1):
        panel = text.Panel().id(number).title(alert).mode(TextMode.MARKDOWN).content(section)
        built.with_panel(panel.span(12).height(HEIGHT))
    return built


BOARD: Final = _board()
