"""The time of a step on the GPU, its expected power, its account and its counts."""

import pytest

from llm_carbon_meter.ledger.ledger import Window
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.records import Account, StepEvent
from tests.support.steps.cost_models import H100, QWEN
from tests.support.steps.ledgers import (
    GPUS,
    book,
    close_to,
    end_of,
    expected_watts,
    ledger_of,
    overhead,
    read,
    step_of,
)


def test_overlapping_dispatches_do_not_overlap_on_the_gpu() -> None:
    """Step N occupies [max(dispatched N, done N-1), done N], also over several calls."""
    ledger = ledger_of()
    first = ledger.observe_steps([step_of(0, 2, "a"), step_of(0.5, 3, "a")])
    second = ledger.observe_steps([step_of(2.5, 4, "a"), step_of(6, 7, "a")])
    spans = [(window.start_s, window.end_s) for window in first + second]
    assert spans == [(0, 2), (2, 3), (3, 4), (6, 7)]


def test_windows_carry_the_expected_watts() -> None:
    """A modelled source gets the power of every step, idle power for overhead."""
    ledger = ledger_of(model=QWEN)
    step = step_of(0, 1, "a", "b", new=[300, 1], accounts=[0, 1])
    windows = ledger.observe_steps([step, overhead(1, 2)])
    assert windows == [
        Window(0, 1, expected_watts(step, QWEN)),
        Window(1, 2, H100.idle_watts),
    ]


def test_an_empty_step_is_idle_time() -> None:
    """A step without requests did nothing; an overhead step without requests did something."""
    ledger = ledger_of()
    assert ledger.observe_steps([StepEvent(0, 0.0, 1.0)]) == []
    ledger.observe_steps([overhead(1, 2)])
    read(ledger, "gpu-0", (0, 0), (2, 140))
    ledger.settle(2)
    assert book(ledger.totals()[0]) == {"overhead": 70, "idle": 70}


def test_dropped_results_are_waste() -> None:
    """A waste row is booked as waste, on the request and in the account."""
    ledger = ledger_of()
    read(ledger, "gpu-0", (0, 0), (1, 90))
    accounts = [Account.WASTE, Account.DECODE, Account.RECOMPUTE]
    ledger.observe_steps([step_of(0, 1, "a", "b", "c", accounts=accounts)])
    for name in "abc":
        ledger.close(end_of(name, 1))
    a, b, c = ledger.settle(1)
    assert (a.accounts.waste, b.decode_joules, c.accounts.recompute) == close_to((30, 30, 30))
    assert a.joules == close_to(30)
    assert book(ledger.totals()[0]) == close_to({"decode": 30, "recompute": 30, "waste": 30})


def test_steps_and_tokens_are_counted_by_phase() -> None:
    """A step with prefill and decode is mixed; tokens go to their own account."""
    ledger = ledger_of()
    fill, go_on, again, waste = Account.PREFILL, Account.DECODE, Account.RECOMPUTE, Account.WASTE
    ledger.observe_steps(
        [
            step_of(0, 1, "a", "b", accounts=[fill, fill], new=[5, 7]),
            step_of(1, 2, "a", "b", accounts=[go_on, fill], new=[1, 2]),
            step_of(2, 3, "a", "b", accounts=[again, waste], new=[9, 1]),
            step_of(3, 4, "a", "b", accounts=[go_on, go_on]),
            overhead(4, 5),
        ]
    )
    assert ledger.counts.steps == {"prefill": 1, "decode": 1, "mixed": 2}
    assert ledger.counts.tokens == {"prefill": 14, "decode": 3, "recompute": 9, "waste": 1}


def test_exchanges_are_a_part_of_the_books_by_gpu() -> None:
    """Each step's joules x its share of time on the link; None without tensor parallelism."""
    model = CostModel(H100, step_costs(built_in_model("Llama-3.1-8B"), 2))
    ledger = ledger_of(GPUS, model=model)
    step = step_of(0.0, 0.01, "a")
    ledger.observe_steps([step])
    read(ledger, "gpu-0", (0.0, 0.0), (0.02, 8.0))
    read(ledger, "gpu-1", (0.0, 0.0), (0.02, 4.0))
    ledger.settle(0.02)
    assert model.costs is not None
    sent = model.costs.network_per_token + model.costs.network_per_sample
    share = sent / H100.link_bytes_per_s / 0.01
    for gpu in ledger.totals():
        decode = gpu.account_joules[Account.DECODE]
        assert gpu.allreduce_modelled_joules == pytest.approx(share * decode)
        assert sum(gpu.account_joules) == pytest.approx(gpu.counter_joules)
    assert ledger_of().totals()[0].allreduce_modelled_joules is None
