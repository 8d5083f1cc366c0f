"""Learns step coefficients while serving: seconds from durations, watts from the counters.

Two small least-squares fits that are pulled towards the data sheet, and forget only what they see
anew: what the load does not show stays as it was. Only measured joules may come here.
"""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from llm_carbon_meter.physics.gpu_specs import GpuSpec
from llm_carbon_meter.physics.linear_kernels import KNOTS
from llm_carbon_meter.physics.step_coefficients import LOADS, sheet_coefficients
from llm_carbon_meter.physics.step_work import HEAD, PARTS, Floats, Work

WINDOW_S: Final = 1.0
"""Joules are compared over this long: beside it a counter's period and lag are small."""
AVERAGED_WINDOW_S: Final = 10.0
"""As `WINDOW_S`, of a power that is an average over a second: shorter windows would see less of the
difference between two kinds of steps than there is."""
MEMORY_S: Final = 20.0
"""In every direction in which windows can differ this much is remembered, however old it is. More
follows a load that changes too slowly, whose errors are alike for as long as it stays."""
STEPS_MEMORY_S: Final = 5.0
"""As `MEMORY_S`, of the steps' seconds: hundreds of steps of a kind say how long it takes. More
would drown the kinds that come seldom."""
SHEET_SECONDS: Final = 1e-4
"""Squared error of durations that no number of steps takes away: 1 % of them."""
DOUBTS: Final = np.array((1.5, 2.0, *(0.2,) * len(KNOTS), 0.4, 1.5, 0.7))
"""By how much each of the usual `StepCoefficients.seconds` may be wrong. A launch may take some
milliseconds; linear kernels are wrong together, and beyond that as `KNOT_DOUBTS` has it."""
KNOT_DOUBTS: Final = np.array((0.0, 0.15, 0.15, 0.3, 0.38, 0.22, 0.15, 0.22))
"""By how much each of the `KNOTS` may differ from the one before otherwise than usual: most where
kernels turn from moving to computing, and waste a part of their tiles."""
WATT_DOUBTS: Final = np.array((0.1, *(0.12,) * len(LOADS), 0.05))
"""By how much the usual watts may be wrong, as shares of the limit, in the order of a window's
seconds."""
ALIKE: Final = np.array(
    [
        [1.0, 0.7, 0.7, 0.7, 0.9],
        [0.7, 1.0, 0.9, 0.7, 0.7],
        [0.7, 0.9, 1.0, 0.9, 0.7],
        [0.7, 0.7, 0.9, 1.0, 0.7],
        [0.9, 0.7, 0.7, 0.7, 1.0],
    ]
)
"""How alike these errors are among the `LOADS`, as correlations: a GPU that draws little while it
moves weights does so while it reads the KV cache, and so with linear kernels and attention."""
WINDOW_ERROR: Final = 0.08
"""Of a window's joules, against which the usual watts are weighed; windows of a load err alike."""
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
        most: of every coefficient.
    """

    start: Floats
    most: Floats
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

    def solve(self, weight: Floats) -> Floats:
        """Coefficients; ``weight`` of the start, a matrix like the moments."""
        moments = self.moments + weight
        products = self.products + weight @ self.start
        solution = np.full(len(self.start), LEAST)
        free = np.ones(len(solution), np.bool_)
        # Whoever crosses a bound is held there, and the others are solved again.
        while free.any():
            rest = products[free] - moments[np.ix_(free, ~free)] @ solution[~free]
            solution[free] = np.linalg.solve(moments[np.ix_(free, free)], rest)
            crossed = free & ((solution < LEAST) | (solution > self.most))
            if not crossed.any():
                break
            solution[crossed] = np.clip(solution[crossed], LEAST, self.most[crossed])
            free &= ~crossed
        return solution


@dataclass(slots=True)
class _Window:
    """What a GPU did and counted since its last lesson."""

    seconds: Floats = field(default_factory=lambda: np.zeros(2 + len(LOADS)))
    """Awake, under each of the `LOADS`, and without any step."""
    joules: float = 0.0

    @property
    def length_s(self) -> float:
        return float(self.seconds[0] + self.seconds[-1])


def _second_weights() -> Floats:
    """Of the usual seconds: the inverse of what is doubted of them."""
    differences = np.cumsum(KNOT_DOUBTS**2)
    doubted = np.diag(DOUBTS**2)
    doubted[2:HEAD, 2:HEAD] = DOUBTS[2] ** 2 + np.minimum.outer(differences, differences)
    return np.asarray(np.linalg.inv(doubted))


def _watt_weights() -> Floats:
    """Likewise of the usual watts, in windows."""
    alike = np.eye(len(WATT_DOUBTS))
    alike[1:-1, 1:-1] = ALIKE
    doubted = alike * np.outer(WATT_DOUBTS, WATT_DOUBTS)
    return np.asarray(WINDOW_ERROR**2 * np.linalg.inv(doubted))


SECOND_WEIGHTS: Final = _second_weights()
WATT_WEIGHTS: Final = _watt_weights()


class CoefficientLearner:
    """Learns the coefficients of one engine's GPUs, all of them together.

    Args:
        gpu: data sheet to start from.
        state: of an earlier learner of the same GPU and model, to go on from.

    Raises:
        ValueError: the state is that of no such learner.
    """

    def __init__(self, gpu: GpuSpec, state: LearnerState | None = None) -> None:
        sheet = sheet_coefficients(gpu)
        self._board_watts = gpu.board_watts
        self.coefficients = replace(sheet, gap_watts=sheet.static_watts)
        self._time = Fit(self.coefficients.seconds, np.full(PARTS, np.inf))
        self._power = Fit(self._limit_shares(), np.ones(len(WATT_DOUBTS)))
        self._windows: dict[str, _Window] = {}
        self.window_error = USUAL_ERROR
        """Usual relative error with which the joules of a window are expected."""
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
        known = self.coefficients
        watts = (known.static_watts, *known.load_watts, known.idle_watts)
        return np.array(watts) / known.limit_watts

    def see_steps(self, work: Work, durations: Floats) -> None:
        """Steps and the seconds that they took; relative errors count."""
        took = durations > 0
        parts = work.basis[:, took] / durations[took]
        memory = float(np.exp(-durations.sum() / STEPS_MEMORY_S))
        self._time.see(parts @ parts.T, parts.sum(axis=1), memory)

    def see_tick(
        self,
        gpu: str,
        busy_s: Floats,
        loads: Floats,
        idle_s: float,
        awake_s: float,
        joules: float,
        *,
        window_s: float = WINDOW_S,
    ) -> None:
        """What a GPU counted over some time.

        Args:
            gpu: its name.
            busy_s: seconds of each step inside the tick, shape (steps,).
            loads: of these steps, as `attribution.step_loads` gives them.
            idle_s: seconds without a step.
            awake_s: those of them in which clocks stayed up.
            joules: what the counter grew by.
            window_s: over which joules are compared.
        """
        window = self._windows.setdefault(gpu, _Window())
        working_s = float(busy_s.sum())
        window.seconds += (working_s + awake_s, *(busy_s @ loads), idle_s - awake_s)
        window.joules += joules
        if window.length_s >= window_s:
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
        trust = min(1.0, OUTLIER * self.window_error / max(error, TINY))
        self.window_error += 0.05 * (min(error, OUTLIER * self.window_error) - self.window_error)
        seen, weight = window.seconds * limit_watts / expected, trust * window.length_s
        self._power.see(
            np.asarray(weight * np.outer(seen, seen), np.float64),
            weight * seen * window.joules / expected,
            float(np.exp(-window.length_s / MEMORY_S)),
        )
        self._reckon()

    def _reckon(self) -> None:
        start, moments = self._time.start, self._time.moments
        doubted = SHEET_SECONDS * float(start @ moments @ start) + TINY
        limit_watts = self.coefficients.limit_watts
        # No load alone takes a GPU beyond its board's power.
        room_watts = self._board_watts - self.coefficients.static_watts
        self._power.most[1:-1] = max(room_watts / limit_watts, LEAST)
        watts = self._power.solve(WATT_WEIGHTS) * limit_watts
        idle = float(watts[-1])
        static = max(float(watts[0]), idle)  # no step draws less than no step
        self.coefficients = replace(
            self.coefficients,
            seconds=self._time.solve(doubted * SECOND_WEIGHTS),
            static_watts=static,
            load_watts=watts[1:-1],
            gap_watts=static,
            idle_watts=idle,
        )
