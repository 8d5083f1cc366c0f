"""One turn of the meter's thread, driven by hand: what is booked before what."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.meter import LOAD_S, TICK_S, TOTALS_S, EngineMeter
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.power.host_energy import HostEnergy
from llm_carbon_meter.power.modelled import ModelledMeter
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.live import LiveLearner
from llm_carbon_meter.records import (
    Account,
    EnergyReading,
    EngineLoad,
    EngineTotals,
    EventBatch,
    Outcome,
    PowerError,
    Quality,
    RequestEnd,
    RequestEnergy,
    Source,
    Status,
    StepEvent,
)


class Counter:
    """300 W, read when a test says so."""

    source, quality = Source.MEASURED, Quality.COUNTER

    def __init__(self, gpus: Sequence[str]) -> None:
        self.gpus = gpus

    def at(self, at_s: float) -> list[EnergyReading]:
        return [EnergyReading(at_s, gpu, 300.0 * at_s) for gpu in self.gpus]

    def read(self) -> Sequence[EnergyReading]:
        return self.at(0.0)

    def close(self) -> None:
        pass


class Engine:
    """Hands out one batch after the other."""

    def __init__(self, *batches: EventBatch) -> None:
        self.wake = threading.Event()
        self._batches = list(batches)

    def drain(self, max_rows: int) -> EventBatch:
        return self._batches.pop(0)


Published = list[RequestEnergy | EngineTotals | EngineLoad]


def meter_of(
    published: Published, counter: Counter, *batches: EventBatch, idle: str = "separate"
) -> EngineMeter:
    """A meter whose threads are not started."""
    model = CostModel(gpu_spec("H100"), None)
    return EngineMeter(
        Config(idle=idle),
        counter,
        Engine(*batches),
        model,
        0,
        published.extend,
        Faults(),
        os.getpid(),
    )


STEP = StepEvent(1, 0.0, 1.0, ["a"], [Account.DECODE], [1], [10], [1])
END = RequestEnd("a", Outcome.FINISHED, 10, 0, 1, 1.0)


def test_a_request_ends_after_its_last_step() -> None:
    """A step and the end that it brought come together: the first figure has the step in it."""
    published: Published = []
    meter = meter_of(published, Counter(["gpu"]), EventBatch([STEP], [END], 1.0, False))
    meter._turn()
    provisional = published[0]
    assert isinstance(provisional, RequestEnergy)
    assert provisional.status is Status.PROVISIONAL
    assert provisional.num_steps == 1
    assert provisional.joules == pytest.approx(479.5)


def test_a_bad_step_or_end_takes_no_other_request_with_it() -> None:
    """What is whole is published."""
    published: Published = []
    bad_step = replace(STEP, request_ids=["a", "b"])
    bad_end = replace(END, request_id=cast(str, ["b"]))
    batch = EventBatch([bad_step], [bad_end, END], 1.0, False)
    meter = meter_of(published, Counter(["gpu"]), batch)
    meter._turn()
    assert {item.request_id for item in published if isinstance(item, RequestEnergy)} == {"a"}
    assert meter._faults.counts == {"ledger": 2}


def test_a_final_figure_is_the_whole_group_and_in_the_totals() -> None:
    """After the tick a request has its joules of all GPUs; totals with them went out before."""
    published: Published = []
    counter = Counter(["gpu-0", "gpu-1"])
    turns = EventBatch([STEP], [END], 1.0, False), EventBatch([], [], 2.0, False)
    meter = meter_of(published, counter, *turns)
    meter._readings.extend(counter.at(0.0))
    meter._turn()
    meter._readings.extend(counter.at(1.0))
    meter._turn()
    *_, totals, final = published
    assert isinstance(totals, EngineTotals)
    assert isinstance(final, RequestEnergy)
    assert final.status is Status.FINAL
    assert final.joules == pytest.approx(2 * 300)
    assert sum(gpu.account_joules[Account.DECODE] for gpu in totals.gpus) == pytest.approx(600)


def test_a_load_goes_out_when_it_changed_and_with_the_totals() -> None:
    """Not at every turn, and a listener that comes later hears it too."""
    published: Published = []
    loads: list[Mapping[int, int]] = [{}, {0: 1}, {0: 1}, {0: 1, 1: 1}, {}, {}]
    turns = [EventBatch([], [], 0.0, False, load) for load in loads]
    meter = meter_of(published, Counter(["gpu"]), *turns)
    heard = []
    for turn in range(6):
        published.clear()
        meter._load_s -= LOAD_S * (turn != 4)  # the fifth comes too soon after the fourth
        if turn == 5:
            meter._published_s -= TOTALS_S
        meter._turn()
        heard.append([dict(item.requests) for item in published if isinstance(item, EngineLoad)])
    assert heard == [[], [{0: 1}], [], [{0: 1, 1: 1}], [], [{}, {}]]
    assert isinstance(published[-1], EngineTotals)


def test_joules_of_made_up_steps_are_labelled_outside_and_teach_nothing() -> None:
    """The counter's, but whose they are is a guess; without a sensor they are worse still."""
    llama = CostModel(gpu_spec("H100"), step_costs(built_in_model("Llama-3.1-8B")))

    def label(power: PowerMeter, *, outside: bool) -> tuple[Quality, bool]:
        published: Published = []
        engine = Engine(EventBatch([STEP], [END], 1.0, False))
        meter = EngineMeter(
            Config(),
            power,
            engine,
            llama,
            0,
            published.extend,
            Faults(),
            os.getpid(),
            outside=outside,
        )
        meter._turn()
        assert isinstance(published[0], RequestEnergy)
        return published[0].quality, meter._ledger._learner is not None

    modelled = ModelledMeter(gpu_spec("H100"), 1, 0.0)
    assert label(Counter(["gpu"]), outside=False) == (Quality.COUNTER, True)
    assert label(Counter(["gpu"]), outside=True) == (Quality.OUTSIDE, False)
    assert label(modelled, outside=True) == (Quality.MODELLED, False)


