"""Requests of the Azure trace on a metered server, and the counter read independently beside it.

Each request is a row as soon as its record is final. At the end the accounts of the meter, the sum
of the records and the counter's own joules over the same time stand in one row.
"""

import asyncio
import queue
import re
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from part import Day
from part_model import model_folder
from serving import lengths, make_server

from llm_carbon_meter.demo.replay import NOT_SENT, Answer, Prompts, replay
from llm_carbon_meter.demo.trace import TraceRequest, draw
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.power.sampler import PowerSampler
from llm_carbon_meter.records import REQUEST_ACCOUNTS, Account, EnergyReading
from llm_carbon_meter.service import Service
from llm_carbon_meter.testing.scrape import Scrape, Watch, fetch_record, scrape
from llm_carbon_meter.testing.servers import Server

PART = "served"
SEED = 0
COUNTER_PERIOD_S = 0.05
SETTLING_S = 2.0
"""Idle before and after: what was done is booked, in ticks that are gathered to a second."""
BOOKINGS = 3
"""Before and after: how far the accounts are behind the counter varies a little."""
BOOKED_WITHIN_S = 3.0
"""Idle joules are booked about once a second."""
LOOK_S = 0.05
LAST_ANSWERS_S = 40.0
"""Before the end nothing more is sent: what is under way has to be answered and settled."""
ANSWERED_WITHIN_S = 24.0
"""After that; what takes longer is given up, and the joules are counted without its record."""
RECORD_WITHIN_S = 8.0
COLLECT_S = 0.5
WARM_UP = (TraceRequest(0.0, 64, 8), TraceRequest(0.0, 300, 8))
"""The first requests make the cache and compile; they are no part of what is judged."""


def run(day: Day) -> str:
    """Serve what has no row yet."""
    everything = draw(day.plan.requests, SEED, *lengths(day.options))
    numbers = [n for n in range(len(everything)) if not day.rows.has(PART, "request", str(n))]
    if numbers:
        _serve(day, [everything[n] for n in numbers], numbers)
    missing = sum(not day.rows.has(PART, "request", str(n)) for n in range(len(everything)))
    return f"{missing} of {len(everything)} requests" if missing else ""


def _serve(day: Day, requests: Sequence[TraceRequest], numbers: Sequence[int]) -> None:
    readings: list[EnergyReading] = []
    with ExitStack() as stack:
        meter = open_nvml([day.gpu.index])
        stack.callback(meter.close)
        sampler = PowerSampler(meter, COUNTER_PERIOD_S, readings.extend, Faults())
        server = stack.enter_context(make_server(day, "served", metered=True))
        prompts = Prompts(model_folder(day.options), SEED)
        asyncio.run(_replay(day, server, WARM_UP, prompts, until_s=float("inf")))
        sampler.start()
        stack.callback(sampler.stop)
        time.sleep(SETTLING_S)
        before = bookings(server.url)
        collector = Collector(day, server, numbers)
        with Watch(server.url) as watch:
            until_s = day.limit_s - LAST_ANSWERS_S
            with day.gpu.busy():
                answers = asyncio.run(_replay(day, server, requests, prompts, until_s, collector))
            collector.stop()
            time.sleep(SETTLING_S)
            after = bookings(server.url)
        text = _metrics(server.url)
        series = list(readings)
    session = str(len(day.rows.of(PART, "balance")))
    sent = [answer for answer in answers if answer.failure != NOT_SENT]
    failed = [str(answer.failure) for answer in sent if answer.failure]
    day.rows.add(
        PART,
        "balance",
        session,
        **balance(before, after, series, collector.charged_joules),
        sent=len(sent),
        failed=failed[:3],
        num_failed=len(failed),
        seconds=max((answer.ended_s for answer in sent), default=0.0)
        - min((answer.started_s for answer in sent), default=0.0),
        counter_lag_s=value_of(text, "gpu_energy_lag_seconds"),
        sampler_read_s=value_of(text, "sampler_read_seconds"),
        accounted_ratio=max(after[-1].accounted_ratios, default=None),
    )
    day.rows.add(PART, "trace", session, **trace([before[-1], *watch.scrapes], series))


