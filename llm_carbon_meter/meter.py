"""Wires everything of one engine together: events and readings in, finished records out.

The joule's way: sampler thread -> readings -> ledger (this thread) -> publish.
"""

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from llm_carbon_meter.carbon.emissions import coverage, embodied_rate, operational_grams
from llm_carbon_meter.carbon.grid import open_grid
from llm_carbon_meter.carbon.water import litres_per_joule
from llm_carbon_meter.config import Config, runtime_folder
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.ledger.kept_coefficients import KeptCoefficients
from llm_carbon_meter.ledger.ledger import EnergyLedger, SeenTick
from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.kernels import step_costs
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.step_work import CostModel
from llm_carbon_meter.power.contention import OtherProcesses, Watch
from llm_carbon_meter.power.host_energy import HostEnergy, open_host_energy, rapl_folder
from llm_carbon_meter.power.modelled import ModelledMeter
from llm_carbon_meter.power.nvml.nvml_meter import NvmlMeter, open_nvml, worst
from llm_carbon_meter.power.power_meter import PowerMeter
from llm_carbon_meter.power.rapl import open_rapl
from llm_carbon_meter.power.replay import ReplayMeter
from llm_carbon_meter.power.sampler import PowerSampler
from llm_carbon_meter.power.shared import SharedMeter, host_share
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.gnn import shipped_weights
from llm_carbon_meter.predictor.live import LiveLearner
from llm_carbon_meter.records import (
    CPU,
    GPU,
    HEARTBEAT_S,
    EnergyReading,
    EngineLoad,
    EngineTotals,
    EventBatch,
    GpuTotals,
    MeterError,
    Outcome,
    PowerError,
    Quality,
    RequestEnd,
    RequestEnergy,
    Source,
)
from llm_carbon_meter.service import Service

SLICE_ROWS: Final = 16_384
"""Requests x steps entered at a time; beyond some thousand, more at once is no quicker."""
TOTALS_S: Final = 0.5
"""Totals go out this often and with every final figure: they are cumulative, and every API server
reads each one."""
LOAD_S: Final = 0.05
"""Loads that changed go out this often at most."""
TICK_S: Final = 1.0
"""Joules are divided over at least this long. A counter's own ticks are as short as its errors of
time; over a second these are no larger than what the coefficients of work get wrong."""
STOP_S: Final = 5.0
"""How long a stopping meter waits for the slice under way."""
LAST_TICK_S: Final = 1.0
"""How long a stopping meter waits for the tick that covers the last step."""

TEACHING: Final = (Quality.COUNTER, Quality.POWER)
"""Readings from which coefficients are learnt: of whole GPUs that are the engine's own."""

Publish = Callable[[Sequence[RequestEnergy | EngineTotals | EngineLoad]], None]


class EventSource(Protocol):
    """A serving engine's side: what it did, decoded into records on the meter's thread."""

    wake: threading.Event
    """Set when a request ended, so that its provisional figure leaves at once, and when more is
    known of the time that passed."""

    def drain(self, max_rows: int) -> EventBatch:
        """Hand over what happened, at most about ``max_rows`` request-steps."""
        ...


def open_power(
    config: Config,
    devices: Callable[[], Sequence[str]],
    count: int,
    gpu: GpuSpec,
    start_s: float,
    faults: Faults,
    *,
    on_cpu: bool = False,
    engines: int = 1,
) -> PowerMeter:
    """Open the power source of the settings.

    Args:
        devices: gives the NVML indices or UUIDs of the engine's GPUs.
        count: how many GPUs the engine has.
        gpu: whose data sheet is taken where there is no sensor.
        start_s: monotonic time from which modelled joules count.
        faults: where a sensor is noted that ``auto`` looked for and did not find.
        on_cpu: the engine computes on the host's CPU, so that its joules are in RAPL's.
        engines: of its server on this host: they share RAPL's joules.

    Raises:
        PowerError: it cannot be opened; with ``auto`` the modelled one is taken instead.
    """
    if config.power.startswith("replay:"):
        return ReplayMeter(Path(config.power.removeprefix("replay:")), count)
    if config.power.startswith("rapl"):
        return _open_cpu(config, engines)
    if config.power in ("auto", "nvml"):
        try:
            return open_nvml(devices(), mig_parent=config.mig_parent)
        except PowerError as error:
            if config.power == "nvml":
                raise
            if on_cpu:
                with contextlib.suppress(PowerError):  # `check` says why
                    return _open_cpu(config, engines)
            faults.note("power", error, f"Power is modelled instead: data sheet of {gpu.name}.")
    return ModelledMeter(gpu, count, start_s)


