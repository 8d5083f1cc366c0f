"""Public end-to-end rows that no training may see: the finished predictor is judged on them.

A user's own campaign is no public source: its rows may be of any GPU."""

import re
from collections.abc import Mapping
from typing import Final

SOURCES: Final = {
    "Watt Counts": re.compile(r"watt[\s_-]*counts", re.IGNORECASE),
    "Argonne's LLM-Inference-Bench": re.compile(r"argonne|llm[\s_-]*inference[\s_-]*bench", re.I),
}
"""Public sources, by how they name themselves in any column of a row."""
GPUS: Final = {
    "B200": re.compile(r"b200", re.IGNORECASE),
    "GH200": re.compile(r"gh[\s_-]*200", re.IGNORECASE),
    "A2": re.compile(r"(?<![a-z0-9])a2(?![a-z0-9])", re.IGNORECASE),
    "A800": re.compile(r"a800", re.IGNORECASE),
    "RTX 4090D": re.compile(r"4090[\s_-]*d(?![a-z])", re.IGNORECASE),
    "RTX 5090": re.compile(r"5090(?![\s_-]*d(?![a-z]))", re.IGNORECASE),
}
"""GPUs of any source, as data sets and drivers write them."""


def why_withheld(row: Mapping[str, str], gpu: str) -> str | None:
    """The reason for which a row must not be used, or None; ``row`` is as it was read."""
    for source, names in SOURCES.items():
        if any(names.search(text) for text in row.values()):
            return f"withheld: {source}"
    for name, names in GPUS.items():
        if names.search(gpu):
            return f"withheld: {name}"
    return None