@pytest.mark.parametrize(("setting", "learns"), [("auto", True), (0.25, False), (0.0, False)])
def test_a_lag_that_is_set_is_not_learnt(setting: float | str, learns: bool) -> None:
    """It is told with the totals from the first reading on; one that nobody knows is not."""
    published: Published = []
    engine = Engine(EventBatch([], [], 1.0, False))
    llama = CostModel(gpu_spec("H100"), step_costs(built_in_model("Llama-3.1-8B")))
    config, counter = Config(counter_lag_s=setting), Counter(["gpu"])
    meter = EngineMeter(config, counter, engine, llama, 0, published.extend, Faults(), os.getpid())
    meter._published_s -= 10.0
    meter._readings.extend(counter.at(0.0))
    meter._turn()
    assert (meter._ledger._lags is not None) is learns
    (totals,) = (message for message in published if isinstance(message, EngineTotals))
    assert totals.gpus[0].counter_lag_s == (None if learns else setting)


def test_short_ticks_wait_for_each_other() -> None:
    """Joules are divided over at least a second: a reading that comes sooner settles nothing."""
    published: Published = []
    counter = Counter(["gpu"])
    turns = [EventBatch([STEP], [END], 1.0, False), *[EventBatch([], [], 9.0, False)] * 3]
    meter = meter_of(published, counter, *turns)
    before_s, after_s = STEP.done_s - 0.1, STEP.done_s + 0.1
    seen = []
    for at_s in (before_s - 1.1 * TICK_S, before_s, after_s, after_s + TICK_S):
        meter._readings.extend(counter.at(at_s))
        meter._turn()
        records = [record for record in published if isinstance(record, RequestEnergy)]
        seen.append(records[-1].status)
    assert seen == [Status.PROVISIONAL] * 3 + [Status.FINAL]


def test_step_coefficients_are_kept_for_the_next_meter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one meter learns while it serves, the next one of any engine begins with."""
    monkeypatch.setattr("llm_carbon_meter.formats.kept_state.SAVE_S", 0.0)
    config = Config(prices_file=str(tmp_path / "prices.json"))
    llama = CostModel(gpu_spec("H100"), step_costs(built_in_model("Llama-3.1-8B")))
    columns = ["a"], [Account.DECODE], [1], [10], [1]
    steps = [StepEvent(second, second, second + 1, *columns) for second in range(60)]

    def first_watts(engine: int) -> float:
        """Expected of the first step; 300 are then counted in every second."""
        counter, faults = Counter(["gpu"]), Faults()
        turns = Engine(*(EventBatch([step], [], step.done_s, False) for step in steps))
        meter = EngineMeter(config, counter, turns, llama, engine, [].extend, faults, os.getpid())
        for second in range(60):
            meter._readings.extend(counter.at(second))
            meter._turn()
            if second == 0:
                watts = float(meter._ledger._steps.watts[0])
        assert not faults.counts
        return watts

    assert first_watts(1) == pytest.approx(409, rel=0.02)
    assert first_watts(0) == pytest.approx(300, rel=0.03)


LLAMA = built_in_model("Llama-3.1-8B")
PLACE = Deployment(LLAMA, gpu_spec("H100"), 1, "vllm", "0.32.0")


def seconds_of(
    power: PowerMeter, number: int, *, outside: bool = False, **settings: str
) -> tuple[EngineTotals, Faults]:
    """The last totals of a meter that saw decode steps of a second each."""
    published: Published = []
    columns = ["a"], [Account.DECODE], [1], [10], [1]
    steps = [StepEvent(second, second, second + 1, *columns) for second in range(number)]
    turns = Engine(*(EventBatch([step], [], step.done_s, False) for step in steps))
    model, faults = CostModel(gpu_spec("H100"), step_costs(LLAMA)), Faults()
    meter = EngineMeter(
        Config(**settings),
        power,
        turns,
        model,
        0,
        published.extend,
        faults,
        os.getpid(),
        outside=outside,
        deployment=PLACE,
    )
    for second in range(number):
        meter._readings.extend(Counter(power.gpus).at(second))
        meter._published_s -= TOTALS_S
        meter._turn()
    *_, totals = (message for message in published if isinstance(message, EngineTotals))
    if meter._factors is not None:
        meter._factors.save()
    return totals, faults


def test_what_steps_cost_corrects_the_estimates(tmp_path: Path) -> None:
    """Factors go out with the totals, and a new meter goes on with those that its file has."""
    file = str(tmp_path / "calibration.json")
    first, faults = seconds_of(Counter(["gpu"]), 20, calibration_file=file)
    assert first.factors is not None
    assert first.factors.ticks >= 18
    again, _ = seconds_of(Counter(["gpu"]), 5, calibration_file=file)
    assert again.factors is not None
    assert again.factors.ticks > first.factors.ticks
    assert not faults.counts


def test_made_up_and_modelled_steps_correct_nothing() -> None:
    """Nor is anything learnt where the formula estimates."""
    modelled = ModelledMeter(gpu_spec("H100"), 1, 0.0)
    for totals, _ in (
        seconds_of(Counter(["gpu"]), 3, outside=True),
        seconds_of(modelled, 3),
        seconds_of(Counter(["gpu"]), 3, estimator="flop"),
    ):
        assert totals.factors is None


def test_a_fault_of_the_learner_takes_nothing_from_the_book(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is counted, and joules are booked all the same."""

    def fail(*_: object) -> None:
        raise ValueError("no such tick")

    monkeypatch.setattr(LiveLearner, "see_tick", fail)
    totals, faults = seconds_of(Counter(["gpu"]), 5)
    assert faults.counts["estimator"] >= 3
    assert totals.accounted_ratio == pytest.approx(1.0)
    assert totals.gpus[0].account_joules[Account.DECODE] > 800


