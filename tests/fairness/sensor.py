"""What a sensor shows of the power that a GPU truly drew: late, in jumps, and not always."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.power.nvml.nvml_meter import PowerIntegral
from llm_carbon_meter.records import EnergyReading, Quality

from .engine import TrueStep
from .gpus import TrueGpu
from .ranges import AVERAGED_OVER_S, SEEN_PERIOD_S, SEEN_SHARE, World

Floats = npt.NDArray[np.float64]

POLL_S: Final = 0.05
"""The product's own period."""
STAYS_AWAKE_S: Final = 0.01
"""In a shorter gap between two steps clocks stay up."""


@dataclass(frozen=True)
class Drawn:
    """Joules that a GPU has drawn by any time, piecewise linear."""

    times_s: Floats
    joules: Floats
    foreign_s: Floats
    foreign_joules: Floats

    def __call__(self, at_s: Floats) -> Floats:
        ours = np.interp(at_s, self.times_s, self.joules)
        return ours + np.interp(at_s, self.foreign_s, self.foreign_joules)


def drawn(
    world: World, gpu: TrueGpu, steps: Sequence[TrueStep], scale: float, until_s: float
) -> Drawn:
    """Steps, the idle time between them, and what a foreign process draws beside them."""
    start = np.array([step.start_s for step in steps])
    end = np.array([step.end_s for step in steps])
    gaps_s = np.append(start, until_s) - np.insert(end, 0, 0.0)
    awake = gpu.awake_watts * (gaps_s < STAYS_AWAKE_S)
    pieces = np.zeros(2 * len(steps) + 1)
    pieces[::2] = np.maximum(gaps_s, 0.0) * (gpu.idle_watts + awake)
    pieces[1::2] = [step.joules * scale for step in steps]
    times = np.concatenate(([0.0], np.column_stack((start, end)).ravel(), [max(until_s, end[-1])]))
    return Drawn(times, np.insert(np.cumsum(pieces), 0, 0.0), *_foreign(world, gpu, until_s))


def _foreign(world: World, gpu: TrueGpu, until_s: float) -> tuple[Floats, Floats]:
    values = world.values
    count = int(until_s / (values["foreign_on_s"] + values["foreign_off_s"])) + 2
    spans = np.tile([values["foreign_off_s"], values["foreign_on_s"]], count)
    watts = np.tile([0.0, values["foreign_share"] * gpu.sheet.board_watts], count)
    watts = watts * world.happens["foreign_process"]
    return np.insert(np.cumsum(spans), 0, 0.0), np.insert(np.cumsum(spans * watts), 0, 0.0)


def resolution_s(world: World) -> float:
    """The span below which a sensor resolves nothing: a counter's period, or the averaging."""
    return {
        "counter": world.values["counter_period_s"],
        "sampled_counter": SEEN_PERIOD_S,
        "averaged_power": AVERAGED_OVER_S,
    }[world.sensor]


def readings(world: World, name: str, curve: Drawn, until_s: float) -> list[EnergyReading]:
    """Everything that the sampler of a GPU gets to see."""
    random = np.random.default_rng([13, world.seed])  # the GPUs of a group are read together
    polls: Floats = np.arange(0.0, until_s, POLL_S).astype(np.float64)
    polls += world.values["poll_jitter_s"] * random.random(len(polls))
    silent = _silence(world, until_s, random)
    polls = polls[(polls < silent[0]) | (polls > silent[1])]
    if world.sensor == "averaged_power":
        joules = _averaged(curve, np.asarray(polls - world.values["counter_lag_s"], np.float64))
    else:
        joules = _counter(world, curve, polls, random)
    restarts = [silent[1]] if world.happens["dead"] else []
    restarts += [until_s * random.uniform(0.3, 0.8)] * world.happens["reset"]
    if world.sensor != "averaged_power":  # an integral of power is the meter's own
        for at_s in restarts:
            joules = joules - np.interp(at_s, polls, joules) * (polls > at_s)
    quality = Quality.POWER if world.sensor == "averaged_power" else Quality.COUNTER
    return [
        EnergyReading(at_s, name, value, quality=quality)
        for at_s, value in zip(polls.tolist(), joules.round(3).tolist(), strict=True)
    ]


def _silence(world: World, until_s: float, random: np.random.Generator) -> tuple[float, float]:
    start_s = until_s * random.uniform(0.3, 0.7)
    return start_s, start_s + world.values["silence_s"] * world.happens["dead"]


def _counter(world: World, curve: Drawn, polls: Floats, random: np.random.Generator) -> Floats:
    """The counter as it stood at its last update before each poll."""
    count = int(polls[-1] / (resolution_s(world) * 0.9)) + 3
    wobble = 1 + world.values["period_jitter"] * (random.random(count) - 0.5)
    updates = np.insert(np.cumsum(resolution_s(world) * wobble), 0, 0.0)
    lagged = updates - world.values["counter_lag_s"]
    values = curve(lagged)
    if world.sensor == "sampled_counter":
        seen_s = SEEN_SHARE * np.diff(updates)
        seen = (values[1:] - curve(lagged[1:] - seen_s)) / SEEN_SHARE
        values = np.insert(np.cumsum(seen), 0, 0.0)
    return np.asarray(values[np.searchsorted(updates, polls, side="right") - 1])


def _averaged(curve: Drawn, polls: Floats) -> Floats:
    watts = (curve(polls) - curve(polls - AVERAGED_OVER_S)) / AVERAGED_OVER_S
    integral = PowerIntegral()
    return np.array(
        [integral.add(at_s, value) for at_s, value in zip(polls.tolist(), watts, strict=True)]
    )
