"""Sampling strategies compared on measurements that are given, without a GPU.

A pool of rows stands in for both the priors and the measuring: drawing is choosing a row that was
not chosen yet, and a configuration's neighbours are the rows within ±C of it.
"""

import multiprocessing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.progress import progress
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.configurations import (
    NOTHING_LOCKED,
    RECORDED_RADIUS,
    Configuration,
    Locked,
    Radius,
    lock,
    within,
)
from llm_carbon_meter.training.data.physics_features import column
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.fit.examples import examples
from llm_carbon_meter.training.fit.metrics import Interval, bootstrap, errors
from llm_carbon_meter.training.fit.train import fit
from llm_carbon_meter.training.study.baselines.baseline import Predict
from llm_carbon_meter.training.study.evaluate.jobs import PROCESSES, one_thread
from llm_carbon_meter.training.study.sampling import (
    Fit,
    Measured,
    Plan,
    Propose,
    Round,
    around_errors,
    from_priors,
    rounds,
)

Floats = npt.NDArray[np.float64]

TEST_SHARE: Final = 0.2
GATE: Final = 0.5
"""The middle of the network's share: choosing it in every round takes four times as long."""


class Pool:
    """Recorded measurements, as a prior and as their own measurement.

    Args:
        rows: one of each configuration, see ``merge_repeats``.
        radius: C, within which rows are neighbours.
        locked: of which nothing is in the pool.
        evenly: draw a row of every group of architecture and GPU in turn; else any rows.

    Raises:
        MeterError: two rows are of one configuration.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        radius: Radius = RECORDED_RADIUS,
        locked: Locked = NOTHING_LOCKED,
        evenly: bool = False,
    ) -> None:
        every = [(Configuration.of(row), row) for row in rows]
        self._rows = {
            configuration: row for configuration, row in every if locked.admits(configuration)
        }
        self._radius, self._evenly = radius, evenly
        if len(dict(every)) < len(every):
            raise MeterError(
                f"{len(every)} rows are of {len(dict(every))} configurations; merge repeated runs"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def draw(
        self, count: int, taken: Collection[Configuration], rng: np.random.Generator
    ) -> list[Configuration]:
        """Rows not taken, at random."""
        left = [configuration for configuration in self._rows if configuration not in taken]
        order = [left[place] for place in rng.permutation(len(left))]
        return (_in_turn(order) if self._evenly else order)[:count]

    def around(
        self,
        centre: Configuration,
        count: int,
        taken: Collection[Configuration],
        rng: np.random.Generator,
    ) -> list[Configuration]:
        """Rows within ±C that are not taken, at random."""
        near = [
            configuration
            for configuration in self._rows
            if configuration != centre
            and configuration not in taken
            and within(configuration, centre, self._radius)
        ]
        return [near[place] for place in rng.permutation(len(near))[:count]]

    def measure(self, configurations: Sequence[Configuration]) -> Measured:
        """What was recorded."""
        return {configuration: self._rows[configuration] for configuration in configurations}


def _in_turn(order: Sequence[Configuration]) -> list[Configuration]:
    """The first of every group, then the second of every group …, groups as they come."""
    seen: dict[tuple[str, str], int] = {}
    turns = []
    for configuration in order:
        seen[configuration.group] = turn = seen.get(configuration.group, -1) + 1
        turns.append(turn)
    return [order[place] for place in np.argsort(turns, kind="stable")]


@dataclass(frozen=True, slots=True)
class Strategy:
    """Where the first measurements come from, and the next."""

    propose: Propose
    evenly: bool = False
    """Draws go through groups of architecture and GPU in turn."""


STRATEGIES: Final[Mapping[str, Strategy]] = {
    "focused": Strategy(around_errors),
    "random": Strategy(from_priors),
    "even": Strategy(from_priors, evenly=True),
}
"""Focused and random begin with the same measurements."""


class Point(NamedTuple):
    """Of a learning curve."""

    measurements: int
    mape: float
    """On the test set [%]."""
    num_near: int
    """Measurements around points of large error."""


def locked_rows(
    rows: Sequence[Row], share: float, seed: int, radius: Radius = RECORDED_RADIUS
) -> tuple[Locked, list[Row]]:
    """Whole groups of rows locked away, and these rows: the test set.

    Raises:
        MeterError: see `lock`.
    """
    of = {Configuration.of(row): row for row in rows}
    locked = lock(of, share, radius, np.random.default_rng(seed))
    return locked, [of[configuration] for configuration in locked.configurations]


def learning_curve(done: Iterable[Round], test: Sequence[Row]) -> Iterator[Point]:
    """The error on the test set after every round; here alone it is looked at."""
    measured, weights = column(test, "energy_joules"), column(test, "weight")
    for round_done in done:
        judged = errors(measured, round_done.predict(test), weights)
        yield Point(len(round_done.taken), judged.mape, round_done.num_near)


def fit_predictor(rows: Sequence[Row]) -> Predict:
    """The project's own predictor: physics, and half of what the network corrects."""
    trained = fit(examples(rows), GATE)
    return lambda asked: trained.predict(examples(asked))


def sampled(
    rows: Sequence[Row],
    strategy: Strategy,
    plan: Plan,
    seed: int,
    share: float = TEST_SHARE,
    learner: Fit = fit_predictor,
) -> tuple[Iterator[Round], list[Row]]:
    """The rounds of one strategy, and the test set, which these do not know.

    Args:
        rows: all that was measured, repeats merged.
        strategy: where measurements come from.
        plan: how many there are.
        seed: of the test set and of all that is drawn; the same for strategies that are compared.
        share: of the rows, locked away for the test.
        learner: what is trained.

    Raises:
        MeterError: there are too few rows.
    """
    locked, test = locked_rows(rows, share, seed)
    pool = Pool(rows, locked=locked, evenly=strategy.evenly)
    return rounds(pool, pool.measure, learner, plan, strategy.propose, seed), test


Curves = Mapping[str, Sequence[Sequence[Point]]]
"""Of every strategy, one for every seed."""


def compare(
    rows: Sequence[Row], plan: Plan, seeds: Sequence[int], processes: int = PROCESSES
) -> Curves:
    """All strategies with all seeds, in some processes of one thread each; shows its progress."""
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=one_thread
    ) as pool:
        running = {
            name: [pool.submit(_curve, rows, strategy, plan, seed) for seed in seeds]
            for name, strategy in STRATEGIES.items()
        }
        every = [future for futures in running.values() for future in futures]
        for future in progress(
            as_completed(every), desc="sampling", total=len(every), unit="curve"
        ):
            future.result()
    return {name: [future.result() for future in futures] for name, futures in running.items()}


def _curve(rows: Sequence[Row], strategy: Strategy, plan: Plan, seed: int) -> list[Point]:
    return list(learning_curve(*sampled(rows, strategy, plan, seed)))


def mape(curves: Sequence[Sequence[Point]]) -> Floats:
    """Errors [%] of equally long curves, shape (seeds, points)."""
    return np.array([[point.mape for point in curve] for curve in curves])


def paired(first: Floats, second: Floats) -> Interval:
    """Mean of the first minus the second, shape (seeds,), and its interval over seeds."""
    names = [str(seed) for seed in range(len(first))]
    return bootstrap(first - second, names, np.ones(len(first)), seed=0)