def _open_cpu(config: Config, engines: int) -> SharedMeter:
    """Raises PowerError where RAPL cannot be read."""
    whole = open_rapl(rapl_folder(config.power), together=True)
    return SharedMeter(whole, host_share(config, 0, 0, engines))


def open_host(
    config: Config, power: PowerMeter, num_gpus: int, engines: int, faults: Faults
) -> HostEnergy | None:
    """Open the host's energy; None where the settings want none, or it cannot be opened.

    Args:
        config: settings.
        power: of the engine's GPUs.
        num_gpus: of the engine.
        engines: of this server on this host.
        faults: where it is noted that it cannot be opened.

    Raises:
        PowerError: it cannot be opened, and the settings are strict.
    """
    try:
        return open_host_energy(config, power, num_gpus, engines)
    except PowerError as error:
        if config.strict:
            raise
        faults.note("host_energy", error, "The host's energy is not told.")
        return None


def cost_model(gpu: GpuSpec, model: ModelSpec | None, tensor_parallel: int) -> CostModel:
    """Physics of a model on one GPU of a tensor-parallel group."""
    return CostModel(gpu, step_costs(model, tensor_parallel) if model else None)


def teaches(power: PowerMeter, model: CostModel) -> bool:
    """Whether readings teach coefficients: not if modelled, or of more than the engine."""
    taught = power.source is Source.MEASURED and power.quality in TEACHING
    return taught and model.costs is not None


def _coefficients(config: Config, model: CostModel, faults: Faults) -> KeptCoefficients:
    file = Path(config.prices_file) if config.prices_file else None
    return KeptCoefficients(file, model, faults)


def _factors(config: Config, deployment: Deployment | None, faults: Faults) -> LiveLearner | None:
    """What corrects the estimates; None where there are none, or they learn nothing."""
    if deployment is None or config.estimator != "gnn":
        return None
    file = Path(config.calibration_file) if config.calibration_file else None
    try:
        return LiveLearner(shipped_weights(), deployment, file, faults)
    except MeterError as error:
        faults.note("estimator", error, "Estimates are not corrected by what is measured.")
        return None


def _watch(power: PowerMeter, engine_pid: int, faults: Faults) -> Watch | None:
    """Others on a GPU can be seen where NVML reads it."""
    if not isinstance(power, NvmlMeter):
        return None
    return Watch(
        power.review, OtherProcesses(engine_pid, runtime_folder(), power.gpus, faults), faults
    )


