"""Exchanges, their engine requests, and the records that are kept."""

import asyncio
import itertools
import random
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.frontend import exchanges as exchanges_module
from llm_carbon_meter.frontend.exchanges import (
    MOST_IDS,
    Exchange,
    Member,
    Registry,
    current_exchange,
    response_id,
)
from llm_carbon_meter.frontend.record_store import RecordStore
from llm_carbon_meter.frontend.sums import stopped, sum_energies, sum_estimates
from llm_carbon_meter.records import (
    EnergyEstimate,
    Features,
    Outcome,
    Quality,
    RequestEnergy,
    Source,
    Status,
)
from tests.support.made.energies import energy_in_every_account, energy_of

FEATURES = Features(arrived_unix_s=0.0, max_tokens=10, num_sequences=1, concurrency=1)


def estimate_of(joules: float = 1.0) -> EnergyEstimate:
    """An estimate of equal phases."""
    return EnergyEstimate("flop", joules / 2, joules / 2, joules / 4, joules * 2, 7.0, True, joules)


def begun(registry: Registry, *internal_ids: str, external_id: str = "chatcmpl-1") -> Exchange:
    """An exchange with some engine requests under one external id."""
    exchange = Exchange()
    for internal_id in internal_ids:
        registry.begin(exchange, Member(internal_id, external_id, estimate_of()), FEATURES)
    return exchange


def test_an_exchange_gathers_its_figures() -> None:
    """Unknown, provisional, final: what a middleware waits for."""
    registry = Registry()
    exchange = begun(registry, "a")
    assert (exchange.has_energy(), exchange.energy, exchange.id) == (False, None, "a")
    assert registry.is_open("a")
    assert registry.receive(energy_in_every_account("a", Status.PROVISIONAL)) == (exchange, False)
    assert (exchange.has_energy(), exchange.is_final()) == (True, False)
    assert registry.receive(energy_in_every_account("a")) == (exchange, False)
    assert exchange.is_final()
    assert not registry.is_open("a")
    assert registry.close(exchange, answered=True)
    assert exchange.answered


def test_figures_of_other_processes_belong_to_nobody_here() -> None:
    """An unknown id changes nothing."""
    registry = Registry()
    exchange = begun(registry, "a")
    assert registry.receive(energy_in_every_account("foreign")) == (None, False)
    assert exchange.energy is None


def test_equal_external_ids_never_overwrite_each_other() -> None:
    """Clients choose and repeat them: both exchanges are found, each with its own figure."""
    registry = Registry()
    first = begun(registry, "a", external_id="chatcmpl-mine")
    second = begun(registry, "b", external_id="chatcmpl-mine")
    registry.receive(energy_in_every_account("b", Status.PROVISIONAL, joules={"decode": 99.0}))
    registry.receive(energy_in_every_account("a", Status.PROVISIONAL, joules={"decode": 1.0}))
    assert registry.find("chatcmpl-mine") == [first, second]
    assert first.energy is not None
    assert second.energy is not None
    assert (first.energy.decode_joules, second.energy.decode_joules) == (1.0, 99.0)
    assert registry.find("a") == [first]
    assert registry.find("b") == [second]
    assert registry.find("c") == []


def test_an_exchange_is_found_under_the_id_that_a_server_tells_later() -> None:
    """And under no id once it is forgotten."""
    registry = Registry()
    exchange = begun(registry, "a", external_id="a")
    registry.rename(exchange, "a", "chatcmpl-9")
    assert registry.find("chatcmpl-9") == registry.find("a") == [exchange]
    assert exchange.external_ids() == ("chatcmpl-9",)
    registry.forget(exchange)
    assert registry.find("chatcmpl-9") == registry.find("a") == []
    assert registry._external == {}


def test_many_prompts_are_entered_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """None looks at those before it: a completion may have thousands."""
    looked: list[str] = []
    monkeypatch.setattr(exchanges_module, "response_id", lambda name: looked.append(name) or name)
    begun(Registry(), *map(str, range(1000)))
    assert len(looked) == 1000


