"""How much of which hardware a month's traffic needs, and what that uses, emits and costs.

For each model, GPU and size of a group: the largest concurrency that fits the memory and meets the
SLO, as many replicas as the peak needs at it, and the energy of the mean load on them. GPUs that
have no request draw idle power, which is a part of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, exp
from typing import Final

from llm_carbon_meter.carbon.emissions import GRAMS_PER_KILOGRAM, operational_grams
from llm_carbon_meter.estimate.replica import Replica, Served, Slo
from llm_carbon_meter.estimate.traffic import SECONDS_PER_MONTH, Traffic, positive
from llm_carbon_meter.exporters.columns import figure
from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.memory import (
    Memory,
    check_context,
    check_memory,
    memory_of,
    server_limits,
)
from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.parallel import check_tensor_parallel, group_sizes
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.gnn import BoundGnn, GnnModel
from llm_carbon_meter.records import CarbonIntensity, MeterError, SpecError
from llm_carbon_meter.units import JOULES_PER_KILOWATT_HOUR, MILLI

ONE_SERVER: Final = 8
"""GPUs of a group at most, unless sizes are given."""
SECONDS_PER_HOUR: Final = 3600.0
EVEN: Final = 1e-9
"""A load that is larger by less than what replicas serve is what they serve."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What is paid for; None leaves a part out.

    Raises:
        MeterError: a price that is none.
    """

    currency: str = "USD"
    per_kwh: float | None = None
    per_gpu_hour: float | None = None

    def __post_init__(self) -> None:
        prices = {"kwh": self.per_kwh, "gpu-hour": self.per_gpu_hour}
        for name, price in prices.items():
            if price is not None:
                positive(f"price-per-{name}", price, f"leave --price-per-{name} out if it is free")

    @property
    def known(self) -> bool:
        """Whether there is any."""
        return self.per_kwh is not None or self.per_gpu_hour is not None


@dataclass(frozen=True, slots=True)
class Site:
    """Where the GPUs stand."""

    intensity: CarbonIntensity
    """Of the grid."""
    pue: float = 1.0
    """Facility energy over that of the GPUs; in grams and money."""
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True, slots=True)
class Range:
    """A figure, and what 10 % and 90 % of such estimates stay below."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """In another unit."""
        return Range(factor * self.value, factor * self.low, factor * self.high)

    def plus(self, other: "Range") -> "Range":
        """The sum, where both are high together."""
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Choice:
    """Hardware that serves the traffic, and a month of it."""

    model: str
    gpu: str
    num_gpus: int
    """Of a replica."""
    replicas: Range
    batch: int
    """Requests that share a replica at most."""
    mean_batch: float
    """That share it at the mean load, while there are any."""
    power_limit_watts: float
    """Of a GPU: its data sheet's, unless a lower one was asked for."""
    ttft_s: Range
    """Mean time to first token in full replicas."""
    tpot_s: Range
    """Mean time per output token after it, likewise."""
    busy: float
    """Share of the month in which a replica has requests."""
    active_kwh: Range
    """Of the GPUs while they have requests."""
    idle_kwh: float
    """While they have none."""
    kilograms: Range
    """CO2 equivalent of both, operational."""
    money: Range | None
    """None without a price."""
    measured: bool
    """Whether requests were measured on such a GPU and engine."""
    out_of_domain: str
    """What was not measured; empty where all was."""

    @property
    def gpus(self) -> int:
        """All that are needed."""
        return round(self.replicas.value) * self.num_gpus

    @property
    def kwh(self) -> Range:
        """Of all GPUs."""
        return self.active_kwh.plus(Range(self.idle_kwh, self.idle_kwh, self.idle_kwh))

    @property
    def mean_watts(self) -> float:
        """Of one GPU, over the month."""
        return self.kwh.value * JOULES_PER_KILOWATT_HOUR / SECONDS_PER_MONTH / self.gpus


