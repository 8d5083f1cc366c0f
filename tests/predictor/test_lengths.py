"""How long answers are: the prior, what was served, and the cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.data.azure_trace import code_quantiles, conversation_quantiles
from llm_carbon_meter.predictor.lengths import (
    MEMORY,
    PRIOR_WEIGHT,
    REFRESH,
    OutputLengths,
    exact_length,
)

FLAT = [0.0, 100.0]


def test_before_anything_was_served_the_prior_holds() -> None:
    """Mean and 10 % and 90 % quantiles of the prior."""
    forecast = OutputLengths(FLAT).forecast(None)
    assert forecast == pytest.approx((50, 10, 90))


def test_the_prior_of_the_package_is_the_azure_conversation_trace() -> None:
    """Its median answer has 129 tokens, its middle fifth of prompts others."""
    tables = conversation_quantiles()
    middle = len(tables.output_tokens) // 2
    assert tables.output_tokens[middle] == 129
    assert tables.prompt_tokens[middle] == 1020
    assert tables.rows == 19366
    for table in (tables.prompt_tokens, tables.output_tokens, tables.interarrival_s):
        assert list(table) == sorted(table)
    assert len(tables.output_by_prompt_fifth) == 5


def test_code_completions_have_short_answers() -> None:
    """The other trace's median: 13 tokens to a prompt of 1469."""
    tables = code_quantiles()
    middle = len(tables.output_tokens) // 2
    assert tables.output_tokens[middle] == 13
    assert tables.prompt_tokens[middle] == 1469
    assert tables.rows == 8819


def test_max_tokens_cuts_the_forecast() -> None:
    """No answer is longer than its limit; the mean falls with it."""
    lengths = OutputLengths(FLAT)
    cut = lengths.forecast(40)
    assert cut.high == 40
    assert cut.mean == pytest.approx((40 * 41 / 2 + 60 * 40) / 101)
    assert lengths.forecast(1000) == lengths.forecast(None)


def test_a_hard_cut_keeps_the_mean_inside() -> None:
    """Cut at 5, nine answers in ten have 5 tokens and the mean lies below: low follows it."""
    cut = OutputLengths(FLAT).forecast(5)
    assert cut.low == cut.mean < 5 == cut.high


@given(
    served=st.lists(st.integers(0, 10_000), max_size=200),
    max_tokens=st.none() | st.integers(1, 100) | st.integers(100, 10_000),
)
def test_the_interval_holds_the_mean(served: list[int], max_tokens: int | None) -> None:
    """Also where a hard cut pushes the mean below the 10 % quantile."""
    lengths = OutputLengths(conversation_quantiles().output_tokens)
    for output in served:
        lengths.observe(output)
    forecast = lengths.forecast(max_tokens)
    assert 0 <= forecast.low <= forecast.mean <= forecast.high
    assert max_tokens is None or forecast.high <= max_tokens


def test_a_single_answer_changes_nothing_yet() -> None:
    """The sorted copy is renewed only now and then."""
    lengths = OutputLengths(FLAT)
    for _ in range(REFRESH - 1):
        lengths.observe(1000)
    assert lengths.forecast(None).mean == pytest.approx(50)
    lengths.observe(1000)
    assert lengths.forecast(None).mean > 300


def test_what_was_served_outweighs_the_prior() -> None:
    """After many equal answers the forecast is that answer."""
    lengths = OutputLengths(FLAT)
    for _ in range(20 * PRIOR_WEIGHT):
        lengths.observe(700)
    forecast = lengths.forecast(None)
    assert forecast.mean == pytest.approx(700, rel=0.01)
    assert (forecast.low, forecast.high) == pytest.approx((700, 700), rel=0.01)


def test_old_answers_are_forgotten() -> None:
    """Only the last 2048 answers count."""
    lengths = OutputLengths(FLAT)
    for _ in range(3 * MEMORY):
        lengths.observe(5000)
    for _ in range(MEMORY):
        lengths.observe(10)
    forecast = lengths.forecast(None)
    assert forecast.high == pytest.approx(10, rel=0.01)
    assert forecast.mean < 11


def test_an_exact_length_is_exact() -> None:
    """Mean, low and high are the length."""
    assert exact_length(42) == (42, 42, 42)


def test_an_answer_that_was_cut_says_that_it_would_have_been_longer() -> None:
    """Single tokens of a beam search, or a client that wants ten, make no other answers short."""
    lengths = OutputLengths(FLAT)
    before = lengths.forecast(None)
    for _ in range(4 * PRIOR_WEIGHT):
        lengths.observe(1, cut=True)
    assert lengths.forecast(None).mean == pytest.approx(before.mean, rel=0.1)
    for _ in range(4 * PRIOR_WEIGHT):
        lengths.observe(70, cut=True)
    assert 70 < lengths.forecast(None).mean < 100
    lengths.observe(5000, cut=True)
    assert lengths.forecast(None).high <= 5000
