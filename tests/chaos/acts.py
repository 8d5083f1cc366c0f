"""What happens to a server: one act after the other, at random times."""

import asyncio
import contextlib
import dataclasses
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from llm_carbon_meter.servers.shared.meter_process import MODULE
from tests.support.servers.metered import Metered

CONNECTIONS: Final = 1000
EXAMPLES: Final = 30
"""Malformed requests to each of our routes, at least."""


@dataclass
class Stage:
    """A server and what stands around it."""

    metered: Metered
    clock: Path
    """Seconds by which the server's wall clock is off."""
    channel: Path
    chance: random.Random
    extra: list[str] = field(default_factory=list)
    """Of the stub's script."""

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(self.metered.server.process.pid)

    @property
    def meter(self) -> psutil.Process | None:
        """The meter's process of the moment."""
        return self.metered.child(MODULE)

    def script(self, line: str) -> None:
        """Something happens to the stub's GPU."""
        self.extra.append(line)
        script = dataclasses.replace(self.metered.script, extra=tuple(self.extra))
        script.write(self.metered.log.parent / "script")

    @property
    def script_s(self) -> float:
        """Now, in the time of the stub's script."""
        return time.monotonic() - self.metered.script.origin_s


async def kill_meter(stage: Stage) -> None:
    """Another process takes its place."""
    if meter := stage.meter:
        meter.kill()


async def _stopped(process: psutil.Process | None, seconds: float) -> None:
    if process is None:
        return
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.send_signal(signal.SIGCONT)


async def stop_meter(stage: Stage) -> None:
    """It hears of all that happened meanwhile at once."""
    await _stopped(stage.meter, 4)


async def stop_engine(stage: Stage) -> None:
    """Clients wait."""
    await _stopped(stage.metered.child("EngineCore"), 2)


async def stop_server(stage: Stage) -> None:
    """The engine goes on."""
    await _stopped(stage.server, 2)


async def fill_disk(stage: Stage) -> None:
    """No file of the API server or the meter may grow, as on a full disk (EFBIG for ENOSPC)."""
    size = stage.metered.request_log.stat().st_size
    held = [one for one in (stage.server, stage.meter) if one is not None]
    for one in held:
        one.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    await asyncio.sleep(4)
    for one in held:
        with contextlib.suppress(psutil.Error):
            one.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def lose_gpu(stage: Stage) -> None:
    """The driver says that the GPU is lost."""
    now_s = stage.script_s
    stage.script(f"lost 0 {now_s} {now_s + 3}")


async def reset_counter(stage: Stage) -> None:
    """The energy counter begins at 0 again."""
    stage.script(f"reset 0 {stage.script_s}")


async def slow_driver(stage: Stage) -> None:
    """A call of NVML takes 80 ms."""
    now_s = stage.script_s
    stage.script(f"slow_ms 0 {now_s} {now_s + 4} 80")


async def step_clock(stage: Stage) -> None:
    """The wall clock is set, by up to an hour in either direction."""
    stage.clock.write_text(str(stage.chance.randint(-3600, 3600)))


async def remove_channel(stage: Stage) -> None:
    """Somebody tidies up temporary files."""
    shutil.rmtree(stage.channel, ignore_errors=True)


async def many_connections(stage: Stage) -> None:
    """Half a request on each, and then nothing."""
    where = urlsplit(stage.metered.url)
    opened = await asyncio.gather(
        *(asyncio.open_connection(where.hostname, where.port) for _ in range(CONNECTIONS)),
        return_exceptions=True,
    )
    writers = [one[1] for one in opened if not isinstance(one, BaseException)]
    for writer in writers:
        writer.write(b"POST /v1/carbon/estimate HTTP/1.1\r\nContent-Length: 9\r\nX-Request-")
    await asyncio.sleep(3)
    for writer in writers:
        writer.close()


async def malformed_bodies(stage: Stage) -> None:
    """Of all our routes, as schemathesis makes them; it stops at a server error.

    Raises:
        RuntimeError: a route failed.
    """
    command = stage.metered.fuzz("not_a_server_error", EXAMPLES)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as told:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdout=told, stderr=told
        )
        if await process.wait():
            told.seek(0)
            raise RuntimeError(told.read()[-2000:].decode(errors="replace"))


ACTS: Final[Mapping[str, Callable[[Stage], Awaitable[None]]]] = {
    act.__name__.replace("_", " "): act
    for act in (
        kill_meter,
        stop_meter,
        stop_engine,
        stop_server,
        fill_disk,
        lose_gpu,
        reset_counter,
        slow_driver,
        step_clock,
        remove_channel,
        many_connections,
        malformed_bodies,
    )
}