def test_children_are_summed() -> None:
    """With n = 2 the exchange has both children's joules, tokens and steps."""
    registry = Registry()
    exchange = begun(registry, "0_x", "1_x")
    registry.receive(energy_in_every_account("0_x"))
    assert exchange.energy is None
    registry.receive(
        energy_in_every_account("1_x", joules={"decode": 5.0}, num_steps=2, mean_running=10.0)
    )
    energy = exchange.energy
    assert energy is not None
    assert (energy.prefill_joules, energy.decode_joules) == (2.0, 7.0)
    assert (energy.accounts.recompute, energy.accounts.waste, energy.accounts.idle) == (
        0.5,
        1.0,
        0.25,
    )
    assert energy.joules == 10.75
    assert energy.operational_grams == 8.0
    assert (energy.prompt_tokens, energy.cached_tokens, energy.output_tokens) == (20, 6, 10)
    assert (energy.num_steps, energy.mean_running) == (8, 4.0)
    assert (energy.status, exchange.is_final()) == (Status.FINAL, True)
    assert exchange.id == "0_x"
    assert exchange.estimate is not None
    assert (exchange.estimate.joules, exchange.estimate.output_tokens) == (2.0, 14.0)


def test_what_one_child_lacks_of_host_and_water_the_exchange_lacks() -> None:
    """Half of it would look like all."""
    known = energy_of("0_x", host_joules=2.0, host_source=Source.MODELLED, water_litres=0.5)
    both = sum_energies([known, known])
    assert (both.host_joules, both.host_source, both.water_litres) == (4.0, Source.MODELLED, 1.0)
    half = sum_energies([known, replace(known, host_joules=None, water_litres=None)])
    assert (half.host_joules, half.water_litres) == (None, None)


def test_of_children_the_worst_counts() -> None:
    """One provisional, reset or aborted child makes the exchange so."""
    whole = energy_in_every_account("0_x", first_step_s=1.0, last_step_s=2.0)
    broken = energy_in_every_account(
        "1_x",
        Status.PROVISIONAL,
        quality=Quality.RESET,
        outcome=Outcome.ABORTED,
        first_step_s=0.5,
        last_step_s=9.0,
    )
    for order in ([whole, broken], [broken, whole]):
        both = sum_energies(order)
        assert (both.status, both.quality) == (Status.PROVISIONAL, Quality.RESET)
        assert (both.outcome, both.first_step_s) == (Outcome.ABORTED, 0.5)
        assert both.last_step_s == 9.0


def test_children_without_steps_have_no_company() -> None:
    """Two requests that never ran give no division by zero."""
    queued = energy_in_every_account("0_x", num_steps=0, mean_running=0.0)
    assert sum_energies([queued, queued]).mean_running == 0.0


def test_estimates_are_summed() -> None:
    """Phases, interval, tokens and grams add up; method and boundary stay."""
    both = sum_estimates([estimate_of(1.0), estimate_of(3.0)])
    assert both == EnergyEstimate("flop", 2.0, 2.0, 1.0, 8.0, 14.0, True, 4.0)


def test_a_calibration_that_moved_is_weighed_by_energy() -> None:
    """The calibrated total of the exchange is the sum of the calibrated ones."""
    early, late = estimate_of(1.0), replace(estimate_of(3.0), calibration=2.0)
    both = sum_estimates([early, late])
    assert both.joules == 4.0
    assert both.calibrated.joules == pytest.approx(7.0)


def test_an_exchange_is_not_estimated_by_half() -> None:
    """Where one child has no estimate, the sum is unknown rather than too small."""
    registry, exchange = Registry(), Exchange()
    assert exchange.estimate is None
    registry.begin(exchange, Member("0_x", "e", estimate_of()), FEATURES)
    registry.begin(exchange, Member("1_x", "e", None), FEATURES)
    assert exchange.estimate is None


