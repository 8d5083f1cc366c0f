"""The demo's traffic has the lengths and arrivals of the trace."""

import numpy as np

from llm_carbon_meter.data.azure_trace import conversation_quantiles
from llm_carbon_meter.demo.trace import draw

MAX_PROMPT = 512
MAX_OUTPUT = 480


def test_tables_are_quantiles() -> None:
    """Every table rises, has the promised length and the trace's number of rows behind it."""
    tables = conversation_quantiles()
    assert tables.rows == 19_366
    assert "AzurePublicDataset" in tables.source
    for table in (tables.prompt_tokens, tables.output_tokens, tables.interarrival_s):
        assert len(table) == 101
        assert list(table) == sorted(table)
    assert [len(table) for table in tables.output_by_prompt_fifth] == [21] * 5


def test_same_seed_same_traffic() -> None:
    """A seed names a traffic; another seed is another one."""
    first = draw(60, 1, MAX_PROMPT, MAX_OUTPUT)
    assert first == draw(60, 1, MAX_PROMPT, MAX_OUTPUT)
    assert first != draw(60, 2, MAX_PROMPT, MAX_OUTPUT)


def test_requests_fit_the_context() -> None:
    """No request is empty or longer than allowed, and arrivals do not go back."""
    requests = draw(5_000, 0, MAX_PROMPT, MAX_OUTPUT)
    assert {min(r.prompt_tokens, r.output_tokens) > 0 for r in requests} == {True}
    assert max(r.prompt_tokens for r in requests) == MAX_PROMPT
    assert max(r.output_tokens for r in requests) == MAX_OUTPUT
    arrivals = [r.arrival_s for r in requests]
    assert arrivals[0] == 0.0
    assert arrivals == sorted(arrivals)


def test_draws_follow_the_trace() -> None:
    """Medians and the pace of many draws are the trace's, scaled."""
    tables = conversation_quantiles()
    requests = draw(20_000, 0, MAX_PROMPT, MAX_OUTPUT)
    prompt_scale = MAX_PROMPT / tables.prompt_tokens[99]
    output_scale = MAX_OUTPUT / tables.output_tokens[99]
    median_prompt = np.median([r.prompt_tokens for r in requests])
    median_output = np.median([r.output_tokens for r in requests])
    assert abs(median_prompt / (tables.prompt_tokens[50] * prompt_scale) - 1) < 0.05
    assert abs(median_output / (tables.output_tokens[50] * output_scale) - 1) < 0.1
    assert 5.0 < len(requests) / requests[-1].arrival_s < 6.0


def test_lengths_stay_correlated() -> None:
    """The longest prompts of the trace have short answers, those of the middle have long ones."""
    requests = sorted(draw(5_000, 0, MAX_PROMPT, MAX_OUTPUT), key=lambda r: r.prompt_tokens)
    middle = np.mean([r.output_tokens for r in requests[2_000:3_000]])
    longest = np.mean([r.output_tokens for r in requests[4_000:]])
    assert middle > 2 * longest


def test_one_request() -> None:
    """A trace of one request starts at 0."""
    (request,) = draw(1, 0, MAX_PROMPT, MAX_OUTPUT)
    assert request.arrival_s == 0.0
