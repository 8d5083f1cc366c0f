"""Learns step coefficients while serving: seconds from durations, watts from the counters.

Two small least-squares fits that are pulled towards the data sheet, and forget only what they see
anew: what the load does not show stays as it was. Only measured joules may come here.
"""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.step_coefficients import StepCoefficients, sheet_coefficients
from llm_carbon_meter.physics.step_work import Floats, Work

WINDOW_S: Final = 1.0
"""Joules are compared over this long: beside it a counter's period and lag are small."""
MEMORY_S: Final = 100.0
"""In every direction in which steps can differ this much is remembered, however old it is."""
SHEET_SECONDS: Final = 1e-4
"""Squared error of durations that no number of steps takes away: 1 % of them."""
DOUBTS: Final = np.array((2.0, 0.5, 0.3, 2.0, 1.0, 0.7, 0.5, 0.3))
"""By how much each of the data sheet's `StepCoefficients.seconds` may be wrong: a launch may take
some milliseconds, weights stream at 0.6 to 0.9 of the peak, KV cache and attention are slower."""
SHEET_WINDOWS: Final = 0.1
"""Weight of the data sheet's watts, as windows: these are known to some 10 %, the data sheet's
watts to 30 %."""
AWAKE_LOAD: Final = 0.1
"""Share of the dynamic power that a step is first thought to draw whatever it does, its clocks
being up. Measured: 0.06 on A100 (decode of Pythia-70M, 74 W where 60 W are idle, in
danielcregg/llm-energy-framework), 0.09 on H200 (126 W in its lightest kernels, in
ai-dynamo/aiconfigurator); a CUDA context alone adds 26 to 66 W to H100, A100 and L40S (arXiv
2605.23918)."""
USUAL_ERROR: Final = 0.3
"""Of a window's joules, relative, before any was seen."""
OUTLIER: Final = 2.5
"""Errors beyond this many times the usual one pull no harder."""
LEAST: Final = 1e-3
"""Of any coefficient, watts as a share of the limit: nothing is free."""
TINY: Final = 1e-9
ROUNDING: Final = 1e-6
"""How far below 0 an eigenvalue of sums of squares may lie, as a share of their trace."""


@dataclass(frozen=True, slots=True)
class FitState:
    """What a fit has seen: sums of x x^T and of x y."""

    moments: tuple[tuple[float, ...], ...]
    products: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LearnerState:
    """What a learner has seen."""

    seconds: FitState
    watts: FitState


@dataclass(slots=True)
class Fit:
    """Least squares y = x z, every coefficient at least `LEAST`.

    What was seen fades as the same is seen again, direction by direction of x. Fading with time
    alone would take a load that never changes back to the start, wherever it tells nothing.

    Args:
        start: what holds before anything was seen.
    """

    start: Floats
    moments: Floats = field(init=False)
    products: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.moments = np.zeros((len(self.start), len(self.start)))
        self.products = np.zeros(len(self.start))

    def see(self, moments: Floats, products: Floats, kept: float) -> None:
        """Add sums of x x^T and x y; of what was known of the like, the share ``kept`` stays.

        Directional forgetting: R - (1 - kept) R M R / tr(R M) + M for the sums M of new x x^T;
        of one x it is that of Cao and Schwartz (Automatica 36, 2000). The solution of the past
        alone is not moved.
        """
        overlap = float((self.moments * moments).sum())
        if overlap > TINY:
            fading = (1 - kept) / overlap * (self.moments @ moments)
            self.products = self.products - fading @ self.products
            self.moments = self.moments - fading @ self.moments
        self.moments = self.moments + moments
        self.products = self.products + products

    @property
    def state(self) -> FitState:
        """What was seen."""
        return FitState(tuple(map(tuple, self.moments.tolist())), tuple(self.products.tolist()))

    def restore(self, state: FitState) -> None:
        """Go on from what was seen before.

        Raises:
            ValueError: it is the state of no such fit.
        """
        moments = np.array(state.moments, np.float64)
        products = np.array(state.products, np.float64)
        if (moments.shape, products.shape) != (self.moments.shape, self.products.shape):
            raise ValueError(f"sums of {self.moments.shape} are expected, not of {moments.shape}")
        sane = np.isfinite(moments).all() and np.isfinite(products).all()
        if not sane or np.linalg.eigvalsh(moments)[0] < -ROUNDING * moments.trace():
            raise ValueError("its sums are not those of any observations")
        self.moments, self.products = moments, products

    def solve(self, ridge: Floats) -> Floats:
        """Coefficients; ``ridge`` is the weight of the start for each of them."""
        moments = self.moments + np.diag(ridge)
        products = self.products + ridge * self.start
        solution = np.full(len(self.start), LEAST)
        free = np.ones(len(solution), np.bool_)
        # Whoever falls below the bound is held there, and the others are solved again.
        while free.any():
            rest = products[free] - moments[np.ix_(free, ~free)] @ solution[~free]
            solution[free] = np.linalg.solve(moments[np.ix_(free, free)], rest)
            low = free & (solution < LEAST)
            if not low.any():
                break
            solution[low] = LEAST
            free &= ~low
        return solution


