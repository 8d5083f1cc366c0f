"""End-to-end rows that no training may see: the finished predictor is judged on them elsewhere."""

import re
from collections.abc import Mapping

FAMILIES = ("gemma", "mixtral")
WATT_COUNTS = re.compile(r"watt[\s_-]*counts", re.IGNORECASE)
OLDEST_H100_VLLM = (0, 11)


def why_withheld(row: Mapping[str, str], gpu: str, engine: str, engine_version: str) -> str | None:
    """The reason for which a row must not be used, or None; ``row`` is as it was read."""
    if any(WATT_COUNTS.search(text) for text in row.values()):
        return "withheld: Watt Counts"
    for family in FAMILIES:
        if family in row["model"].casefold():
            return f"withheld: {family.capitalize()} family"
    if "b200" in gpu.casefold():
        return "withheld: B200"
    if "h100" in gpu.casefold() and not _recent_or_other(engine, engine_version):
        return "withheld: H100 with vLLM older than 0.11"
    return None


def _recent_or_other(engine: str, engine_version: str) -> bool:
    """Whether this is surely no old vLLM: an engine or a version that is not stated could be."""
    if engine.casefold() not in ("", "unknown") and "vllm" not in engine.casefold():
        return True
    release = re.match(r"v?(\d+)\.(\d+)", engine_version)
    return release is not None and (int(release[1]), int(release[2])) >= OLDEST_H100_VLLM
