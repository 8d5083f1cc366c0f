"""The kernels of a step that hang on its tokens alone: linear layers, experts, activations.

How long they take at the data sheet's peaks, and what keeps the GPU busy meanwhile. Real kernels
are slower, and not equally so for all numbers of tokens: products of some 200 to 400 tokens waste
a part of their tiles. `KNOTS` are where a factor of its own is known or learnt.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.kernels import StepCosts

Floats = npt.NDArray[np.float64]

KNOTS: Final = np.array((1.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0))
"""Tokens of a step; between two of them factors are interpolated in the logarithm."""
TURN: Final = 3.0
"""Factors of two around the ridge of the roofline in which kernels both move and compute."""
ACTIVITIES: Final = ("moving", "both", "computing")


class LinearKernels(NamedTuple):
    """Of steps with some number of tokens."""

    seconds: Floats
    """At the peaks: moving bytes or computing, whichever takes longer, shape (steps,)."""
    activities: Floats
    """Shares of these seconds in each of the `ACTIVITIES`, shape (3, steps)."""


def linear_kernels(tokens: Floats, costs: StepCosts, gpu: GpuSpec) -> LinearKernels:
    """Of steps with these numbers of tokens on one GPU of the group, shape (steps,)."""
    moved = costs.weight_bytes + costs.bytes_per_token * tokens
    if costs.num_experts:
        moved = moved + costs.expert_bytes * costs.touched_experts(tokens)
    moving_s = moved / gpu.bandwidth_bytes_per_s
    computing_s = costs.ops_per_token * tokens / gpu.compute_ops_per_s
    with np.errstate(divide="ignore"):
        turn = np.clip(np.log2(computing_s / moving_s) / TURN, -1.0, 1.0)
    activities = np.stack((np.maximum(-turn, 0.0), 1 - np.abs(turn), np.maximum(turn, 0.0)))
    return LinearKernels(np.maximum(moving_s, computing_s), activities)


def knot_shares(tokens: Floats) -> Floats:
    """How much each of the `KNOTS` has of steps with these numbers of tokens, shape (knots, n)."""
    place = np.interp(np.log(np.maximum(tokens, 1.0)), np.log(KNOTS), np.arange(len(KNOTS)))
    return np.asarray(np.maximum(1 - np.abs(place - np.arange(len(KNOTS))[:, None]), 0.0))


GRID: Final = np.unique(np.round(np.logspace(0, 18, 145, base=2)))
"""Tokens of a step at which curves are computed; they are interpolated in between."""
GRID_SHARES: Final = knot_shares(GRID)
