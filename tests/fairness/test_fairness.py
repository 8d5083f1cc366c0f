"""The simulator itself: truth adds up, sensors lie as they should, and the report says so."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llm_carbon_meter.records import Account, EnergyReading

from .__main__ import main
from .baselines import time_overlap, whole_gpu
from .engine import serve
from .judging import LEARNT, LEDGERS, POLICIES, SHAPLEYS, STARTED
from .loads import plain
from .playing import Run, learner_of, ledger_of, play, simulate, told_ledger
from .ranges import RANGES, WARM_UP_S, World, draw
from .report import GOALS
from .truth import orders

SECONDS = 8.0


def world_of(seed: int, **happens: bool) -> World:
    """A world in which only the named mishaps happen."""
    world = draw(seed)
    return replace(world, happens={**dict.fromkeys(world.happens, False), **happens})


@cache
def run_of(seed: int, concurrency: int, sensor: str = "counter", mishap: str = "") -> Run:
    """A short run."""
    world = replace(world_of(seed, **{mishap: True} if mishap else {}), sensor=sensor)
    return simulate(world, plain(concurrency), SECONDS)


def test_a_seed_names_a_world_within_the_ranges() -> None:
    """The same seed is the same world; every value lies in its range."""
    assert draw(3) == draw(3) != draw(4)
    for seed in range(50):
        values = draw(seed).values
        assert all(low <= values[name] <= high for name, (low, high) in RANGES.items())


def test_orders_are_permutations_in_which_nobody_is_always_early() -> None:
    """Each order has every player once, and with few players each is first equally often."""
    found = orders(4, np.random.default_rng(0))
    assert (np.sort(found, axis=1) == np.arange(4)).all()
    assert set(Counter(found[:, 0].tolist()).values()) == {len(found) // 4}


@pytest.mark.parametrize("seed", [0, 4, 6])
def test_causes_add_up_to_what_a_step_drew(seed: int) -> None:
    """Efficiency: the requests of every step caused all of its joules."""
    for step in run_of(seed, 16).served.steps:
        assert step.causes.sum() == pytest.approx(step.joules, rel=1e-9)
        assert (step.causes > 0).all()


def test_the_engine_serves_every_token_once() -> None:
    """A finished request computed its prompt less what was cached, and repeats what it lost."""
    run = run_of(1, 16)
    tokens: Counter[str] = Counter()
    sampled: Counter[str] = Counter()
    for step in run.served.steps:
        columns = (step.event.request_ids, step.event.accounts, step.event.num_scheduled_tokens)
        for row, (name, account, count) in enumerate(zip(*columns, strict=True)):
            if account in (Account.PREFILL, Account.DECODE):
                tokens[name] += count
                sampled[name] += step.event.num_sampled[row]
    finished = [end for end in run.served.ends if end.outcome == "finished"]
    assert len(finished) > 5
    for end in finished:
        assert sampled[end.request_id] <= end.output_tokens
        assert tokens[end.request_id] <= end.prompt_tokens + end.output_tokens


def test_preemption_repeats_work() -> None:
    """With too little KV cache some request is preempted, and computes again what it had."""
    world = world_of(1)
    values = {**world.values, "kv_room": 0.3, "load": 1.3, "brief_requests": 0.0}
    world = replace(world, trace="conv", values=values)
    accounts = {a for step in serve(world, plain(32), 30.0).steps for a in step.event.accounts}
    assert Account.RECOMPUTE in accounts


def test_async_stops_waste_a_step() -> None:
    """A stop that is seen late costs one more step, whose result is dropped."""
    world = world_of(1, async_scheduling=True)
    world = replace(world, values={**world.values, "stopped_requests": 1.0})
    accounts = {a for step in serve(world, plain(16), SECONDS).steps for a in step.event.accounts}
    assert Account.WASTE in accounts


def grown(readings: Sequence[EnergyReading]) -> float:
    """Joules from the first reading to the last."""
    return readings[-1].joules - readings[0].joules


@pytest.mark.parametrize("sensor", ["counter", "sampled_counter", "averaged_power"])
def test_sensors_see_the_whole_in_the_end(sensor: str) -> None:
    """Over all of a run a sensor counts what was drawn, to some percent."""
    run = run_of(1, 16, sensor)
    for name, readings in run.seen.items():
        drawn = float(run.curves[name](np.array([readings[-1].monotonic_s]))[0])
        assert grown(readings) == pytest.approx(drawn, rel=0.07)
        assert len({reading.joules for reading in readings}) > 50


@pytest.mark.parametrize("mishap", ["", "reset", "dead", "foreign_process"])
@pytest.mark.parametrize(
    ("policy", "learns"), [("shapley", True), *((policy, False) for policy in LEDGERS.values())]
)
def test_the_book_balances_in_every_world(policy: str, learns: bool, mishap: str) -> None:
    """Requests, idle and unattributed are the counter's increments to nine digits."""
    run = run_of(5, 8, mishap=mishap)
    book = play(run, ledger_of(run, policy, learner_of(run.world) if learns else None))
    assert book.conservation_error < 1e-9
    assert set(book.records) == {end.request_id for end in run.served.ends}


def test_a_told_ledger_gives_what_was_caused() -> None:
    """With an exact counter that is seldom late, and nobody else there, hardly an error is left."""
    world = world_of(1, async_scheduling=True)
    exact = {"counter_lag_s": 0.0, "counter_period_s": 0.02, "report_delay_s": 0.0, "drift": 0.0}
    world = replace(world, sensor="counter", values={**world.values, **exact, "poll_jitter_s": 0.0})
    run = simulate(world, plain(16), 20.0)
    book = play(run, told_ledger(run, learner_of(world)))
    assert book.conservation_error < 1e-9
    errors = [
        abs(record.joules / run.causes[name].sum() - 1)
        for name, record in book.records.items()
        if name in run.causes and record.last_step_s - record.first_step_s > 2
    ]
    assert len(errors) > 10
    assert np.median(errors) < 0.002
    assert max(errors) < 0.05


def test_time_overlap_divides_everything_while_somebody_is_there() -> None:
    """All joules of the span in which requests were present, and no more."""
    run = run_of(1, 16)
    given = sum(time_overlap(run).values())
    assert 0.5 < given / sum(grown(readings) for readings in run.seen.values()) <= 1


def test_a_whole_gpu_each_counts_twice() -> None:
    """In company, snapshot meters give more than there was."""
    run = run_of(1, 16)
    assert sum(whole_gpu(run).values()) > 2 * sum(map(grown, run.seen.values()))


def test_the_report_has_every_policy_and_goal(tmp_path: Path) -> None:
    """A tiny comparison leaves figures, a table and a plot."""
    size = ["--seed", "1", "--draws", "1", "--seconds", str(WARM_UP_S + 10)]
    size += ["--load", "8", "32"]
    main([*size, "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["rows"]) == 2 * len(POLICIES)
    assert len(results["rows"][0]) == len(results["columns"])
    for policy in SHAPLEYS:
        assert set(results["goals"][policy]) == set(GOALS)
        assert results["goals"][policy]["conservation to 1e-9, every policy"] == 1
    rows = [dict(zip(results["columns"], row, strict=True)) for row in results["rows"]]
    medians = {(row["policy"], row["load"]): row["long_median"] for row in rows}
    assert medians[LEARNT, "8"] == medians[STARTED, "8"]
    # Goes on with the coefficients of the first load.
    assert medians[LEARNT, "32"] != medians[STARTED, "32"]
    text = (tmp_path / "results.md").read_text()
    assert all(policy in text for policy in POLICIES)
    assert (tmp_path / "errors.png").stat().st_size > 10_000
