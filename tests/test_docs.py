"""README says what the code does."""

import re

from llm_carbon_meter import cli
from llm_carbon_meter.config import DATA_VARIABLE
from tests.support.documents import README, rendered

TEXT = README.read_text("utf-8")


def test_the_tables_are_those_of_the_code() -> None:
    """Metrics, headers and settings; ``python -m tests.support.documents`` mends a difference."""
    assert rendered(TEXT) == TEXT


def test_every_metric_that_is_named_exists() -> None:
    """Prose and examples use names of the table."""
    table = TEXT.split("<!-- metrics -->")[1].split("<!-- end of metrics -->")[0]
    known = set(re.findall(r"`(llm_carbon_meter_\w+)`", table))
    named = set(re.findall(r"\b(llm_carbon_meter_\w+)\{", TEXT))
    assert named
    assert named <= known


def test_every_verb_is_named_and_no_other() -> None:
    """The command line and README know the same verbs."""
    verbs = next(
        set(action.choices) for action in cli._parser()._actions if isinstance(action.choices, dict)
    )
    named = set(re.findall(r"llm-carbon-meter ([a-z-]+)\b", TEXT))
    assert named == verbs


def test_every_setting_that_is_named_exists() -> None:
    """No variable of README is unknown to the code."""
    table = TEXT.split("<!-- settings -->")[1].split("<!-- end of settings -->")[0]
    known = set(re.findall(r"`(LLM_CARBON_METER_\w+)`", table))
    assert set(re.findall(r"(LLM_CARBON_METER_[A-Z_]+)", TEXT)) <= known | {DATA_VARIABLE}
