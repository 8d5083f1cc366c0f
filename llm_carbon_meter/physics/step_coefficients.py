"""What the work of a step costs in seconds and watts: the step coefficients.

They begin at the GPU's data sheet, less what measured kernels usually miss of it;
`ledger.coefficient_learner` learns better ones.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.linear_kernels import ACTIVITIES
from llm_carbon_meter.physics.step_work import PARTS, Floats

USUAL_SECONDS: Final = np.array(
    (1.5, 1.0, *(1.33, 1.33, 1.34, 1.35, 1.45, 1.45, 1.45, 1.5), 1.25, 2.0, 1.4)
)
"""Real seconds per second of `Work.basis`. Of linear kernels, head, attention and KV cache these
are medians of measured kernels (Llama-3.1-8B, Qwen3 8B to 32B and 30B-A3B on H200, H100, A100 and
L40S, in ai-dynamo/aiconfigurator); launches of 1.5 ms and 10 us a request are assumed."""
LOADS: Final = (*ACTIVITIES, "attention", "cache")
"""What may keep a GPU busy in a step: linear kernels by what they do, LM head (it moves),
attention, and the KV cache."""
USUAL_LOADS: Final = np.array((0.55, 0.8, 0.82, 0.6, 0.55))
"""Share of the dynamic power (board - idle) that each of the `LOADS` draws beyond `AWAKE_LOAD`;
medians of the same kernels."""
AWAKE_LOAD: Final = 0.1
"""Share of the dynamic power that a step draws whatever it does, its clocks being up. Measured:
0.06 on A100 (decode of Pythia-70M, 74 W where 60 W are idle, in danielcregg/llm-energy-framework),
0.09 on H200 (126 W in its lightest kernels, in ai-dynamo/aiconfigurator); a CUDA context alone adds
26 to 66 W to H100, A100 and L40S (arXiv 2605.23918)."""

AWAKE_S: Final = 0.01
"""In a gap between two steps that is shorter than this clocks stay up."""


@dataclass(frozen=True, slots=True)
class StepCoefficients:
    """What the work of a step costs in time and power."""

    seconds: Floats
    """Real seconds per second of `Work.basis`, in its order."""
    static_watts: float
    """Drawn by a step whatever it does."""
    load_watts: Floats
    """More, under each of the `LOADS`."""
    gap_watts: float
    """In gaps of less than `AWAKE_S`; those of a GPU that is only modelled are idle."""
    idle_watts: float
    """Without a step."""
    limit_watts: float
    """Never more than this."""


def sheet_coefficients(gpu: GpuSpec) -> StepCoefficients:
    """What a data sheet makes expect; below its power limit a GPU draws what it would without."""
    dynamic = gpu.board_watts - gpu.idle_watts
    awake = gpu.idle_watts + AWAKE_LOAD * dynamic
    assert len(USUAL_SECONDS) == PARTS
    return StepCoefficients(
        USUAL_SECONDS, awake, USUAL_LOADS * dynamic, gpu.idle_watts, gpu.idle_watts, gpu.limit_watts
    )
