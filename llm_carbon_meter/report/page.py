"""A report as one HTML page that needs nothing else: no script, no font, no file beside it."""

import hashlib
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_carbon_meter import __version__
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.database import clean
from llm_carbon_meter.report.plots import picture, plotted
from llm_carbon_meter.report.sci import write_sci
from llm_carbon_meter.report.summary import Report, reports_per
from llm_carbon_meter.report.text import Cells, facts, harmless, tables

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; background: #f5f6f8;
     padding: 1rem; border-radius: 6px; overflow-wrap: anywhere; }
dt { font-weight: 600; } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th { vertical-align: bottom; }
td { white-space: nowrap; }
.word { text-align: left; }
img { max-width: 100%; }
"""


HASH_DIGITS: Final = 8
_HASHED: Final = re.compile(f"-[0-9a-f]{{{HASH_DIGITS}}}$")
"""How other names end: none that somebody chose may be one of them."""
METHOD: Final = (
    "Every reading of a GPU's energy counter is divided over the steps that the engine ran "
    "meanwhile, and each step's energy over the requests in it, by what each added to the step's "
    "cost (Shapley value). Grams are the energy times the power usage effectiveness (PUE) and the "
    "grid's intensity then, and a share of the emissions of the hardware's making by its time. "
    "Measured figures come from counters; modelled ones from data sheets, where there is no sensor."
)


def write_page(
    connection: "DuckDBPyConnection", report: Report, path: Path, title: str = ""
) -> None:
    """Save the page.

    Args:
        connection: with the table of lines.
        report: of these.
        path: of the page.
        title: whose requests they are; empty for those of all.

    Raises:
        MeterError: it cannot be written, or there is no matplotlib.
    """
    text = page(connection, report, title)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MeterError(
            f"the page {str(path)!r} cannot be written: {error}; give another --html"
        ) from error


def write_pages(
    connection: "DuckDBPyConnection", whole: Report, name: str, folder: Path
) -> list[Path]:
    """Save a page and an SCI report for each value of a grouping, without the operator's own facts.

    Returns:
        The pages.

    Raises:
        MeterError: one cannot be written, or there is no matplotlib.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MeterError(
            f"the folder {str(folder)!r} cannot be made: {error}; give another --html-per"
        ) from error
    pages = []
    for value, report in reports_per(connection, whole, name).items():
        target = folder / f"{file_name(value)}.html"
        write_page(connection, report, target, f"{name} {clean(value)}")
        write_sci(report, target.with_suffix(".json"))
        pages.append(target)
    return pages


def file_name(value: str) -> str:
    """A name that every file system takes, another one for each value."""
    plain = re.sub(r"[^a-z0-9._-]", "_", value.lower()).lstrip(".")[:80]
    if plain == value and not _HASHED.search(value):
        return plain
    return f"{plain}-{hashlib.sha256(value.encode()).hexdigest()[:HASH_DIGITS]}"


def page(connection: "DuckDBPyConnection", report: Report, title: str = "") -> str:
    """The whole document; arguments as of `write_page`.

    Raises:
        MeterError: there is no matplotlib.
    """
    shown = "".join(
        f"<h2>{escape(title)}</h2>\n{_table(cells, words)}\n"
        for title, (cells, words) in tables(report).items()
    )
    whose = f" of {title}" if title else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Energy and carbon of LLM requests{escape(whose)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>
<body>
<h1>Energy and carbon of {report.requests} LLM requests{escape(whose)}, by {report.question}</h1>
{_facts(report)}
{shown}<h2>Plots</h2>
{_pictures(connection, report)}
<h2>Method</h2>
<p>{METHOD}</p>
<p><small>llm-carbon-meter {__version__}</small></p>
</body>
</html>
"""


def _facts(report: Report) -> str:
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts(report))
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def _table(cells: Cells, words: int) -> str:
    head, *body = cells
    headings = [name.replace("_", " ").replace("wh", "Wh") for name in head]
    lines = [_row("th", headings, words)]
    for labels_and_figures in body:
        labels = [harmless(label) for label in labels_and_figures[:words]]
        lines.append(_row("td", [*labels, *labels_and_figures[words:]], words))
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _row(tag: str, texts: Sequence[str], words: int) -> str:
    kinds = [' class="word"' if place < words else "" for place in range(len(texts))]
    cells = (
        f"<{tag}{kind}>{escape(text)}</{tag}>" for text, kind in zip(texts, kinds, strict=True)
    )
    return "<tr>" + "".join(cells) + "</tr>"


def _pictures(connection: "DuckDBPyConnection", report: Report) -> str:
    return "\n".join(
        f'<img alt="Energy of requests, {escape(plot.source)}" '
        f'src="data:image/png;base64,{picture(plot)}">'
        for plot in plotted(connection, report)
    )
