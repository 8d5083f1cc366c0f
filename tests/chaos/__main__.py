"""``python -m tests.chaos``: a real server under load while everything around it goes wrong."""

import argparse
import asyncio
import contextlib
import itertools
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import psutil

from llm_carbon_meter.exporters.columns import aligned
from llm_carbon_meter.testing.nvml_stub import SCRIPT_VARIABLE, build
from llm_carbon_meter.testing.servers import MODEL_NAME, Server, free_port
from llm_carbon_meter.testing.tiny_model import make_tiny_model
from tests.support.servers.metered import KEY, MIDDLEWARE, SAW, Metered, starter

from .acts import ACTS, Stage, kill_meter
from .clients import Clients
from .relay import Relay
from .verdict import Line, Sent, verdict
from .watching import Watch

CLOCK_SOURCE: Final = Path(__file__).with_name("clock.c")
LONGEST_PAUSE_S: Final = 8.0
"""Between two acts."""
AWAY_S: Final = 2.0
"""Of the sidecar's server, when it restarts."""
KILLS: Final = 2
"""Of the meter's process; the last one lives on, so that its memory can be judged."""
CALM_S: Final = 10.0
"""At the end, when whatever was stopped, filled or closed is as before."""
BESIDE: Final = 4
"""Clients of the sidecar."""


class Outcome(NamedTuple):
    """How often what happened, and whether the sums are right."""

    happened: Counter[str]
    lines: Sequence[Line]


def chaos(folder: Path, minutes: float, clients: int, seed: int) -> Outcome:
    """Start a server and a sidecar, let them suffer, and judge what is left."""
    with _server(folder) as stage:
        stage.chance.seed(seed)
        return asyncio.run(_suffer(stage, 60 * minutes, clients))


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[Stage]:
    clock, channel = folder / "clock", folder / "channel"
    clock.write_text("0")
    channel.mkdir(mode=0o700)
    environment = {
        "LD_PRELOAD": str(_clock_library(folder)),
        "CHAOS_CLOCK": str(clock),
        "LLM_CARBON_METER_CHANNEL_DIR": str(channel),
        "LLM_CARBON_METER_PRICES_FILE": str(folder / "prices.json"),
        "LLM_CARBON_METER_CALIBRATION_FILE": str(folder / "calibration.json"),
        # Stores fill until they are full: these are full soon.
        "LLM_CARBON_METER_RECORDS": "500",
        "LLM_CARBON_METER_REQUEST_LOG_FILES": "100",
    }
    numbers = itertools.count()

    def new_folder(name: str) -> Path:
        made = folder / f"{name}-{next(numbers)}"
        made.mkdir(mode=0o700)
        return made

    start = starter(make_tiny_model(folder / "tiny"), build(folder / "stub"), new_folder)
    with start(*MIDDLEWARE, power=SAW, cycle_s=2.0, key=KEY, environment=environment) as metered:
        yield Stage(metered, clock, channel, random.Random())


def _clock_library(folder: Path) -> Path:
    library = folder / "clock.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(CLOCK_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


def _sidecar(metered: Metered, relay: Relay) -> Server:
    """A proxy before the same server, with a meter, a log and a lock folder of its own."""
    folder, port = metered.log.parent / "sidecar", free_port()
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-m", "llm_carbon_meter.cli", "sidecar", "--gpus", "0"]
    command += ["--listen", f"127.0.0.1:{port}", "--upstream", f"http://127.0.0.1:{relay.port}"]
    environment = {
        "LLM_CARBON_METER_REQUEST_LOG": str(folder / "requests.jsonl"),
        "LD_LIBRARY_PATH": str(metered.log.parent.parent / "stub"),
        SCRIPT_VARIABLE: str(metered.log.parent / "script"),
        "XDG_RUNTIME_DIR": str(folder),
        "LLM_CARBON_METER_RECORDS": "500",
    }
    return Server(
        command,
        port,
        log=folder / "sidecar.log",
        model_name=MODEL_NAME,
        exact={},
        environment=environment,
    )


