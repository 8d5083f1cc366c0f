"""A driven engine with async scheduling whose hooks start the meter's real process."""

import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import (
    Account,
    EngineTotals,
    Outcome,
    PowerError,
    Quality,
    RequestEnergy,
    Status,
)
from llm_carbon_meter.servers.shared import meter_process
from llm_carbon_meter.servers.shared.channel import Subscriber, engine_name
from llm_carbon_meter.servers.shared.steps import StepDecoder
from llm_carbon_meter.servers.vllm import engine_hooks as vllm_engine
from tests.support.servers.driven_rows import drives_vllm
from tests.support.waiting import eventually

if TYPE_CHECKING:  # importing vLLM takes seconds: not while tests are collected
    from tests.support.servers.driving import Drive


pytestmark = drives_vllm


@dataclass
class Metered:
    """An engine whose hooks start the meter's real process; what it publishes is heard here."""

    drive: "Drive"
    hooks: vllm_engine.EngineHooks
    heard: list[Any]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The meter's process of the moment."""
        return self.hooks._engines[id(self.drive.scheduler)].meter._process

    @property
    def totals(self) -> list[EngineTotals]:
        return [message for message in self.heard if isinstance(message, EngineTotals)]

    @property
    def finals(self) -> dict[str, RequestEnergy]:
        return {
            message.request_id: message
            for message in self.heard
            if isinstance(message, RequestEnergy) and message.status is Status.FINAL
        }

    def serve(self, *names: str) -> None:
        for name in names:
            self.drive.add(name, 20, 12, stop_at=8)
        self.drive.run(depth=2)


@pytest.fixture
def metered(tiny_model: Path, faults_of_engine: Faults) -> Iterator[Metered]:
    """The hooks as the plugin installs them, on an engine with async scheduling."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import Executor

    from tests.support.servers.driving import (
        Drive,
        engine_config,
        make_scheduler,
        restored,
        wrap_engine,
    )

    heard: list[Any] = []
    with tempfile.TemporaryDirectory() as folder, restored(Scheduler, EngineCore, Executor):
        directory = str(Path(folder, "channel"))
        subscriber = Subscriber(directory, [engine_name(0)], heard.extend, Faults())
        hooks = vllm_engine.EngineHooks(
            Config(power="modelled", channel_dir=directory), faults_of_engine
        )
        wrap_engine(hooks)
        scheduler = make_scheduler(engine_config(tiny_model), overlapped=True)
        capture = hooks._engines[id(scheduler)].capture
        engine = Metered(Drive(scheduler, capture, StepDecoder(Faults()), lazy=True), hooks, heard)
        eventually(lambda: heard)
        yield engine
        scheduler.shutdown()
        subscriber.close()
        assert "llm-carbon-sender" not in {thread.name for thread in threading.enumerate()}
        assert not list(Path(folder).iterdir())


@pytest.fixture
def faults_of_engine() -> Faults:
    """Counts on the engine's side."""
    return Faults()


class TestWholeEngine:
    def test_from_schedule_to_published_joules(
        self, metered: Metered, faults_of_engine: Faults
    ) -> None:
        """A process starts, joules add up, the process and the thread beside the engine end."""
        metered.serve(*"abc")
        process = metered.process
        metered.drive.scheduler.shutdown()
        assert process.returncode == 0
        eventually(lambda: len(metered.finals) == 3 and metered.totals[-1].open_requests == 0)
        totals, finals = metered.totals[-1], metered.finals
        assert all(record.output_tokens == 8 for record in finals.values())
        assert all(record.accounts.waste > 0 for record in finals.values())
        assert {record.quality for record in finals.values()} == {Quality.MODELLED}
        (gpu,) = totals.gpus
        charged = sum(gpu.account_joules[: len(Account) - 3])
        assert sum(record.joules for record in finals.values()) == pytest.approx(charged, rel=1e-9)
        assert totals.accounted_ratio == pytest.approx(1, rel=1e-9)
        assert totals.tokens == {"prefill": 60, "decode": 21, "recompute": 0, "waste": 3}
        assert totals.errors == {}
        assert faults_of_engine.counts == {}

    def test_a_killed_meter_is_replaced(
        self, metered: Metered, faults_of_engine: Faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The engine goes on; whoever ran meanwhile is known in part and says so."""
        monkeypatch.setattr(meter_process, "RESTART_S", 0.1)
        first = metered.process
        metered.drive.add("across", 20, 40)
        metered.drive.turn(depth=2)
        first.kill()
        eventually(lambda: metered.process is not first)
        eventually(lambda: metered.totals[-1].errors.get("meter_process") == 1)
        assert len({totals.session for totals in metered.totals}) == 2
        metered.serve("after")
        eventually(lambda: len(metered.finals) == 2)
        assert metered.finals["across"].quality is Quality.RESET
        assert metered.finals["after"].quality is Quality.MODELLED
        assert faults_of_engine.counts == {"meter_process": 1}

    def test_the_meter_ends_with_its_engine(self, metered: Metered) -> None:
        """An engine that is killed says nothing: what runs is closed, settled and published."""
        metered.drive.add("a", 20, 40)
        for _ in range(9):
            metered.drive.turn(depth=2)
        eventually(lambda: metered.totals[-1].open_requests == 1)
        metered.hooks._engines[id(metered.drive.scheduler)].meter._connection.close()
        assert metered.process.wait(10) == 0
        eventually(lambda: metered.finals)
        assert metered.finals["a"].outcome is Outcome.ABORTED

    def test_a_power_source_that_cannot_be_opened(self, tiny_model: Path) -> None:
        """The reason comes back from the process; strict settings stop the start with it."""
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor.abstract import Executor

        from tests.support.servers.driving import (
            engine_config,
            make_scheduler,
            restored,
            wrap_engine,
        )

        with tempfile.TemporaryDirectory() as folder, restored(Scheduler, EngineCore, Executor):
            config = Config(power="replay:/no/such/file", channel_dir=folder, strict=True)
            wrap_engine(vllm_engine.EngineHooks(config, Faults()))
            with pytest.raises(PowerError, match="/no/such/file"):
                make_scheduler(engine_config(tiny_model))