@dataclass(slots=True)
class _Window:
    """What a GPU did and counted since its last lesson."""

    seconds: Floats = field(default_factory=lambda: np.zeros(4))
    """Awake, moving bytes, computing, all."""
    joules: float = 0.0

    @property
    def length_s(self) -> float:
        return float(self.seconds[3])


def _awake(coefficients: StepCoefficients) -> StepCoefficients:
    """A part of what memory and computing draw is drawn anyhow; busy with either, it is as much."""
    watts = AWAKE_LOAD * coefficients.compute_watts
    return replace(
        coefficients,
        static_watts=coefficients.static_watts + watts,
        memory_watts=coefficients.memory_watts - watts,
        compute_watts=coefficients.compute_watts - watts,
    )


class CoefficientLearner:
    """Learns the coefficients of one engine's GPUs, all of them together.

    Args:
        gpu: data sheet to start from.
        state: of an earlier learner of the same GPU and model, to go on from.

    Raises:
        ValueError: the state is that of no such learner.
    """

    def __init__(self, gpu: GpuSpec, state: LearnerState | None = None) -> None:
        self.coefficients = _awake(sheet_coefficients(gpu))
        self._time = Fit(self.coefficients.seconds)
        self._power = Fit(self._limit_shares())
        self._windows: dict[str, _Window] = {}
        self._usual_error = USUAL_ERROR
        if state is not None:
            self._time.restore(state.seconds)
            self._power.restore(state.watts)
            self._reckon()

    @property
    def state(self) -> LearnerState:
        """All that was learnt."""
        return LearnerState(self._time.state, self._power.state)

    def _limit_shares(self) -> Floats:
        """Watts as shares of the GPU's limit, in the order of a window's seconds."""
        coefficients = self.coefficients
        awake_watts = coefficients.static_watts - coefficients.idle_watts
        watts = (
            awake_watts,
            coefficients.memory_watts,
            coefficients.compute_watts,
            coefficients.idle_watts,
        )
        return np.array(watts) / coefficients.limit_watts

    def see_steps(self, work: Work, durations: Floats) -> None:
        """Steps and the seconds that they took; relative errors count."""
        took = durations > 0
        parts = work.basis[:, took] / durations[took]
        memory = float(np.exp(-durations.sum() / MEMORY_S))
        self._time.see(parts @ parts.T, parts.sum(axis=1), memory)

    def see_tick(
        self,
        gpu: str,
        busy_s: Floats,
        loads: Floats,
        idle_s: float,
        awake_s: float,
        joules: float,
    ) -> None:
        """What a GPU counted over some time.

        Args:
            gpu: its name.
            busy_s: seconds of each step inside the tick, shape (steps,).
            loads: of these steps, as `attribution.step_loads` gives them.
            idle_s: seconds without a step.
            awake_s: those of them in which clocks stayed up.
            joules: what the counter grew by.
        """
        window = self._windows.setdefault(gpu, _Window())
        working_s = float(busy_s.sum())
        window.seconds += (working_s + awake_s, *(busy_s @ loads), working_s + idle_s)
        window.joules += joules
        if window.length_s >= WINDOW_S:
            self.skip(gpu)
            self._learn(window)

    def skip(self, gpu: str) -> None:
        """Forget a window that began: what follows does not belong to it."""
        self._windows.pop(gpu, None)

    def _learn(self, window: _Window) -> None:
        """Relative errors count here, too, and a window that fits badly counts less."""
        limit_watts = self.coefficients.limit_watts
        expected = float(window.seconds @ self._limit_shares()) * limit_watts
        error = abs(window.joules / expected - 1)
        trust = min(1.0, OUTLIER * self._usual_error / max(error, TINY))
        self._usual_error += 0.05 * (min(error, OUTLIER * self._usual_error) - self._usual_error)
        seen, weight = window.seconds * limit_watts / expected, trust * window.length_s
        self._power.see(
            np.asarray(weight * np.outer(seen, seen), np.float64),
            weight * seen * window.joules / expected,
            float(np.exp(-window.length_s / MEMORY_S)),
        )
        self._reckon()

    def _reckon(self) -> None:
        start, moments = self._time.start, self._time.moments
        doubted = SHEET_SECONDS * float(start @ moments @ start) / DOUBTS**2
        watts = self._power.solve(np.full(4, SHEET_WINDOWS)) * self.coefficients.limit_watts
        awake, memory, compute, idle = watts.tolist()
        self.coefficients = replace(
            self.coefficients,
            seconds=self._time.solve(doubted + TINY),
            static_watts=idle + awake,  # no step draws less than no step
            memory_watts=memory,
            compute_watts=compute,
            idle_watts=idle,
        )
