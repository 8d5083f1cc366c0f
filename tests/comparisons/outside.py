"""The proxy beside the hook, on the same requests and the same GPU: what a view from outside loses.

``python -m tests.comparisons.outside`` prints its table. Energy is that of our stub library.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_carbon_meter.demo.command import MAX_OUTPUT, MAX_PROMPT
from llm_carbon_meter.demo.replay import Prompts, replay
from llm_carbon_meter.demo.trace import draw
from llm_carbon_meter.records import REQUEST_ACCOUNTS
from llm_carbon_meter.testing.nvml_stub import LOG_VARIABLE, read_log
from llm_carbon_meter.testing.scrape import Scrape, fetch_record, scrape
from llm_carbon_meter.testing.servers import Server, free_port
from llm_carbon_meter.testing.stub_power import StubPower
from llm_carbon_meter.testing.tiny_model import make_tiny_model
from tests.comparisons.two_engines import ENGINES, SEED, start

REQUESTS = 30
AT_ONCE = (1, 8)
PACE = 1000.0
"""Times that of the trace: the next request waits for nothing but a place."""
PERIOD_MS = 1000.0
"""Of the counter: so slow that each of its values is the last one settled by both, for a while."""
SAME_READING_S = 20.0
FINAL_S = 20.0
CHARGED = [account.label for account in REQUEST_ACCOUNTS]


@dataclass(frozen=True)
class Side:
    """One of the two meters."""

    url: str
    log: Path
    """Of the stub: every reading of the counter by this meter."""

    def counted_mj(self, seen: Scrape) -> int:
        """What the counter showed at the reading that a scrape is of, in millijoules."""
        # The very first call only asks whether there is a counter.
        return read_log(self.log)[1].millijoules + round(seen.total() * 1000)


@dataclass(frozen=True)
class Compared:
    """Both views of one load."""

    engine: str
    at_once: int
    counted_joules: float
    """By the counter, between two of its readings that both meters have seen."""
    accounts: Mapping[str, Mapping[str, float]]
    """Of ``hook`` and ``outside``, between these readings."""
    records: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    """Of the hook and from outside, by request."""

    def sum_ratio(self) -> float:
        """All that requests are charged, from outside / by the hook."""
        hook, outside = (
            sum(self.accounts[side][name] for name in CHARGED) for side in ("hook", "outside")
        )
        return outside / hook

    def ratios(self) -> np.ndarray:
        """Each request's energy, from outside / by the hook."""
        return np.array(
            [out["energy_joules"] / hook["energy_joules"] for hook, out in self.records]
        )

    def shares(self) -> tuple[float, float]:
        """Prefill's part of all that requests are charged, by the hook and from outside."""
        hook, outside = (
            self.accounts[side]["prefill"]
            / (self.accounts[side]["prefill"] + self.accounts[side]["decode"])
            for side in ("hook", "outside")
        )
        return hook, outside


