"""What the work of a step costs in seconds and watts: the step coefficients.

They begin as the GPU's data sheet has them; `ledger.coefficient_learner` learns better ones.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.step_work import EFFICIENCIES, Floats

MEMORY_BOUND_LOAD: Final = 0.6
"""Share of the dynamic power that a step draws while it waits for memory: decode at 180 to 200 W
against prefill at 270 to 300 W on a 300 W card (as a vLLM user saw on V100)."""
ROOFLINE: Final = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0)
"""`StepCoefficients.seconds` of a GPU that reaches its peaks: computing hides behind streaming, or
outlasts it."""


@dataclass(frozen=True, slots=True)
class StepCoefficients:
    """What the work of a step costs in time and power."""

    seconds: Floats
    """Real seconds per second of `Work.basis`, in its order."""
    static_watts: float
    """Drawn by a step whatever it does."""
    memory_watts: float
    """More, while it moves bytes."""
    compute_watts: float
    """More, while it computes."""
    idle_watts: float
    """Without a step."""
    limit_watts: float
    """Never more than this."""

    @property
    def compute_seconds(self) -> float:
        """Real seconds per second of computing, hidden or not."""
        return float(self.seconds[2] + (self.seconds[5:] / EFFICIENCIES[:, 0]).sum())

    @property
    def own_watts(self) -> Floats:
        """Dynamic power times real seconds, per second of each row of `Work.own_s`."""
        stream, _, attention, memory = self.seconds[1:5]
        real_seconds = np.array((stream, self.compute_seconds, attention, memory))
        return real_seconds * (
            self.memory_watts,
            self.compute_watts,
            self.compute_watts,
            self.memory_watts,
        )


def sheet_coefficients(gpu: GpuSpec) -> StepCoefficients:
    """What the data sheet promises; below its power limit a GPU draws what it would without one."""
    dynamic = gpu.board_watts - gpu.idle_watts
    return StepCoefficients(
        np.array(ROOFLINE),
        gpu.idle_watts,
        MEMORY_BOUND_LOAD * dynamic,
        dynamic,
        gpu.idle_watts,
        gpu.limit_watts,
    )