async def _replay(
    day: Day,
    server: Server,
    requests: Sequence[TraceRequest],
    prompts: Prompts,
    until_s: float,
    collector: "Collector | None" = None,
) -> list[Answer]:
    plan, note = day.plan, collector.take if collector else _ignore
    return await replay(
        server,
        requests,
        prompts,
        pace=plan.pace,
        at_once=plan.at_once,
        until_s=until_s,
        answered_within_s=ANSWERED_WITHIN_S,
        on_answer=note,
    )


def _ignore(_number: int, _answer: Answer) -> None:
    pass


class Collector:
    """Makes a row of each answered request when its record is final, in a thread.

    Args:
        day: whose rows are written.
        server: that has the records.
        numbers: of the requests, by their place in the replay.
    """

    def __init__(self, day: Day, server: Server, numbers: Sequence[int]) -> None:
        self._day, self._url, self._numbers = day, server.url, numbers
        self._waiting: queue.SimpleQueue[tuple[int, Answer, float]] = queue.SimpleQueue()
        self.charged_joules = 0.0
        """Of the final records."""
        self._service = Service("gpu-day-records", self._turn, self._failed)
        self._service.start()

    def take(self, place: int, answer: Answer) -> None:
        """An answer has come."""
        if answer.response_id is not None and not answer.failure:
            self._waiting.put((self._numbers[place], answer, time.monotonic()))

    def stop(self) -> None:
        """Wait a bounded time for the last records."""
        end_s = time.monotonic() + RECORD_WITHIN_S
        while not self._waiting.empty() and time.monotonic() < end_s:
            time.sleep(COLLECT_S)
        self._service.stop(RECORD_WITHIN_S)
        self._turn()

    def _turn(self) -> float:
        for _ in range(self._waiting.qsize()):
            number, answer, came_s = self._waiting.get()
            record = fetch_record(self._url, str(answer.response_id))
            if record is not None and record["status"] == "final":
                self.charged_joules += record["energy_joules"] - record["idle_joules"]
                about = request_row(answer, record)
                self._day.rows.add(PART, "request", str(number), **about)
            elif time.monotonic() - came_s < RECORD_WITHIN_S:
                self._waiting.put((number, answer, came_s))
        return COLLECT_S

    def _failed(self, _error: Exception) -> float:
        """A busy server may miss one; the records stay."""
        return COLLECT_S


PHASES = ("energy_joules", "prefill_joules", "decode_joules")


def request_row(answer: Answer, record: Mapping[str, Any]) -> dict[str, Any]:
    """What was estimated before, what is known afterwards, and what it cost."""
    kept = ("prompt_tokens", "output_tokens", "quality", "outcome", "gpu_seconds")
    accounts = (*PHASES, "idle_joules", "recompute_joules", "waste_joules")
    features = record["features"]
    return {
        **{name: record[name] for name in (*kept, *accounts)},
        "mean_running": features["mean_running"],
        "concurrency": features["concurrency"],
        "latency_s": answer.ended_s - answer.started_s,
        "ended_s": answer.ended_s,
        "provisional_joules": (record["provisional"] or {}).get("energy_joules"),
        "estimate": _estimate(record["estimate"]),
        "conditional": _estimate(record["conditional"]),
    }


def _estimate(estimate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Raw, calibrated, and with its interval."""
    if not estimate:
        return None
    return {
        "raw": {name: estimate[name] for name in PHASES},
        "calibrated": {name: estimate["calibrated"][name] for name in PHASES},
        "low_joules": estimate["calibrated"]["low_joules"],
        "high_joules": estimate["calibrated"]["high_joules"],
        "output_tokens": estimate["output_tokens"],
        "out_of_domain": estimate["out_of_domain"],
    }


def bookings(url: str) -> list[Scrape]:
    """Scrapes of moments at which the accounts had just grown."""
    last, booked = scrape(url), []
    end_s = time.monotonic() + BOOKINGS * BOOKED_WITHIN_S
    while len(booked) < BOOKINGS and time.monotonic() < end_s:
        time.sleep(LOOK_S)
        one = scrape(url)
        if one.total() > last.total():
            booked.append(one)
            last = one
    return booked or [last]


def balance(
    before: Sequence[Scrape],
    after: Sequence[Scrape],
    readings: Sequence[EnergyReading],
    charged_joules: float,
) -> dict[str, Any]:
    """Joules between two idle times: by the counter, by the accounts and by the records.

    Args:
        before: moments at which joules were booked; the median of how far behind counts.
        after: likewise.
        readings: of the counter, by somebody else than the meter.
        charged_joules: of the records.
    """
    (first, first_spread), (last, last_spread) = (
        _typical(before, readings),
        _typical(after, readings),
    )
    accounts = {
        account.label: last.total(accounts=[account.label]) - first.total(accounts=[account.label])
        for account in Account
    }
    counted = _counter_at([first, last], readings)
    return {
        "counter_joules": float(counted[1] - counted[0]),
        "accounts_joules": accounts,
        "requests_accounts_joules": sum(accounts[a.label] for a in REQUEST_ACCOUNTS),
        "records_joules": charged_joules,
        "span_s": last.monotonic_s - first.monotonic_s,
        "resolution_joules": max(first_spread, last_spread) + _between_looks(before, readings),
    }


def _typical(scrapes: Sequence[Scrape], readings: Sequence[EnergyReading]) -> tuple[Scrape, float]:
    """The scrape whose distance to the counter is the median, and the spread of that [J]."""
    behind = _counter_at(scrapes, readings) - [one.total() for one in scrapes]
    place = int(np.argsort(behind, kind="stable")[(len(behind) - 1) // 2])
    return scrapes[place], float(np.ptp(behind))


def _between_looks(idle: Sequence[Scrape], readings: Sequence[EnergyReading]) -> float:
    """Idle joules of the time between two readings and two scrapes."""
    counted, span_s = _counter_at(idle, readings), idle[-1].monotonic_s - idle[0].monotonic_s
    watts = float(counted[-1] - counted[0]) / span_s if span_s > 0 else 0.0
    return watts * (COUNTER_PERIOD_S + LOOK_S)


def _counter_at(scrapes: Sequence[Scrape], readings: Sequence[EnergyReading]) -> np.ndarray:
    times_s, joules = _series(readings)
    return np.interp([one.monotonic_s for one in scrapes], times_s, joules)


def _series(readings: Sequence[EnergyReading]) -> tuple[np.ndarray, np.ndarray]:
    """Where the counter moved: between moves it is on a line."""
    times_s = np.array([reading.monotonic_s + reading.lag_s for reading in readings])
    joules = np.array([reading.joules for reading in readings])
    moved = np.flatnonzero(np.diff(joules, prepend=-1.0))
    return times_s[moved], joules[moved]


def trace(scrapes: Sequence[Scrape], readings: Sequence[EnergyReading]) -> dict[str, Any]:
    """For the picture: the counter and every account at the times of the scrapes."""
    return {
        "times_s": [round(one.monotonic_s, 3) for one in scrapes],
        "counter_joules": np.round(_counter_at(scrapes, readings), 3).tolist(),
        "accounts_joules": {
            account.label: [round(one.total(accounts=[account.label]), 3) for one in scrapes]
            for account in Account
        },
    }


def _metrics(url: str) -> str:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        text: str = response.read().decode("utf-8")
    return text


def value_of(text: str, metric: str) -> float | None:
    """The first value of a gauge of ours; None where it is absent."""
    found = re.search(rf"^llm_carbon_meter_{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None