def compare(engine: str, folder: Path, loads: Sequence[int] = AT_ONCE) -> list[Compared]:
    """Ask one server through a proxy; both meter it.

    Args:
        engine: one of `tests.comparisons.two_engines.ENGINES`.
        folder: for the model, the stub and all logs.
        loads: how many requests are in flight at once, one load after the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = make_tiny_model(folder / "tiny-qwen2")
    stub = StubPower.prepare(folder / "stub", PERIOD_MS)
    with start(engine, model, folder, stub) as server, _proxy(server, model, folder, stub) as proxy:
        sides = Side(server.url, stub.log), Side(proxy.url, folder / "outside.log")
        return [_load(engine, at_once, proxy, sides, Prompts(model, SEED)) for at_once in loads]


@contextlib.contextmanager
def _proxy(server: Server, model: Path, folder: Path, stub: StubPower) -> Iterator[Server]:
    port, own = free_port(), folder / "outside"
    own.mkdir(mode=0o700)
    where = ("--upstream", server.url, "--listen", f"127.0.0.1:{port}", "--model", str(model))
    environment = {
        "LLM_CARBON_METER_POWER": "nvml",
        **stub.environment(),
        LOG_VARIABLE: str(folder / "outside.log"),
        # Two meters of one user label each other contended.
        "XDG_RUNTIME_DIR": str(own),
    }
    with Server(
        [sys.executable, "-m", "llm_carbon_meter.cli", "sidecar", *where],
        port,
        log=folder / "sidecar.txt",
        model_name=server.model_name,
        exact=server.exact,
        environment=environment,
    ) as proxy:
        yield proxy


def _load(
    engine: str, at_once: int, proxy: Server, sides: tuple[Side, Side], prompts: Prompts
) -> Compared:
    requests = draw(REQUESTS, SEED + at_once, MAX_PROMPT, MAX_OUTPUT)
    before_mj, before = _same_reading(sides)
    answers = asyncio.run(replay(proxy, requests, prompts, pace=PACE, at_once=at_once))
    assert not any(answer.failure for answer in answers), answers
    ids = [str(answer.response_id) for answer in answers]
    hook, outside = ([_final(side.url, each) for each in ids] for side in sides)
    after_mj, after = _same_reading(sides)
    accounts = [_increases(*pair) for pair in zip(before, after, strict=True)]
    return Compared(
        engine,
        at_once,
        (after_mj - before_mj) / 1000,
        dict(zip(("hook", "outside"), accounts, strict=True)),
        list(zip(hook, outside, strict=True)),
    )


def _same_reading(sides: tuple[Side, Side]) -> tuple[int, list[Scrape]]:
    """The counter in millijoules, and what both meters say when both have settled up to there."""
    deadline_s = time.monotonic() + SAME_READING_S
    while time.monotonic() < deadline_s:
        seen = [scrape(side.url) for side in sides]
        first, second = (
            side.counted_mj(scraped) for side, scraped in zip(sides, seen, strict=True)
        )
        if first == second:
            return first, seen
    raise AssertionError(f"no reading of both meters within {SAME_READING_S:g} s")


def _final(url: str, response_id: str) -> Mapping[str, Any]:
    deadline_s = time.monotonic() + FINAL_S
    while time.monotonic() < deadline_s:
        record = fetch_record(url, response_id)
        if record is not None and record["status"] == "final":
            return record
        time.sleep(0.05)
    raise AssertionError(f"no final record of {response_id} at {url} within {FINAL_S:g} s")


def _increases(before: Scrape, after: Scrape) -> Mapping[str, float]:
    names = {entry.account for entry in after.joules}
    return {
        name: after.total(accounts=[name]) - before.total(accounts=[name]) for name in sorted(names)
    }


def table(found: Sequence[Compared]) -> str:
    """One row per engine and load, as Markdown."""
    rows = [
        "| engine | at once | counter J, both | idle J: hook, proxy | requests' sum: proxy / hook "
        "| one request: proxy / hook, median (10 %, 90 %) | prefill's share: hook, proxy |",
        "| --- " * 7 + "|",
    ]
    for one in found:
        low, middle, high = np.quantile(one.ratios(), (0.1, 0.5, 0.9))
        idle = ", ".join(f"{one.accounts[side]['idle']:.1f}" for side in ("hook", "outside"))
        shares = ", ".join(f"{share:.1%}" for share in one.shares())
        rows.append(
            f"| {one.engine} | {one.at_once} | {one.counted_joules:.3f} | {idle} "
            f"| {one.sum_ratio():.2f} | {middle:.2f} ({low:.2f}, {high:.2f}) | {shares} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Compare on both engines, one after the other, and print the table."""
    with tempfile.TemporaryDirectory() as name:
        found = [one for engine in ENGINES for one in compare(engine, Path(name) / engine)]
    print(table(found))


if __name__ == "__main__":
    main()
