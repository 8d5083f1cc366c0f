"""A campaign's card: what somebody must know who uses its rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from llm_carbon_meter.campaign.rows import Row, Status

METHOD: Final = """
Each row is one repetition: the same batch of equal requests, again and again, between two ticks of
the GPUs' energy counters (NVML). Joules are gross, of all GPUs of the group; idle power in what is
left of the last tick is taken off. Where the source is `modelled` there was no sensor: they are the
data sheet's board power x time. Prefill alone is an answer of one token. Prompts are random tokens.
"""
FLAWS: Final = (
    "GPUs alone: no host, network or cooling.",
    "The sensor of A100, H100 and H200 looks a quarter of the time (arXiv 2312.02741).",
    "Random prompts and weights give no natural choice of experts.",
)
ABOUT: Final = {
    "GPUs": "gpu",
    "driver": "driver",
    "power limit [W]": "power_limit_watts",
    "engines": "engine",
    "engine versions": "engine_version",
    "torch": "torch_version",
    "models": "model",
    "number formats": "dtype",
    "weights": "weights",
    "source": "source",
    "quality": "quality",
}


def card(name: str, rows: Sequence[Row]) -> str:
    """Hardware, versions, method, dates and known flaws, as Markdown."""
    dates = sorted(row["utc"][:10] for row in rows if row["utc"])
    counts = ", ".join(
        f"{count} {status}"
        for status in Status
        if (count := sum(row["status"] == status for row in rows))
    )
    facts = [f"* {title}: {', '.join(values(rows, column))}" for title, column in ABOUT.items()]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Measured by `llm-carbon-meter campaign`, {dates[0]} to {dates[-1]} (UTC). {counts}."
            if dates
            else "Nothing was measured.",
            "",
            *facts,
            METHOD,
            *(f"* {flaw}" for flaw in FLAWS),
            "",
            "Licence: not stated; that is for whoever measured.",
            "",
        ]
    )


def values(rows: Iterable[Row], column: str) -> list[str]:
    """What a column holds, each once."""
    return list(dict.fromkeys(row[column] for row in rows if row[column])) or ["unknown"]


def write_card(path: Path, rows: Sequence[Row]) -> Path:
    """Beside the CSV file."""
    target = path.with_suffix(".md")
    target.write_text(card(path.name, rows), encoding="utf-8")
    return target
