"""What metering costs a server: tokens per second with the meter and without, by turns."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from part import Day
from serving import make_server

from llm_carbon_meter.testing.servers import Server
from llm_carbon_meter.testing.throughput import by_turns, tokens_per_s

PART = "throughput"
SPARE = 1.3
"""A pair may take so many times as long as the one before."""


def run(day: Day) -> str:
    """Pairs of rounds, of two servers that run at once and are asked in turn."""
    numbers = [n for n in range(day.plan.pairs) if not day.rows.has(PART, "pair", str(n))]
    if numbers:
        _measure(day, numbers)
    done = len(day.rows.of(PART, "pair"))
    return f"{day.plan.pairs - done} of {day.plan.pairs} pairs" if done < day.plan.pairs else ""


def _measure(day: Day, numbers: list[int]) -> None:
    with ExitStack() as stack:
        servers = {
            metered: make_server(day, f"throughput-{metered}", metered=metered)
            for metered in (True, False)
        }
        for server in servers.values():
            stack.callback(server.stop)
        with ThreadPoolExecutor() as pool:  # both load at once
            list(pool.map(Server.start, servers.values()))
        for server in servers.values():
            tokens_per_s(server, day.plan.round_tokens)  # compiles, and makes the cache
        pair_s = 0.0
        for number in numbers:
            if number != numbers[0] and not day.has_time(SPARE * pair_s):
                return
            began_s = time.monotonic()
            speed = by_turns(servers, number, day.plan.round_tokens)
            pair_s = time.monotonic() - began_s
            day.rows.add(PART, "pair", str(number), metered=speed[True], plain=speed[False])