async def _suffer(stage: Stage, seconds: float, count: int) -> Outcome:
    relay = Relay(urlsplit(stage.metered.url).port or 0)
    await relay.open()
    sidecar = _sidecar(stage.metered, relay)
    await asyncio.to_thread(sidecar.start)
    try:
        sent = Sent(Clients(stage.metered.url, KEY), Clients(sidecar.url, KEY, seed=1000))
        beside = psutil.Process(sidecar.process.pid)
        watch = Watch(lambda: {**_family(stage.server, "server"), **_family(beside, "sidecar")})
        happened = await _play(stage, relay, sent, watch, seconds, count)
        lines = await asyncio.to_thread(
            lambda: list(verdict(stage.metered, sidecar.url, sent, watch, happened[RESTART]))
        )
    finally:
        await asyncio.to_thread(sidecar.stop)
        await relay.close()
    return Outcome(happened, lines)


def _family(process: psutil.Process, name: str) -> dict[str, psutil.Process]:
    """All of a server's processes in which the meter runs: vLLM's workers have nothing of it."""
    children = process.children(recursive=True)
    own = {f"{name}'s {one.name()}": one for one in children}
    return {name: process, **{child: one for child, one in own.items() if WORKER not in child}}


WORKER: Final = "VLLM::Worker"
RESTART: Final = "restart the sidecar's server"


async def _play(
    stage: Stage, relay: Relay, sent: Sent, watch: Watch, seconds: float, count: int
) -> Counter[str]:
    """Load, acts and readings; how often what happened."""
    happened: Counter[str] = Counter()
    load = [
        asyncio.create_task(sent.server.run(count)),
        asyncio.create_task(sent.sidecar.run(BESIDE)),
    ]
    watching = asyncio.create_task(watch.run())
    ending = asyncio.Event()
    acting = [
        asyncio.create_task(_acts(stage, happened, ending)),
        asyncio.create_task(_restarts(relay, stage.chance, happened, ending)),
    ]
    await asyncio.wait(acting, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    ending.set()
    await asyncio.gather(*acting)  # an act that has begun is played to its end
    await asyncio.sleep(CALM_S)
    sent.server.stopping = sent.sidecar.stopping = True
    await asyncio.gather(*load)
    watching.cancel()
    return happened


async def _acts(stage: Stage, happened: Counter[str], ending: asyncio.Event) -> None:
    """All of them in one order, and then in another."""
    while True:
        for name, act in stage.chance.sample(list(ACTS.items()), len(ACTS)):
            if act is kill_meter and happened[name] == KILLS:
                continue
            if await _pause(ending, stage.chance.uniform(1, LONGEST_PAUSE_S)):
                return
            await act(stage)
            happened[name] += 1


async def _restarts(
    relay: Relay, chance: random.Random, happened: Counter[str], ending: asyncio.Event
) -> None:
    while not await _pause(ending, chance.uniform(10, 40)):
        await relay.close()
        await asyncio.sleep(AWAY_S)
        await relay.open()
        happened[RESTART] += 1


async def _pause(ending: asyncio.Event, seconds: float) -> bool:
    """Wait; True where the end has come."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ending.wait(), seconds)
    return ending.is_set()


def summary(outcome: Outcome) -> str:
    """Two tables."""
    acts = aligned(
        [[f"{number}x", name] for name, number in sorted(outcome.happened.items())], left=(1,)
    )
    sums = [["ok" if line.holds else "WRONG", line.what, line.seen] for line in outcome.lines]
    return f"{acts}\n\n{aligned(sums, left=(0, 1, 2))}"


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default: 10)")
    parser.add_argument("--clients", type=int, default=32, help="at once (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of the acts (default: 0)")
    parser.add_argument("--keep", type=Path, help="folder for logs and records (default: none)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        outcome = chaos(folder, options.minutes, options.clients, options.seed)
    print(summary(outcome))
    return 0 if all(line.holds for line in outcome.lines) else 1


if __name__ == "__main__":
    sys.exit(main())