def test_the_figure_that_was_shown_is_kept() -> None:
    """What left with the answer stays the provisional figure, whatever comes later."""
    registry = Registry()
    exchange = begun(registry, "a")
    assert exchange.show() is None
    shown = energy_in_every_account("a", Status.PROVISIONAL, joules={"decode": 1.0})
    registry.receive(shown)
    assert exchange.show() == shown
    registry.receive(energy_in_every_account("a", joules={"decode": 7.0}))
    assert exchange.show() == exchange.provisional == shown
    assert exchange.energy == energy_in_every_account("a", joules={"decode": 7.0})


@pytest.mark.parametrize(
    ("external_id", "in_the_body"),
    [
        ("cmpl-abc-0", "cmpl-abc"),
        ("cmpl-abc-12", "cmpl-abc"),
        ("cmpl-abc-a91449edfd3014e0-beam-1", "cmpl-abc"),
        ("cmpl-8552584940524998-a91449edfd3014e0-beam-1", "cmpl-8552584940524998"),
        ("chatcmpl-abc-a91449edfd3014e0-beam-0", "chatcmpl-abc"),
        ("cmpl-my-beam-3", "cmpl-my-beam"),
        ("cmpl-my-own-id-3", "cmpl-my-own-id"),
        ("cmpl-abc", "cmpl-abc"),
        ("cmpl-abc-x", "cmpl-abc-x"),
        ("chatcmpl-abc-0", "chatcmpl-abc-0"),
        ("abc-0", "abc-0"),
        ("", ""),
    ],
)
def test_the_id_in_the_body_of_a_completion(external_id: str, in_the_body: str) -> None:
    """Completions number their prompts; the body shows the id without the number."""
    assert response_id(external_id) == in_the_body


def test_every_id_leads_to_the_exchange() -> None:
    """The client's header, each prompt's id and the id in the body, once each and in order."""
    registry, exchange = Registry(), Exchange(["client-7"])
    registry.begin(exchange, Member("x0", "cmpl-abc-0", None), FEATURES)
    registry.begin(exchange, Member("x1", "cmpl-abc-1", None), FEATURES)
    names = ["client-7", "cmpl-abc-0", "cmpl-abc", "cmpl-abc-1"]
    assert list(exchange.external_ids()) == names
    for name in [*names, "x0", "x1"]:
        assert registry.find(name) == [exchange]


def test_the_id_in_the_answer_leads_to_the_exchange() -> None:
    """Told before or after its engine requests are made, and to one made in the background."""
    for early in (True, False):
        registry, exchange = Registry(), Exchange()
        if early:
            registry.answer(exchange, "resp_1")
        registry.begin(exchange, Member("x0", "abc", None), FEATURES)
        if not early:
            registry.answer(exchange, "resp_1")
        assert registry.find("resp_1") == [exchange]
        assert exchange.external_ids() == ("resp_1", "abc")
        registry.receive(energy_in_every_account("x0"))
        assert registry.close(exchange, answered=True)
        later = registry.begin(exchange, Member("x1", "abd", None), FEATURES)
        registry.forget(exchange)
        assert registry.find("resp_1") == [later]
        registry.forget(later)
        assert registry.find("resp_1") == []


def test_a_beam_search_counts_its_prompt_once() -> None:
    """Every token of a beam is an engine request with all tokens before it in its prompt."""
    registry, exchange = Registry(), Exchange()
    for step in range(3):
        name = f"x{step}"
        registry.begin(exchange, Member(name, f"cmpl-7-a{step}-beam-0", None), FEATURES)
        energy = energy_in_every_account(name)
        registry.receive(
            replace(energy, prompt_tokens=10 + step, cached_tokens=4 * step, output_tokens=1)
        )
    energy = exchange.energy
    assert energy is not None
    assert (energy.prompt_tokens, energy.cached_tokens, energy.output_tokens) == (10, 0, 3)
    assert energy.joules == pytest.approx(3 * energy_in_every_account("a").joules)


