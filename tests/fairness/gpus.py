"""The true GPU of a world: one of the two kinds."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.config import data_folder
from llm_carbon_meter.physics.gpu_specs import GpuSpec

from .kernel_truth import KernelGpu
from .ranges import World
from .truth import RooflineGpu

Floats = npt.NDArray[np.float64]


class TrueGpu(Protocol):
    """One GPU of a group as it really is."""

    @property
    def sheet(self) -> GpuSpec:
        """Its data sheet."""

    @property
    def idle_watts(self) -> float:
        """Without any work."""

    @property
    def awake_watts(self) -> float:
        """Drawn by a step on top of idle, whatever it does."""

    def work(self, new: Floats, cached: Floats, sampled: Floats) -> Any:
        """What requests bring to a step, as columns that add up."""

    def cost(self, work: Any) -> tuple[Floats, Floats]:
        """Seconds and joules of steps in which exactly this work is done."""

    def causes(self, work: Any, random: np.random.Generator) -> tuple[Floats, Floats]:
        """Joules that each request causes, in two independent halves of a sample."""


def true_gpu(world: World) -> TrueGpu:
    """The GPU of a world.

    Raises:
        OSError: its kernel tables are missing.
    """
    return KernelGpu.of(world, data_folder()) if world.kernels else RooflineGpu.of(world)
