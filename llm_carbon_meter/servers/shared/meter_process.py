"""The engine's side of the meter's process (meter_main.py): starts it and tells it everything.

The meter has a process of its own, so that its arithmetic never asks for the interpreter lock of
the engine. A thread here sends what the capture holds, in a few messages.
"""

import dataclasses
import logging
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from multiprocessing import Pipe
from typing import Any, Final

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.servers.shared.events import EventQueue
from llm_carbon_meter.service import Service

logger = logging.getLogger("llm_carbon_meter")

MODULE: Final = "llm_carbon_meter.servers.shared.meter_main"
FLUSH_S: Final = 0.1
"""What the engine did is told this often; ends at once."""
AT_ONCE: Final = 64
"""Events of a message: the engine waits for the interpreter lock while they are pickled."""
READY_S: Final = 30.0
"""How long the meter's process may take to open its power source."""
STOP_S: Final = 5.0
"""How long it may take to settle the last tick."""
RESTART_S: Final = 5.0
"""Pause before a new process takes the place of one that ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """What the meter must know of an engine."""

    config: Config
    engine: int
    """Index (data parallel rank)."""
    gpus: Sequence[str]
    """NVML identifiers in rank order, where the engine names them."""
    first_gpu: int
    """Else the engine's place among the visible ones."""
    num_gpus: int
    model: ModelSpec | None
    tensor_parallel: int
    start_s: float
    """Monotonic time from which modelled joules count."""
    deployment: Mapping[str, str | float] = dataclasses.field(default_factory=dict)
    """Engine, version, GPU and its power limit, and parallelism, as records have them."""
    outside: bool = False
    """The engine's steps are made up by a proxy that does not see them."""
    on_cpu: bool = False
    """The engine computes on the host's CPU."""
    engines_here: int = 1
    """Of this server on this host."""


class MeterProcess:
    """A running meter, as the engine sees it. Where it ends by itself, a new one takes its place:
    requests that ran meanwhile are known in part, and labelled so.

    Args:
        setup: sent to the process.
        faults: counts of what goes wrong on the engine's side; the meter publishes them too.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, setup: Setup, faults: Faults) -> None:
        self._setup = setup
        self._faults = faults
        self._told: Counter[str] = Counter()
        self._sender: Service | None = None
        self._broken = False
        """A fault of ours ended the metering."""
        self._begin(setup)

    def _begin(self, setup: Setup) -> None:
        self._told.clear()
        self._connection, theirs = Pipe()
        command = [sys.executable, "-m", MODULE, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        self._send(setup)

    def ready(self) -> None:
        """Wait until the power source is open, and say that the engine is metered.

        Raises:
            MeterError: it cannot be opened, or the process does not answer.
        """
        try:
            if not self._connection.poll(READY_S):
                raise MeterError(f"the meter's process said nothing for {READY_S:g} s")
            answer = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - over our own pipe
        except (OSError, EOFError) as error:
            code = self._process.wait()
            raise MeterError(f"the meter's process ended with code {code} at its start") from error
        if isinstance(answer, MeterError):
            raise answer
        logger.info("llm_carbon_meter: %s", start_line(self._setup, answer))

    def follow(self, capture: EventQueue) -> None:
        """Send on what a capture holds from now on."""
        self._capture = capture
        self._sender = Service("llm-carbon-sender", self._send_events, self._give_up, capture.wake)
        self._sender.start()

    def stop(self) -> None:
        """Send the last events, and wait until the meter has settled and published them."""
        if self._sender is not None:
            self._sender.stop(STOP_S)
            if self._sender.ended:
                self._send_events()
        self._end()

    def _end(self) -> None:
        self._connection.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._faults.note("stop", f"the meter's process did not end within {STOP_S:g} s")

    def _send_events(self) -> float:
        """Tell what the engine did; seconds until the next time."""
        if self._broken:
            self._forget()
            return FLUSH_S
        try:
            self._flush()
        except OSError:
            self._restart()
        return FLUSH_S

    def _give_up(self, error: Exception) -> float:
        """The engine goes on without a meter."""
        self._faults.note("meter_process", error, "This engine is no longer metered.")
        self._broken = True
        return FLUSH_S

    def _flush(self) -> None:
        faults = list((self._faults.counts - self._told).elements())
        self._told.update(faults)
        waiting = chain(faults, self._capture.take())
        # Not one by one: each message would wake the meter's process on a core that serves.
        while batch := list(islice(waiting, AT_ONCE)):
            self._send(batch)

    def _send(self, message: Any) -> None:
        self._connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def _restart(self) -> None:
        self._end()
        code = self._process.returncode
        self._faults.note(
            "meter_process", f"the meter's process ended with code {code}", "A new one is started."
        )
        if self._sender is None or self._sender.pause(RESTART_S):
            return
        self._begin(dataclasses.replace(self._setup, start_s=time.monotonic()))
        try:
            self.ready()
        except MeterError:
            self._end()
            raise
        self._forget()  # no counter covers what happened meanwhile

    def _forget(self) -> None:
        for _ in self._capture.take():
            pass


def start_line(setup: Setup, sensors: str) -> str:
    """What an operator wants to know of a meter that has begun."""
    config = setup.config
    estimates = config.estimator if setup.model else "none, the model's shape is not known"
    facts = {
        f"engine {setup.engine} is metered": sensors,
        "power source": config.power,
        "routes": "/metrics, /v1/carbon/requests/{id}, /v1/carbon/estimate",
        "request log": config.request_log or "off",
        "estimates": estimates,
    }
    return "; ".join(f"{name}: {fact}" for name, fact in facts.items())
