"""The documents say what the code does."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from llm_carbon_meter import cli
from llm_carbon_meter.config import DATA_VARIABLE
from llm_carbon_meter.records import Account, Quality
from tests.support.documents import PACKAGE, PARTS, README, ROOT, documents, rendered, table_column

TEXTS: Mapping[Path, str] = {path: path.read_text("utf-8") for path in documents()}
EVERYTHING = "\n".join(TEXTS.values())
each_document = pytest.mark.parametrize(
    "document", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)
DRAWN = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
"""Diagrams and Python, fenced."""
INDENTED = re.compile(r"^ {4}.*$", re.MULTILINE)
"""Commands and what they print; brackets in them are no links."""


@pytest.mark.parametrize("document", PARTS, ids=lambda path: path.parent.name)
def test_the_tables_are_those_of_the_code(document: Path) -> None:
    """``python -m tests.support.documents`` mends a difference."""
    assert rendered(document) == TEXTS[document]


@each_document
def test_every_metric_that_is_named_exists(document: Path) -> None:
    """Names with labels, and names alone in backticks."""
    known = table_column("metrics", r"llm_carbon_meter_\w+")
    named = re.findall(r"`?\b(llm_carbon_meter_\w+)(?:\{|`)", TEXTS[document])
    assert set(named) <= known


def test_every_verb_is_named_and_no_other() -> None:
    """The command line and the documents know the same verbs."""
    assert set(re.findall(r"llm-carbon-meter ([a-z-]+)\b", EVERYTHING)) == cli.VERBS.keys()


@each_document
def test_every_setting_that_is_named_exists(document: Path) -> None:
    """No variable is unknown to the code."""
    known = table_column("settings", r"LLM_CARBON_METER_\w+") | {DATA_VARIABLE}
    assert set(re.findall(r"LLM_CARBON_METER_[A-Z_]*[A-Z]", TEXTS[document])) <= known


def test_every_quality_and_account_is_explained() -> None:
    """A row each, in the tables of power/ and ledger/."""
    power, ledger = (TEXTS[PACKAGE / room / "README.md"] for room in ("power", "ledger"))
    assert set(Quality) == set(re.findall(r"^\| `(\w+)` \|", power, re.MULTILINE))
    cells = re.findall(r"^\| (`.*?`) \| (?:yes|no) ", ledger, re.MULTILINE)
    explained = [name.strip("`") for cell in cells for name in cell.split(", ")]
    assert explained == [account.label for account in Account]


def test_the_front_page_is_short_and_begins_with_demo_and_test() -> None:
    """At most 150 lines, ``make demo`` first, ``make test`` second, and its status at once."""
    lines = TEXTS[README].splitlines()
    assert len(lines) <= 150
    assert "alpha; not yet validated on a real GPU" in " ".join(lines[:30])
    commands = re.findall(
        r"^ {4}(\S[^#\n]*?) *(?:#.*)?$", DRAWN.sub("", TEXTS[README]), re.MULTILINE
    )
    assert commands[:2] == ["make demo", "make test"]


@each_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    """To a file of the repository and, where it has an anchor, to a heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", INDENTED.sub("", DRAWN.sub("", TEXTS[document]))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        place = (document.parent / path).resolve() if path else document
        assert place.exists(), target
        assert not anchor or anchor in _anchors(place), target


@cache
def _anchors(document: Path) -> set[str]:
    """Headings as forges make anchors of them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
