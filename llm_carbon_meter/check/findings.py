"""What ``llm-carbon-meter check`` found: one line a finding, and its figures for ``--json``."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from llm_carbon_meter.records import Quality

LINE: Final = 110
"""Characters of a line on a terminal."""


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


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was looked at, and what requests would be labelled."""

    findings: Sequence[Finding]
    quality: Quality

    @property
    def works(self) -> bool:
        """Whether a server started now would be metered."""
        return all(finding.verdict is not Verdict.FAILS for finding in self.findings)

    def table(self) -> str:
        """For people."""
        width = max(len(finding.topic) for finding in self.findings)
        blocks = [_block(finding, width) for finding in self.findings]
        return "\n".join([*blocks, "", self._conclusion()])

    def _conclusion(self) -> str:
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


def _block(finding: Finding, width: int) -> str:
    """Verdict, topic and text beside each other, the text on as many lines as it takes."""
    label = f"{finding.verdict:<5}  {finding.topic:<{width}}  "
    return textwrap.fill(
        finding.text,
        LINE,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )
