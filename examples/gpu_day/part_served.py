"""Requests of the Azure trace on a metered server, and the counter read independently beside it.

Each request is a row as soon as its record is final. At the end the accounts of the meter, the sum
of the records and the counter's own joules over the same time stand in one row.
"""

import asyncio
import queue
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from balance import COUNTER_PERIOD_S, balance, bookings, trace
from part import Day
from part_model import model_folder
from serving import lengths, make_server

from llm_carbon_meter.addresses import open_url
from llm_carbon_meter.demo.replay import NOT_SENT, Answer, Prompts, replay
from llm_carbon_meter.demo.trace import TraceRequest, draw
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.power.nvml.nvml_meter import open_nvml
from llm_carbon_meter.power.sampler import PowerSampler
from llm_carbon_meter.records import EnergyReading
from llm_carbon_meter.service import Service
from llm_carbon_meter.testing.scrape import Watch, fetch_record
from llm_carbon_meter.testing.servers import Server

PART = "served"
SEED = 0
SETTLING_S = 2.0
"""Idle before and after: what was done is booked, in ticks that are gathered to a second."""
LAST_ANSWERS_S = 40.0
"""Before the end nothing more is sent: what is under way has to be answered and settled."""
ANSWERED_WITHIN_S = 24.0
"""After that; what takes longer is given up, and the joules are counted without its record."""
RECORD_WITHIN_S = 8.0
COLLECT_S = 0.5
FAILURES_SHOWN = 3
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
        server = stack.enter_context(make_server(day, "served", metered=True))
        prompts = Prompts(model_folder(day.options), SEED)
        asyncio.run(_replay(day, server, WARM_UP, prompts, until_s=float("inf")))
        sampler = PowerSampler(meter, COUNTER_PERIOD_S, readings.extend, Faults())
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
        gauges, series = _gauges(server.url), list(readings)
    session = str(len(day.rows.of(PART, "balance")))
    booked = balance(before, after, series, collector.charged_joules)
    day.rows.add(PART, "balance", session, **booked, **_sent(answers), **gauges)
    day.rows.add(PART, "trace", session, **trace([before[-1], *watch.scrapes], series))


def _sent(answers: Sequence[Answer]) -> dict[str, Any]:
    """How many requests were sent, how many failed and why, and how long they took together."""
    sent = [answer for answer in answers if answer.failure != NOT_SENT]
    failed = [str(answer.failure) for answer in sent if answer.failure]
    times_s = [(answer.started_s, answer.ended_s) for answer in sent if not answer.failure]
    span_s = max(end for _, end in times_s) - min(start for start, _ in times_s) if times_s else 0.0
    return {
        "sent": len(sent),
        "num_failed": len(failed),
        "failed": failed[:FAILURES_SHOWN],
        "serving_s": span_s,
    }


def _gauges(url: str) -> dict[str, float | None]:
    """What the meter says of the counter's lag, of its own readings, and of its bookkeeping."""
    text = _metrics(url)
    return {
        "counter_lag_s": value_of(text, "gpu_energy_lag_seconds"),
        "sampler_read_s": value_of(text, "sampler_read_seconds"),
        "accounted_ratio": value_of(text, "accounted_ratio"),
    }


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


def _metrics(url: str) -> str:
    with open_url(url + "/metrics", timeout_s=10.0) as response:
        return response.read().decode("utf-8")


def value_of(text: str, metric: str) -> float | None:
    """The first value of a gauge of ours; None where it is absent."""
    found = re.search(rf"^llm_carbon_meter_{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None