@pytest.mark.parametrize(
    "ids",
    [
        ["chatcmpl-a-0-beam-1"] * 4,
        [f"cmpl-a-0-beam-{number}" for number in range(4)],
        ["cmpl-a-0-beam-0", "cmpl-b-1"],
    ],
)
def test_an_id_that_looks_like_a_beam_s_hides_no_tokens(ids: list[str]) -> None:
    """Clients choose ids; the steps of a beam search have numbers of their own."""
    registry, exchange = Registry(), Exchange()
    for number, external_id in enumerate(ids):
        name = f"x{number}"
        registry.begin(exchange, Member(name, external_id, None), FEATURES)
        registry.receive(replace(energy_in_every_account(name), prompt_tokens=10))
    assert exchange.energy is not None
    assert exchange.energy.prompt_tokens == 10 * len(ids)


def test_a_record_has_a_bounded_number_of_ids() -> None:
    """Of thousands of prompts; those that it has lead to it."""
    registry, exchange = Registry(), Exchange(["mine"])
    for number in range(3 * MOST_IDS):
        member = Member(f"x{number}", f"cmpl-abc-{number}", None)
        registry.begin(exchange, member, FEATURES)
    assert len(exchange.internal_ids) == len(exchange.external_ids()) == MOST_IDS
    assert exchange.external_ids()[:3] == ("mine", "cmpl-abc-0", "cmpl-abc")


@given(
    data=st.data(),
    names=st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True),
)
def test_an_exchange_finishes_exactly_once_in_any_order(
    data: st.DataObject, names: list[str]
) -> None:
    """Of all figures and the end of the answer, the last to come finishes it."""
    registry = Registry()
    exchange = begun(registry, *names)
    events: list[RequestEnergy | None] = [None]
    events += [energy_in_every_account(name, status) for name in names for status in Status]
    events = data.draw(st.permutations(events))
    finished = [
        registry.close(exchange, True) if event is None else registry.receive(event)[1]
        for event in events
    ]
    assert finished.count(True) == 1
    needed = [
        index for index, event in enumerate(events) if event is None or event.status is Status.FINAL
    ]
    assert finished.index(True) == max(needed)
    assert not any(map(registry.is_open, names))