class Package(Counter):
    """Another counter of 300 W, of the host; it may stop answering."""

    quality = Quality.PACKAGE
    answers = True

    def read(self) -> Sequence[EnergyReading]:
        if not self.answers:
            raise PowerError("gone")
        return self.at(9.0)


def test_the_host_s_joules_come_with_the_totals_and_with_final_figures() -> None:
    """A third of its tick was the request's; the record's boundary is told in words."""
    published: Published = []
    package = Package(["package"])
    host = HostEnergy(package, 1.0, "host: CPU package (RAPL)", package.at(0.0))
    turns = Engine(EventBatch([STEP], [END], 1.0, False), EventBatch([], [], 3.0, False))
    model, faults = CostModel(gpu_spec("H100"), None), Faults()
    meter = EngineMeter(
        Config(water_litres_per_kwh=1.8),
        counter := Counter(["gpu"]),
        turns,
        model,
        0,
        published.extend,
        faults,
        os.getpid(),
        host=host,
    )
    meter._readings.extend(counter.at(0.0))
    meter._turn()
    provisional = next(one for one in published if isinstance(one, RequestEnergy))
    assert provisional.host_joules is None
    meter._readings.extend(counter.at(1.0))
    meter._host_readings.extend(package.at(3.0))
    meter._turn()
    *_, totals, final = published
    assert isinstance(totals, EngineTotals)
    assert isinstance(final, RequestEnergy)
    assert (final.host_joules, final.host_source) == (pytest.approx(300), Source.MEASURED)
    assert final.joules == pytest.approx(300)
    assert final.water_litres == pytest.approx(1.8 * 300 / 3.6e6)
    (domain,) = totals.host
    assert (domain.domain, domain.counter_joules) == ("package", pytest.approx(900))
    assert sum(totals.account_litres) == pytest.approx(final.water_litres)
    assert totals.covers.endswith("; water: on the site, 1.8 l/kWh (WUE); host: CPU package (RAPL)")
    assert totals.boundary == "gpu"
    assert not faults.counts


def test_a_host_that_is_silent_at_the_end_takes_no_gpu_s_joules_with_it() -> None:
    """The last figures come without it, and the fault is counted."""
    published: Published = []
    package = Package(["package"])
    host = HostEnergy(package, 1.0, "", package.at(0.0))
    turns = Engine(EventBatch([STEP], [END], 1.0, False), *[EventBatch([], [], 9.0, False)] * 1000)
    counter, faults = Counter(["gpu"]), Faults()
    meter = EngineMeter(
        Config(),
        counter,
        turns,
        CostModel(gpu_spec("H100"), None),
        0,
        published.extend,
        faults,
        os.getpid(),
        host=host,
    )
    meter._readings.extend([*counter.at(0.0), *counter.at(1.0)])
    package.answers = False
    meter._settle_the_rest()
    final = published[-1]
    assert isinstance(final, RequestEnergy)
    assert (final.status, final.joules) == (Status.FINAL, pytest.approx(300))
    assert final.host_joules is None
    assert set(faults.counts) == {"host_energy"}


def test_of_a_cpu_the_boundary_is_told_and_nothing_of_its_making() -> None:
    """Nobody knows what the making of a CPU emitted; a GPU's figure would be made up."""
    cpu = Counter(["cpu"])
    cpu.quality = Quality.PACKAGE
    totals, _ = seconds_of(cpu, 3)
    assert (totals.boundary, totals.embodied_grams, totals.factors) == ("cpu", (), None)
    assert totals.covers == (
        "energy of the host's CPU packages and memory, with all that runs there, grams times PUE 1"
    )
