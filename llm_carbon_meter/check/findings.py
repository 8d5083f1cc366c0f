"""What ``llm-carbon-meter check`` found: one line a finding, and its figures for ``--json``."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from llm_carbon_meter.power.nvml.nvml_meter import worst
from llm_carbon_meter.records import Quality

LINE: Final = 110
"""Characters of a line on a terminal."""
TOPIC: Final = 12
"""Characters of the longest topic: findings are printed before the last one is known."""


class Verdict(StrEnum):
    """What a finding means for metering."""

    OK = "ok"
    NOTE = "note"
    """The part works, and its operator should know something."""
    FAILS = "FAILS"
    """Nothing is metered until this is mended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    verdict: Verdict
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of the finding, for programs."""
    quality: Quality | None = None
    """Of the requests of a server started now; None where the finding says nothing of it."""

    @property
    def block(self) -> str:
        """Verdict, topic and text beside each other, the text on as many lines as it takes."""
        label = f"{self.verdict:<5}  {self.topic:<{TOPIC}}  "
        return textwrap.fill(
            self.text,
            LINE,
            initial_indent=label,
            subsequent_indent=" " * len(label),
            break_long_words=False,
            break_on_hyphens=False,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was looked at, and what requests would be labelled."""

    findings: Sequence[Finding]

    @property
    def quality(self) -> Quality:
        """The worst that a finding tells."""
        told = [finding.quality for finding in self.findings if finding.quality is not None]
        return worst(*told) if told else Quality.MODELLED

    @property
    def works(self) -> bool:
        """Whether a server started now would be metered."""
        return all(finding.verdict is not Verdict.FAILS for finding in self.findings)

    def conclusion(self) -> str:
        """What all findings come to, for people."""
        if not self.works:
            failing = [f.topic.strip() for f in self.findings if f.verdict is Verdict.FAILS]
            return f"Nothing would be metered: see {', '.join(failing)}."
        return f"Requests would be metered, with quality {self.quality}."

    def json(self) -> str:
        """For programs."""
        report = {
            "works": self.works,
            "quality": self.quality if self.works else None,
            "findings": [
                {"topic": f.topic, "verdict": f.verdict.lower(), "text": f.text, **f.figures}
                for f in self.findings
            ],
        }
        return json.dumps(report, indent=2)
