"""A report as one HTML page that needs nothing else: no script, no font, no file beside it."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from llm_carbon_meter import __version__
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.groups import SECTIONS, by_source
from llm_carbon_meter.report.plots import picture
from llm_carbon_meter.report.text import Report, cells, facts

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
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
img { max-width: 100%; }
"""


def write_page(report: Report, path: Path) -> None:
    """Save the page.

    Raises:
        MeterError: it cannot be written, or there is no matplotlib.
    """
    text = page(report)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MeterError(
            f"the page {str(path)!r} cannot be written: {error}; give another --html"
        ) from error


def page(report: Report) -> str:
    """The whole document.

    Raises:
        MeterError: there is no matplotlib.
    """
    tables = "".join(
        f"<h2>{escape(title)}</h2>\n{_table(cells(report, columns))}\n"
        for title, columns in SECTIONS.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Energy and carbon of LLM requests</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>
<body>
<h1>Energy and carbon of {len(report.log.entries)} LLM requests, by {report.by}</h1>
{_facts(report)}
{tables}<h2>Plots</h2>
{_pictures(report)}
<p><small>llm-carbon-meter {__version__}</small></p>
</body>
</html>
"""


def _facts(report: Report) -> str:
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts(report))
    return "<dl>\n" + "\n".join(rows) + "\n</dl>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    headings = [name.replace("_", " ").replace("wh", "Wh") for name in head]
    lines = [_row("th", headings), *(_row("td", row) for row in body)]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _row(tag: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"


def _pictures(report: Report) -> str:
    return "\n".join(
        f'<img alt="Energy of requests, {escape(group.source)}" '
        f'src="data:image/png;base64,{picture(group)}">'
        for group in by_source(report.log.entries)
    )
