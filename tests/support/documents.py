"""Makes the documents' tables: ``python -m tests.support.documents`` writes them, a test compares.

The figures of the predictor are from ``examples/predictor``, as the verb ``evaluate`` left them;
those of the ledger from ``tests/fairness/results``. The table of engines takes minutes and is made
by tests/comparisons/versions.py.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from llm_carbon_meter.config import PREFIX as SETTING
from llm_carbon_meter.config import Config, settings_table
from llm_carbon_meter.exporters.columns import figure
from llm_carbon_meter.exporters.headers import PREFIX, energy_headers, estimate_headers
from llm_carbon_meter.exporters.log_line import columns_table
from llm_carbon_meter.records import EnergyEstimate, Quality, Source
from llm_carbon_meter.training.study.evaluate.names import PLOTS, RESULTS
from llm_carbon_meter.training.study.evaluate.report import readme_section

from .made.energies import ENERGY
from .made.exporters import whole_exporter
from .made.usual import LINE_BYTES, PACKED

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
PACKAGE: Final = ROOT / "llm_carbon_meter"
SERVERS: Final = PACKAGE / "servers" / "README.md"
"""Has the table of engines."""
EVALUATION: Final = ROOT / "examples" / "predictor"
FAIRNESS: Final = ROOT / "tests" / "fairness" / "results"
FOLDERS: Final = ("llm_carbon_meter", "grafana", "examples", "tests")

MONTH_DAYS: Final = 31

MEANINGS = {
    "Estimated-Wh": "energy estimated before the request ran, calibrated",
    "Estimated-Low-Wh": "one in ten costs less: answer lengths and the model's own error",
    "Estimated-High-Wh": "one in ten costs more",
    "Estimated-gCO2eq": "operational emissions of the estimate",
    "Measured-Wh": "energy measured by a sensor, this request's share (not in streams' headers)",
    "Measured-gCO2eq": "its operational emissions",
    "Modelled-Wh": "instead of Measured where no sensor was read",
    "Modelled-gCO2eq": "instead of Measured where no sensor was read",
    "Quality": "how far to trust it: " + ", ".join(Quality),
    "Status": "`provisional` until the counter tick of its last step is settled, then `final`",
}


def documents() -> Iterator[Path]:
    """Every README and the changelog."""
    yield README
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*README.md"))
    yield PACKAGE / "CHANGELOG.md"


def metrics_table() -> str:
    """Every metric that the exporter registers."""
    exporter = whole_exporter()
    rows = [
        "| metric | type | labels beside `model_name`, `engine` | meaning |",
        "|" + " --- |" * 4,
    ]
    for collector in sorted(exporter._metrics, key=lambda c: c._name):
        suffix = "_total" if collector._type == "counter" else ""
        labels = ", ".join(f"`{name}`" for name in collector._labelnames[2:])
        name = f"`{collector._name}{suffix}`"
        rows.append(f"| {name} | {collector._type} | {labels} | {collector._documentation} |")
    return "\n".join(rows)


def files_of_a_month(per_s: float, max_bytes: float) -> int:
    """Rotated files that hold a month of 31 days: full ones, and those that end at midnight.

    Args:
        per_s: requests per second.
        max_bytes: of a file.
    """
    return math.ceil(MONTH_DAYS * 86_400 * per_s * LINE_BYTES / max_bytes) + MONTH_DAYS


def retention_table() -> str:
    """What holds a month at some rates."""
    usual, names = Config(), ("request_log_max_bytes", "request_log_files")
    assert files_of_a_month(1, usual.request_log_max_bytes) <= usual.request_log_files
    first, second = (f"`{SETTING}{name.upper()}`" for name in names)
    defaults = f"{usual.request_log_max_bytes} (default)", f"{usual.request_log_files} (default)"
    rows = [
        f"| requests per second | {first} | {second} | disk, packed |",
        "| --- | --- | --- | --- |",
        f"| 1 | {defaults[0]} | {defaults[1]} | {_packed(1)} |",
    ]
    for per_s, max_bytes in ((10, 640_000_000), (100, 1_000_000_000)):
        files = files_of_a_month(per_s, max_bytes)
        rows.append(f"| {per_s} | {max_bytes} | {files} | {_packed(per_s)} |")
    return "\n".join(rows)


def _packed(per_s: float) -> str:
    return figure(MONTH_DAYS * 86_400 * per_s * LINE_BYTES / PACKED / 1e9) + " GB"


def headers_table() -> str:
    """Every response header, as the formatting functions name them."""
    estimate = EnergyEstimate("flop", 1, 1, 1, 1, 1, True, 1)
    names = dict.fromkeys(estimate_headers(estimate))
    for source in (Source.MEASURED, Source.MODELLED):
        names |= dict.fromkeys(energy_headers(replace(ENERGY, source=source)))
    rows = ["| header | meaning |", "| --- | --- |"]
    rows += [f"| `{name}` | {MEANINGS[name.removeprefix(PREFIX)]} |" for name in names]
    return "\n".join(rows)


def evaluation() -> str:
    """What the predictor's committed evaluation found."""
    results = json.loads((EVALUATION / RESULTS).read_text("utf-8"))
    folder = os.path.relpath(EVALUATION, PACKAGE / "predictor")
    return readme_section(results, folder, PLOTS)


def fairness(kind: str) -> str:
    """Errors by policy and phase, and how often the committed comparison reaches each goal.

    Args:
        kind: of the simulated worlds.
    """
    parts = (FAIRNESS / kind / "results.md").read_text("utf-8").strip().split("\n\n")
    heads = "| policy |", "| total |", "| goal:", "Short requests"
    return "\n\n".join(part for part in parts if part.startswith(heads))


PARTS: Final[Mapping[Path, Mapping[str, Callable[[], str]]]] = {
    PACKAGE / "README.md": {"settings": settings_table},
    PACKAGE / "exporters" / "README.md": {
        "metrics": metrics_table,
        "headers": headers_table,
        "columns": columns_table,
        "retention": retention_table,
    },
    PACKAGE / "ledger" / "README.md": {
        kind: partial(fairness, kind) for kind in ("roofline", "kernels", "kept-out")
    },
    PACKAGE / "predictor" / "README.md": {"evaluation": evaluation},
}
"""The generated parts of each document by name."""


def replaced(text: str, name: str, table: str) -> str:
    """A document with one generated part exchanged."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    assert pattern.search(text), f"the document has no part {begin}"
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def rendered(document: Path) -> str:
    """A document with every generated part made anew."""
    text = document.read_text("utf-8")
    for name, table in PARTS[document].items():
        text = replaced(text, name, table())
    return text


def table_column(name: str, pattern: str) -> set[str]:
    """What a generated table has in backticks, as far as it looks so."""
    (make,) = (parts[name] for parts in PARTS.values() if name in parts)
    return set(re.findall(f"`({pattern})`", make()))


if __name__ == "__main__":
    for document in PARTS:
        document.write_text(rendered(document), "utf-8")
