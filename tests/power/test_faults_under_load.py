"""Each fault of a sensor in the middle of load, from the stub to the book: label and balance."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from llm_carbon_meter.ledger.attribution import CostModel
from llm_carbon_meter.ledger.ledger import EnergyLedger
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.power.contention import Sharing
from llm_carbon_meter.power.nvml.nvml_meter import NvmlMeter, open_nvml
from llm_carbon_meter.records import (
    Account,
    Outcome,
    PowerError,
    Quality,
    RequestEnd,
    RequestEnergy,
    StepEvent,
)
from llm_carbon_meter.testing.nvml_stub import StubScript

WATTS = 300.0
PIECE_S = 0.4
STEP_S = 0.02
NAMES = ("before", "meanwhile", "after")


def judge(gpu: str, listed: Sequence[int]) -> Sharing:
    """Whoever is listed is a stranger."""
    return Sharing.SHARED if listed else Sharing.ALONE


@dataclass
class Run:
    """An engine with one request at a time, its meter and its book."""

    meter: NvmlMeter
    ledger: EnergyLedger
    final: dict[str, RequestEnergy] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)

    def serve(self, name: str, seconds: float) -> None:
        """Steps one after the other, a reading after each that the GPU answers."""
        self.meter.review(judge)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            began_s = time.monotonic()
            time.sleep(STEP_S)
            done_s, columns = time.monotonic(), ([name], [Account.DECODE], [1], [9], [1])
            self.ledger.observe_steps([StepEvent(0, began_s, done_s, *columns)])
            self.busy_s[name] = self.busy_s.get(name, 0.0) + done_s - began_s
            self.read()
        self.ledger.close(RequestEnd(name, Outcome.FINISHED, 1, 0, 1, time.monotonic()))

    def read(self) -> None:
        """Enter what the GPU says, if it does."""
        with suppress(PowerError):
            for reading in self.meter.read():
                self.ledger.observe_reading(reading)
        self.final |= {one.request_id: one for one in self.ledger.settle(time.monotonic())}


@pytest.mark.parametrize(
    ("fault", "seconds", "meanwhile", "after"),
    [
        ("slow_ms 0 {0} {1} 40", PIECE_S, Quality.COUNTER, Quality.COUNTER),
        ("process 0 {0} {1} 4711", PIECE_S, Quality.CONTENDED, Quality.COUNTER),
        ("module 0 {0} {1}", PIECE_S, Quality.MODULE_SCOPE, Quality.COUNTER),
        ("mig 0 {0} {1}", PIECE_S, Quality.MIG_PARENT, Quality.COUNTER),
        ("reset 0 {0}", PIECE_S, Quality.RESET, Quality.COUNTER),
        ("lost 0 {0} {1}", PIECE_S, Quality.COUNTER, Quality.COUNTER),
        ("zero 0 {0} 9e9", 1.5, Quality.RESET, Quality.POWER),
    ],
)
def test_a_fault_is_labelled_and_the_balance_closes(
    stub: Any, fault: str, seconds: float, meanwhile: Quality, after: Quality
) -> None:
    """Who ran meanwhile says what happened; every increment of the counter is in one account.

    A GPU that was away goes on counting: nothing of it is missing when it is back.
    """
    script = stub.steady(WATTS)
    meter = open_nvml(["0"])
    model = CostModel(gpu_spec("H100"), None)
    run = Run(meter, EnergyLedger(meter.gpus, model, meter.source, meter.quality))
    run.read()
    run.serve("before", PIECE_S)
    now_s = time.monotonic() - script.origin_s + STEP_S  # after the last step's reading
    lines = (fault.format(now_s, now_s + seconds),)
    stub.play(StubScript(1, script.power, origin_s=script.origin_s, extra=lines))
    time.sleep(2 * STEP_S)
    run.serve("meanwhile", seconds)
    time.sleep(1.2 if fault.startswith("lost") else 3 * STEP_S)
    run.serve("after", PIECE_S)
    time.sleep(STEP_S)
    run.read()
    meter.close()
    assert [run.final[name].quality for name in NAMES] == [Quality.COUNTER, meanwhile, after]
    (book,) = run.ledger.totals()
    assert sum(book.account_joules) == pytest.approx(book.counter_joules, rel=1e-9)
    assert sum(record.joules for record in run.final.values()) == pytest.approx(
        book.account_joules[Account.DECODE]
    )
    for name in ("before", "after"):
        assert run.final[name].joules == pytest.approx(WATTS * run.busy_s[name], rel=0.35)


@pytest.mark.parametrize("sensor", ["counter", "power"])
def test_more_than_a_board_can_draw_is_nobodys(stub: Any, sensor: str) -> None:
    """1.1 MJ within a millisecond on a board of 400 W: unattributed, labelled, and counted.

    Requests before and after it have what they used.
    """
    name = "NVIDIA A100-SXM4-80GB"
    lacking = ("unsupported 0 energy",) if sensor == "power" else ()
    script = stub.steady(WATTS, extra=(f"name {name}", *lacking))
    meter = open_nvml(["0"])
    model = CostModel(gpu_spec(name), None)
    run = Run(meter, EnergyLedger(meter.gpus, model, meter.source, meter.quality))
    run.read()
    run.serve("before", PIECE_S)
    at_s = time.monotonic() - script.origin_s + 3 * STEP_S
    # Of power something is seen only while it lasts.
    long_s, joules = (0.001, 1.1e6) if sensor == "counter" else (2 * STEP_S, 4.0e6)
    glitch = [
        (0.0, WATTS),
        (at_s, WATTS),
        (at_s, joules / long_s),
        (at_s + long_s, joules / long_s),
    ]
    power = {0: [*glitch, (at_s + long_s, WATTS)]}
    stub.play(StubScript(1, power, origin_s=script.origin_s, extra=script.extra))
    run.serve("meanwhile", PIECE_S)
    run.serve("after", PIECE_S)
    time.sleep(STEP_S)
    run.read()
    meter.close()
    usual = meter.quality
    assert [run.final[name].quality for name in NAMES] == [usual, Quality.IMPOSSIBLE, usual]
    (book,) = run.ledger.totals()
    assert sum(book.account_joules) == pytest.approx(book.counter_joules, rel=1e-9)
    if sensor == "counter":
        assert book.account_joules[Account.UNATTRIBUTED] == pytest.approx(joules, rel=0.01)
    assert sum(record.joules for record in run.final.values()) < 2 * WATTS * 3 * PIECE_S
    for name in ("before", "after"):
        assert run.final[name].joules == pytest.approx(WATTS * run.busy_s[name], rel=0.35)