class EngineMeter:
    """Meters one engine: a sampler thread and a thread that keeps the ledger.

    Args:
        config: settings.
        power: opened source; closed by `stop`.
        source: the engine's events.
        model: physics behind the proportions.
        engine: index of the engine (data parallel rank).
        publish: receives all records, on the meter's thread, those of a moment together.
        faults: counts of what went wrong.
        engine_pid: the engine's process, to tell others on its GPUs from its own.
        outside: the events are made up by somebody who does not see the engine's steps.
        deployment: of which estimates are made that its steps correct; None where none are.
        host: energy of the host beside its GPUs; None where nobody counts it. Closed by `stop`.
    """

    def __init__(
        self,
        config: Config,
        power: PowerMeter,
        source: EventSource,
        model: CostModel,
        engine: int,
        publish: Publish,
        faults: Faults,
        engine_pid: int,
        *,
        outside: bool = False,
        deployment: Deployment | None = None,
        host: HostEnergy | None = None,
    ) -> None:
        self._power, self._host = power, host
        self._boundary = CPU if power.quality is Quality.PACKAGE else GPU
        part = power.remark if isinstance(power, SharedMeter) else ""
        self._covers = coverage(config, self._boundary, part, host.covers if host else "")
        self._source = source
        self._engine = engine
        self._publish = publish
        self._faults = faults
        self._session = uuid.uuid4().hex
        # Steps that are made up teach nothing.
        taught = teaches(power, model) and not outside
        self._coefficients = _coefficients(config, model, faults) if taught else None
        self._factors = _factors(config, deployment, faults) if taught else None
        self._embodied_rate = self._rate_of_making(config, model)
        self._litres_per_joule = litres_per_joule(config)
        self._quality = worst(power.quality, Quality.OUTSIDE) if outside else power.quality
        self._ledger = self._open_ledger(config, model)
        self.sensors = (
            f"GPU {', '.join(power.gpus)} ({model.gpu.name}), "
            f"{power.source}, quality {self._quality}"
            f"{f', {host.covers}' if host else ''}"
        )
        """The GPUs, and how far their figures can be trusted, in words."""
        self._grid, self._pue = open_grid(config, faults), config.pue
        self._readings: deque[EnergyReading] = deque()
        self._sampler = PowerSampler(power, 1 / config.sample_hz, self._readings.extend, faults)
        self._host_readings = deque(host.first if host else ())
        self._observe_host()
        self._host_sampler = host and PowerSampler(
            host.meter, host.period_s, self._host_readings.extend, faults, "host_energy"
        )
        self._watch = _watch(power, engine_pid, faults)
        self._published_s = time.monotonic()
        self._load = EngineLoad(engine, {})
        self._load_s = self._published_s
        self._service = Service("llm-carbon-meter", self._turn, self._failed, source.wake)

    def _rate_of_making(self, config: Config, model: CostModel) -> float | None:
        """Embodied grams of a GPU second; nobody knows those of a CPU."""
        if self._boundary == CPU:
            return None
        return embodied_rate(config.embodied, model.gpu, host=config.embodied_host)

    def _open_ledger(self, config: Config, model: CostModel) -> EnergyLedger:
        lag_s = config.counter_lag_s if isinstance(config.counter_lag_s, float) else None
        power, host = self._power, self._host
        return EnergyLedger(
            power.gpus,
            model,
            power.source,
            self._quality,
            engine=self._engine,
            policy=config.policy,
            idle_by_time=config.idle == "by_time",
            lag_s=lag_s,
            tick_s=TICK_S,
            embodied_grams_per_gpu_s=self._embodied_rate,
            litres_per_joule=self._litres_per_joule,
            learner=self._coefficients.learner if self._coefficients else None,
            lags=self._coefficients.lags if self._coefficients and lag_s is None else None,
            watch=self._see if self._factors else None,
            host=host.meter.gpus if host else (),
            host_source=host.meter.source if host else None,
        )

    def _see(self, tick: SeenTick) -> None:
        """Estimates learn from a tick; a fault of theirs takes nothing from the book."""
        assert self._factors is not None
        try:
            self._factors.see_tick(*tick)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            self._faults.note("estimator", error, "Estimates did not learn from this tick.")

    def start(self) -> None:
        """Take the first reading and start both threads.

        Raises:
            PowerError: a GPU does not answer.
        """
        first = self._power.read()
        silent = set(self._power.gpus) - {reading.gpu for reading in first}
        if silent:
            raise PowerError(f"no first reading from {', '.join(sorted(silent))}")
        self._readings.extend(first)
        if self._host_sampler is not None:
            self._host_sampler.start()
        if self._watch is not None:
            self._watch.start()
        self._sampler.start()
        self._grid.start()
        self._service.start()

    def stop(self) -> None:
        """Settle the last tick, close what is open, publish it, and end both threads."""
        self._sampler.stop()
        if self._host_sampler is not None:
            self._host_sampler.stop()
        self._grid.stop()
        self._service.stop(STOP_S)
        if self._watch is not None:
            self._watch.stop()
        saves = [learner.save for learner in self._learners]
        closes = [self._power.close, *([self._host.meter.close] if self._host else [])]
        for finish in (self._settle_the_rest, *saves, *closes):
            self._faults.attempt("stop", finish)

    @property
    def _learners(self) -> Sequence[KeptCoefficients | LiveLearner]:
        """Those that keep what they learnt."""
        return [learner for learner in (self._coefficients, self._factors) if learner]

    def _turn(self) -> float:
        """Work one slice off; seconds until the next one."""
        return 0.0 if self._work_off() else HEARTBEAT_S

    def _failed(self, error: Exception) -> float:
        self._faults.note("meter", error, "Figures of this moment are incomplete.")
        return HEARTBEAT_S

    def _work_off(self) -> bool:
        """One slice of events; True where more is waiting."""
        batch = self._source.drain(SLICE_ROWS)
        windows = self._faults.attempt("ledger", self._ledger.observe_steps, batch.steps) or []
        if isinstance(self._power, ModelledMeter):
            self._power.add_load(windows, batch.known_until_s)
        self._close(batch.ends)
        self._tell_load(EngineLoad(self._engine, batch.load))
        self._settle(batch.known_until_s)
        return batch.more

    def _close(self, ends: Sequence[RequestEnd]) -> None:
        """Publish the provisional figures of requests that ended."""
        close, grams_per_joule = self._ledger.close, self._grams_per_joule
        told = [self._faults.attempt("ledger", close, end, grams_per_joule) for end in ends]
        self._publish([energy for energy in told if energy is not None])

    def _tell_load(self, load: EngineLoad) -> None:
        """Publish whose requests the engine holds, where that has changed."""
        now_s = time.monotonic()
        if load != self._load and now_s - self._load_s > LOAD_S:
            self._load, self._load_s = load, now_s
            self._publish([load])

    @property
    def _grams_per_joule(self) -> float:
        """gCO2eq of the grid now."""
        return operational_grams(1.0, self._grid.now, self._pue)

    def _settle(self, known_until_s: float) -> None:
        while self._readings:
            self._ledger.observe_reading(self._readings.popleft())
        self._observe_host()
        finals = self._ledger.settle(known_until_s, self._grams_per_joule)
        if finals or time.monotonic() - self._published_s > TOTALS_S:
            self._published_s = time.monotonic()
            # Totals first: whoever sees a final figure finds its joules in them.
            self._publish([self._load, self._totals(), *finals])
        for learner in self._learners:
            learner.save_at_times()

    def _observe_host(self) -> None:
        while self._host_readings:
            self._ledger.observe_host(self._host_readings.popleft())

    def _settle_the_rest(self) -> None:
        while self._work_off():
            pass
        now_s = time.monotonic()
        ends = [
            RequestEnd(request_id, Outcome.ABORTED, 0, 0, 0, now_s)
            for request_id in self._ledger.open_requests()
        ]
        self._close(ends)
        self._ledger.allow_short_ticks()
        while self._ledger.num_closed and time.monotonic() < now_s + LAST_TICK_S:
            self._readings.extend(self._power.read())
            if self._host is not None:
                last = self._faults.attempt("host_energy", self._host.meter.read)
                self._host_readings.extend(last or ())
            self._work_off()
            time.sleep(0.02)
        finals = self._ledger.give_up(time.monotonic(), self._grams_per_joule)
        self._publish([self._totals(), *finals])

    def _totals(self) -> EngineTotals:
        gpus, rate = self._ledger.totals(), self._embodied_rate
        seconds = zip(*(gpu.account_seconds for gpu in gpus), strict=True)
        return EngineTotals(
            session=self._session,
            engine=self._engine,
            source=self._power.source,
            gpus=tuple(gpus),
            account_grams=tuple(self._ledger.account_grams.tolist()),
            embodied_grams=()
            if rate is None
            else tuple(rate * sum(of_gpus) for of_gpus in seconds),
            intensity=self._grid.now,
            steps=dict(self._ledger.counts.steps),
            tokens=dict(self._ledger.counts.tokens),
            errors=dict(self._faults.counts),
            sampler_gap_s=self._sampler.gap_s,
            sampler_read_s=self._sampler.read_s,
            open_requests=self._ledger.num_open,
            factors=self._factors.factors if self._factors else None,
            account_litres=self._litres(gpus),
            host=self._ledger.host_totals(),
            boundary=self._boundary,
            covers=self._covers,
        )

    def _litres(self, gpus: Sequence[GpuTotals]) -> tuple[float, ...]:
        """Water by account; none where the settings name no factor."""
        factor = self._litres_per_joule
        if factor is None:
            return ()
        accounts = zip(*(gpu.account_joules for gpu in gpus), strict=True)
        return tuple(factor * sum(of_gpus) for of_gpus in accounts)