@dataclass(frozen=True, slots=True)
class Refused:
    """What is no choice, and why."""

    model: str
    gpu: str
    num_gpus: int | None
    """None where it is so for every size."""
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All choices, and what is none."""

    choices: Sequence[Choice]
    refused: Sequence[Refused]


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans deployments for one traffic.

    Args:
        energy: the model that predicts time and energy.
        traffic: to serve.
        slo: that it must meet.
        site: grid and prices.
        engine: as `Deployment` has it.
        engine_version: likewise.
    """

    energy: GnnModel
    traffic: Traffic
    slo: Slo
    site: Site
    engine: str = "vllm"
    engine_version: str = ""

    def plan(
        self, models: Sequence[ModelSpec], gpus: Sequence[GpuSpec], sizes: Sequence[int] = ()
    ) -> Plan:
        """Every model on every GPU.

        Args:
            models: to serve.
            gpus: their data sheets; what a lowered power limit costs shows with its own sheet.
            sizes: GPUs of a replica; by default those of one server that the model fits on.
        """
        answers = [
            answer
            for model in models
            for gpu in gpus
            for answer in (self._given(model, gpu, sizes) if sizes else self._fitting(model, gpu))
        ]
        return Plan(
            [answer for answer in answers if isinstance(answer, Choice)],
            [answer for answer in answers if isinstance(answer, Refused)],
        )

    def _given(
        self, model: ModelSpec, gpu: GpuSpec, sizes: Sequence[int]
    ) -> Iterator[Choice | Refused]:
        for size in sizes:
            try:
                check_tensor_parallel(model, size)
                yield self.choose(model, gpu, size)
            except MeterError as error:
                yield Refused(model.name, gpu.name, size, str(error))

    def _fitting(self, model: ModelSpec, gpu: GpuSpec) -> Iterator[Choice | Refused]:
        """The sizes of one server that the model fits on; one reason where it fits on none."""
        fits, unfit = False, ""
        for size in group_sizes(model):
            if size > ONE_SERVER:
                break
            try:
                yield self.choose(model, gpu, size)
            except SpecError as error:
                unfit = str(error)
                continue
            except MeterError as error:
                yield Refused(model.name, gpu.name, size, str(error))
            fits = True
        if not fits:
            yield Refused(model.name, gpu.name, None, unfit)

    def choose(self, model: ModelSpec, gpu: GpuSpec, num_gpus: int) -> Choice:
        """One deployment.

        Raises:
            SpecError: the requests do not fit on it.
            MeterError: it cannot meet the promise.
        """
        memory = memory_of(model, gpu, num_gpus)
        most = self._most(memory)
        limits = server_limits(gpu)
        deployment = Deployment(
            model, gpu, num_gpus, self.engine, self.engine_version, limits.step_tokens
        )
        law = self.energy.bind(deployment)
        replica = Replica(law, self.traffic.lengths, limits.step_tokens)
        full = replica.largest(min(most, limits.sequences), self.slo)
        if not full.meets(self.slo):
            raise MeterError(_too_late(full, self.slo))
        return self._choice(deployment, law, replica, full)

    def _most(self, memory: Memory) -> int:
        """Requests at once that the memory holds.

        Raises:
            SpecError: less than one of the longest.
        """
        lengths = self.traffic.lengths
        check_context(memory.model, *lengths.longest)
        check_memory(memory, 1, *lengths.longest)
        return memory.most(float(lengths.prompt_tokens.mean()), float(lengths.output_tokens.mean()))

    def _choice(
        self, deployment: Deployment, law: BoundGnn, replica: Replica, full: Served
    ) -> Choice:
        """A month of it."""
        traffic, gpu, size = self.traffic, deployment.gpu, deployment.num_gpus
        slow = _spread(float(full.time_width[0]))
        busiest = traffic.rate * traffic.peak * float(full.seconds[0] / full.concurrency[0])
        replicas = Range(
            *(max(ceil(busiest * factor - EVEN), 1) for factor in (1.0, slow.low, slow.high))
        )
        mean, busy = replica.under_load(traffic.rate / replicas.value, full)
        joules = _spread(float(mean.energy_width[0])).times(
            traffic.requests * float(mean.joules[0])
        )
        idle_s = (1 - busy) * SECONDS_PER_MONTH * replicas.value * size
        idle = idle_s * gpu.idle_watts
        total = joules.plus(Range(idle, idle, idle))
        return Choice(
            model=deployment.model.name,
            gpu=gpu.name,
            num_gpus=size,
            replicas=replicas,
            batch=round(full.concurrency[0]),
            mean_batch=float(mean.concurrency[0]),
            power_limit_watts=gpu.limit_watts,
            ttft_s=slow.times(float(full.ttft_s[0])),
            tpot_s=slow.times(float(full.tpot_s[0])),
            busy=busy,
            active_kwh=joules.times(1 / JOULES_PER_KILOWATT_HOUR),
            idle_kwh=idle / JOULES_PER_KILOWATT_HOUR,
            kilograms=total.times(
                operational_grams(1.0, self.site.intensity, self.site.pue) / GRAMS_PER_KILOGRAM
            ),
            money=self._money(total, replicas.times(size)),
            measured=law.measured,
            out_of_domain=law.out_of_domain,
        )

    def _money(self, joules: Range, gpus: Range) -> Range | None:
        prices = self.site.prices
        if not prices.known:
            return None
        energy = joules.times(self.site.pue / JOULES_PER_KILOWATT_HOUR * (prices.per_kwh or 0.0))
        hours = SECONDS_PER_MONTH / SECONDS_PER_HOUR
        return energy.plus(gpus.times(hours * (prices.per_gpu_hour or 0.0)))


def _spread(width: float) -> Range:
    """Factors of a figure with that width."""
    return Range(1.0, exp(-width), exp(width))


def _too_late(served: Served, slo: Slo) -> str:
    """What a deployment reaches at best, and what was promised."""
    reached = (
        ("TTFT", float(served.ttft_s[0]), slo.ttft_s),
        ("TPOT", float(served.tpot_s[0]), slo.tpot_s),
    )
    best = " and ".join(f"{name} {_milliseconds(time)}" for name, time, _ in reached)
    missed = [f"{name} {_milliseconds(limit)}" for name, time, limit in reached if time > limit]
    return f"{best} at best, alone on the GPUs; the SLO is {' and '.join(missed)}"


def _milliseconds(seconds: float) -> str:
    return f"{figure(seconds / MILLI)} ms"