def test_an_exchange_finishes_exactly_once_with_threads() -> None:
    """The engine's figure and the end of the answer come from two threads at the same moment."""
    registry = Registry()
    exchanges = {f"r{number}": begun(registry, f"r{number}") for number in range(500)}
    count = itertools.count()
    meet = threading.Barrier(2)

    def receive() -> None:
        meet.wait()
        for name in exchanges:
            if registry.receive(energy_in_every_account(name))[1]:
                next(count)

    def close() -> None:
        meet.wait()
        for exchange in exchanges.values():
            if registry.close(exchange, True):
                next(count)

    threads = [threading.Thread(target=receive), threading.Thread(target=close)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert next(count) == 500
    assert not any(map(registry.is_open, exchanges))


def test_an_end_that_is_told_twice_finishes_once() -> None:
    """A record must not be counted again."""
    registry = Registry()
    exchange = begun(registry, "a")
    registry.receive(energy_in_every_account("a"))
    assert registry.close(exchange, True)
    assert not registry.close(exchange, True)


def test_what_is_unfinished_is_known() -> None:
    """Until the answer has ended and every figure is final."""
    registry = Registry()
    exchanges = [begun(registry, name) for name in "abc"]
    for name in "ab":
        registry.receive(energy_in_every_account(name))
    for exchange in exchanges[1:]:
        registry.close(exchange, True)
    assert registry.unfinished() == [exchanges[0], exchanges[2]]


async def test_waiting_ends_when_the_figure_comes_from_a_thread() -> None:
    """A figure from the channel's thread wakes the event loop at once."""
    registry = Registry()
    exchange = begun(registry, "a")
    timer = threading.Timer(0.02, registry.receive, [energy_in_every_account("a")])
    timer.start()
    assert await exchange.wait(exchange.is_final, timeout_s=5)
    timer.join()


async def test_waiting_is_bounded() -> None:
    """Without a figure the wait ends and says so; what holds already needs no wait."""
    exchange = begun(Registry(), "a")
    assert not await exchange.wait(exchange.has_energy, timeout_s=0.02)
    assert await exchange.wait(lambda: True, timeout_s=0)


def test_nobody_waits_on_a_closed_loop() -> None:
    """A figure that comes after its event loop has ended raises nothing."""
    registry = Registry()

    async def serve() -> Exchange:
        return begun(registry, "a")

    exchange = asyncio.run(serve())
    assert registry.receive(energy_in_every_account("a")) == (exchange, False)


async def test_each_task_has_its_own_exchange() -> None:
    """The context variable does not leak between requests served at the same time."""

    async def serve(exchange: Exchange) -> Exchange | None:
        current_exchange.set(exchange)
        await asyncio.sleep(random.random() / 100)
        return current_exchange.get()

    exchanges = [Exchange() for _ in range(10)]
    assert await asyncio.gather(*map(serve, exchanges)) == exchanges
    assert current_exchange.get() is None


def test_an_abort_after_the_whole_answer_was_a_stop_string() -> None:
    """Only an abort is reworded."""
    assert stopped(energy_in_every_account("a", outcome=Outcome.ABORTED)).outcome is Outcome.STOPPED
    for outcome in (Outcome.FINISHED, Outcome.FAILED, Outcome.STOPPED):
        assert stopped(energy_in_every_account("a", outcome=outcome)).outcome is outcome


def test_records_are_found_under_all_their_ids() -> None:
    """Internal ids, external ids, and several records under one ambiguous id."""
    store = RecordStore[str](limit=10)
    store.put("a", ["client", "chatcmpl-1", "a"], "first")
    store.put("b", ["client", "chatcmpl-2"], "second")
    assert store.find("a") == store.find("chatcmpl-1") == {"a": "first"}
    assert store.find("client") == {"a": "first", "b": "second"}
    assert store.find("nobody") == {}


def test_a_record_replaces_only_its_own_earlier_version() -> None:
    """Put again under its internal id, a record is new, and its old names are forgotten."""
    store = RecordStore[str](limit=10)
    store.put("a", ["old"], "first")
    store.put("b", ["old"], "other")
    store.put("a", ["new"], "second")
    assert store.find("a") == store.find("new") == {"a": "second"}
    assert store.find("old") == {"b": "other"}


def test_the_oldest_records_leave() -> None:
    """Beyond the limit the first in are the first out, under all their ids."""
    store = RecordStore[str](limit=2)
    for name in "abc":
        store.put(name, ["client", f"x-{name}"], name)
    assert store.find("client") == {"b": "b", "c": "c"}
    assert store.find("a") == store.find("x-a") == {}


@given(
    limit=st.integers(1, 4),
    puts=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcxyz"), max_size=3)),
        max_size=30,
    ),
)
def test_the_store_is_a_small_dictionary(limit: int, puts: list[tuple[str, list[str]]]) -> None:
    """It always holds the last `limit` records, each under its last ids, and nothing else."""
    store, expected = RecordStore[str](limit), dict[str, tuple[set[str], str]]()
    for number, (key, ids) in enumerate(puts):
        store.put(key, ids, str(number))
        expected.pop(key, None)
        expected[key] = ({key, *ids}, str(number))
        while len(expected) > limit:
            del expected[next(iter(expected))]
    for name in "abcdefxyz":
        found = {key: text for key, (ids, text) in expected.items() if name in ids}
        assert store.find(name) == found
    assert len(store._index) == len({name for ids, _ in expected.values() for name in ids})


def test_a_record_comes_back_as_it_was_put() -> None:
    """The store does not look into it."""
    store, record = RecordStore[dict[str, float]](1), {"energy_joules": 1.5}
    store.put("a", [], record)
    assert store.find("a")["a"] is record


def test_the_interval_of_several_is_that_of_their_joules() -> None:
    """They may all err to the same side; where one is not known, nothing is."""
    first = energy_in_every_account("0_x", joules={"decode": 30.0}, uncertainty=0.1)
    second = energy_in_every_account("1_x", joules={"decode": 10.0}, uncertainty=0.3)
    both = sum_energies([first, second])
    assert both.uncertainty is not None
    span = 0.1 * first.joules + 0.3 * second.joules
    assert both.uncertainty * both.joules == pytest.approx(span)
    assert sum_energies([first, replace(second, uncertainty=None)]).uncertainty is None
