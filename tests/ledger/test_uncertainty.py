"""The interval of a measured figure: what it rests on, and where there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.ledger.coefficient_learner import USUAL_ERROR, CoefficientLearner
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.ledger.uncertainty import uncertainty
from llm_carbon_meter.records import EnergyReading, Quality, RequestEnergy, Source
from tests.support.steps.cost_models import H100, LLAMA
from tests.support.steps.ledgers import end_of, step_of


@given(error=st.floats(0, 1), steps=st.integers(0, 10_000))
def test_more_steps_narrow_it_and_errors_widen_it(error: float, steps: int) -> None:
    """And a figure whose last tick is to come is less certain than the final one."""
    final = uncertainty(error, steps, provisional=False)
    assert uncertainty(error, steps + 1, provisional=False) <= final
    assert uncertainty(error + 0.1, steps, provisional=False) > final
    assert uncertainty(error, steps, provisional=True) > final >= error


def served(
    source: Source, quality: Quality, met: Quality, policy: str = "shapley"
) -> list[RequestEnergy]:
    """A request's provisional and final figure."""
    learner = CoefficientLearner(H100) if source is Source.MEASURED else None
    ledger = EnergyLedger(["gpu"], LLAMA, source, quality, policy=policy, learner=learner)
    ledger.observe_reading(EnergyReading(0.0, "gpu", 0.0))
    ledger.observe_steps([step_of(0, 1, "a")])
    provisional = ledger.close(end_of("a", 1))
    ledger.observe_reading(EnergyReading(1.0, "gpu", 300.0, quality=met))
    return [provisional, *ledger.settle(1)]


def test_a_learner_that_has_just_begun_says_that_it_knows_little() -> None:
    """Both figures have an interval, as wide as the usual error of a new learner at least."""
    provisional, final = served(Source.MEASURED, Quality.COUNTER, Quality.COUNTER)
    assert final.uncertainty is not None
    assert provisional.uncertainty is not None
    assert provisional.uncertainty > final.uncertainty > 0.9 * USUAL_ERROR


@pytest.mark.parametrize(
    ("source", "quality", "met"),
    [
        (Source.MODELLED, Quality.MODELLED, Quality.MODELLED),
        (Source.MEASURED, Quality.COUNTER, Quality.CONTENDED),
        (Source.MEASURED, Quality.COUNTER, Quality.RESET),
    ],
)
def test_what_is_not_a_counters_own_has_none(
    source: Source, quality: Quality, met: Quality
) -> None:
    """Modelled joules, joules beside another process, and joules of which some are missing."""
    assert served(source, quality, met)[-1].uncertainty is None


@pytest.mark.parametrize("policy", ["tokens", "flops", "equal"])
def test_other_policies_do_not_say_what_a_request_caused(policy: str) -> None:
    """A figure by tokens may be far from it, however well windows are expected."""
    records = served(Source.MEASURED, Quality.COUNTER, Quality.COUNTER, policy)
    assert [record.uncertainty for record in records] == [None, None]
