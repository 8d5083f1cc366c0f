"""The FLOP formula of the LLM-BENCH note, to the digit."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.carbon import CarbonIntensity
from llm_carbon_meter.predictor.azure import conversation_quantiles
from llm_carbon_meter.predictor.estimator import (
    ESTIMATORS,
    FlopConstants,
    FlopEstimator,
    note_flop,
)
from llm_carbon_meter.predictor.lengths import OutputLengths, exact_length
from llm_carbon_meter.records import EstimateQuery, MeterError
from llm_carbon_meter.specs import built_in_model
from llm_carbon_meter.units import watt_hours

LLAMA = built_in_model("Llama-3.1-8B")
GRID = CarbonIntensity(400.0, "DE", "static")
FLOP = FlopEstimator(LLAMA, GRID)


@pytest.mark.parametrize(
    ("prompt", "output", "prefill", "decode"),
    [(1000, 500, 16584810496000, 8357810176000), (1020, 129, 16927202181120, 2145121738752)],
)
def test_operations_of_the_reference(prompt: int, output: int, prefill: int, decode: int) -> None:
    """FLOPs of both phases for Llama-3.1-8B."""
    assert note_flop(LLAMA, prompt, output) == (prefill, decode)


@pytest.mark.parametrize(
    ("prompt", "output", "prefill_wh", "decode_wh", "total_wh"),
    [
        (1000, 500, 0.0138206754, 0.0348242091, 0.0486448845),
        (1020, 129, 0.0141060018, 0.0089380072, 0.0230440091),
    ],
)
def test_energy_of_the_reference(
    prompt: int, output: int, prefill_wh: float, decode_wh: float, total_wh: float
) -> None:
    """Wh of both phases to ten digits."""
    estimate = FLOP.estimate(EstimateQuery(prompt, output), exact_length(output))
    assert watt_hours(estimate.prefill_joules) == pytest.approx(prefill_wh, abs=5e-11)
    assert watt_hours(estimate.decode_joules) == pytest.approx(decode_wh, abs=5e-11)
    assert watt_hours(estimate.joules) == pytest.approx(total_wh, abs=5e-11)


def test_experts_count_as_active_parameters() -> None:
    """Mixtral is charged two experts of eight."""
    mixtral = built_in_model("Mixtral-8x7B")
    flop = note_flop(mixtral, 1, 1)
    assert flop.prefill == 2 * mixtral.active_parameters + 4 * 128 * 32 * 32
    assert flop.prefill == flop.decode


def test_a_facility_figure_has_no_pue_on_top() -> None:
    """1500 W contain the data centre: grams are joules times intensity, once."""
    estimate = FLOP.estimate(EstimateQuery(1000, 500), exact_length(500))
    assert estimate.facility
    assert estimate.operational_grams == pytest.approx(estimate.joules / 3.6e6 * 400)


@given(
    prompt=st.integers(1, 100_000),
    max_tokens=st.none() | st.integers(1, 100) | st.integers(100, 5000),
    served=st.lists(st.integers(1, 4000), max_size=40),
)
def test_the_interval_holds_the_estimate(
    prompt: int, max_tokens: int | None, served: list[int]
) -> None:
    """Low <= estimate <= high, whatever was served and wherever it is cut."""
    lengths = OutputLengths(conversation_quantiles().output_tokens)
    for output in served:
        lengths.observe(output)
    query = EstimateQuery(prompt, max_tokens)
    estimate = FLOP.estimate(query, lengths.forecast(max_tokens))
    slack = 1e-12 * estimate.joules
    assert 0 < estimate.low_joules <= estimate.joules + slack
    assert estimate.joules <= estimate.high_joules + slack
    assert max_tokens is None or estimate.output_tokens <= max_tokens


def test_a_known_length_has_no_interval() -> None:
    """Low and high meet where the output is known."""
    estimate = FLOP.estimate(EstimateQuery(10, None, output_tokens=7), exact_length(7))
    assert estimate.low_joules == estimate.high_joules == pytest.approx(estimate.joules)
    assert estimate.output_tokens == 7


@given(prompt=st.integers(1, 5000), output=st.integers(1, 3000), n=st.integers(1, 16))
def test_n_sequences_cost_n_times(prompt: int, output: int, n: int) -> None:
    """Each of n answers is charged its own prefill and decode."""
    query = EstimateQuery(prompt, None)
    one = FLOP.estimate(query, exact_length(output))
    many = FLOP.estimate(replace(query, num_sequences=n), exact_length(output))
    for name in ("prefill_joules", "decode_joules", "low_joules", "operational_grams"):
        assert getattr(many, name) == pytest.approx(n * getattr(one, name))
    assert many.output_tokens == n * one.output_tokens


def test_concurrency_is_no_input_of_the_formula() -> None:
    """Decode at 10 % utilisation assumes a batch already."""
    alone = FLOP.estimate(EstimateQuery(100, 50), exact_length(50))
    crowded = FLOP.estimate(EstimateQuery(100, 50, concurrency=32), exact_length(50))
    assert alone == crowded


@pytest.mark.parametrize(
    "query",
    [EstimateQuery(0, 10), EstimateQuery(-5, 10), EstimateQuery(10, 10, num_sequences=0)],
)
def test_senseless_queries_are_refused(query: EstimateQuery) -> None:
    """No prompt or no sequence is an error that says so."""
    with pytest.raises(MeterError, match="must be at least 1"):
        FLOP.estimate(query, exact_length(10))


def test_constants_are_configurable() -> None:
    """Twice the joules per FLOP are twice the joules; utilisation acts on its own phase."""
    query, length = EstimateQuery(100, 50), exact_length(50)
    note = FLOP.estimate(query, length)
    dear = FlopEstimator(LLAMA, GRID, FlopConstants(joules_per_flop=3e-12)).estimate(query, length)
    assert dear.joules == pytest.approx(2 * note.joules)
    busy = FlopEstimator(LLAMA, GRID, FlopConstants(decode_utilisation=0.2)).estimate(query, length)
    assert busy.prefill_joules == note.prefill_joules
    assert busy.decode_joules == pytest.approx(note.decode_joules / 2)


def test_the_formula_is_there_by_its_name() -> None:
    """Settings and the command line ask for `flop`, and estimates carry the name."""
    estimate = ESTIMATORS["flop"](LLAMA, GRID).estimate(EstimateQuery(1, 1), exact_length(1))
    assert estimate.method == "flop"
