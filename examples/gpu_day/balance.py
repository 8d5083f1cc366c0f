"""Joules of a served span, counted three ways: by the counter, by the accounts, by the records.

The meter books idle joules about once a second, so accounts are compared with the counter at
moments at which they have just grown.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.records import REQUEST_ACCOUNTS, Account, EnergyReading
from llm_carbon_meter.testing.scrape import Scrape, scrape

Floats = npt.NDArray[np.float64]
COUNTER_PERIOD_S = 0.05
"""Between two readings of the counter."""
BOOKINGS = 3
"""Before and after: how far the accounts are behind the counter varies a little."""
BOOKED_WITHIN_S = 3.0
LOOK_S = 0.05
LATE_S = 0.6
"""Some bookings were seen to come so much earlier than those around them."""


def bookings(url: str) -> list[Scrape]:
    """Scrapes of moments at which the accounts had just grown."""
    booked: list[Scrape] = []
    last = scrape(url)
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
        "resolution_joules": max(first_spread, last_spread, _usual_spread(before, readings)),
    }


def _typical(scrapes: Sequence[Scrape], readings: Sequence[EnergyReading]) -> tuple[Scrape, float]:
    """The scrape whose distance to the counter is the median, and the spread of that [J]."""
    behind = _counter_at(scrapes, readings) - [one.total() for one in scrapes]
    place = int(np.argsort(behind, kind="stable")[(len(behind) - 1) // 2])
    return scrapes[place], float(np.ptp(behind))


def _usual_spread(idle: Sequence[Scrape], readings: Sequence[EnergyReading]) -> float:
    """Idle joules of the time by which bookings are late or early."""
    counted, span_s = _counter_at(idle, readings), idle[-1].monotonic_s - idle[0].monotonic_s
    return float(counted[-1] - counted[0]) / span_s * LATE_S if span_s > 0 else 0.0


def _counter_at(scrapes: Sequence[Scrape], readings: Sequence[EnergyReading]) -> Floats:
    times_s, joules = _series(readings)
    return np.interp([one.monotonic_s for one in scrapes], times_s, joules)


def _series(readings: Sequence[EnergyReading]) -> tuple[Floats, Floats]:
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
