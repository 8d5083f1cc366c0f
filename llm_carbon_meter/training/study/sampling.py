"""Algorithm 1 of LLMCO2, focused sampling: measure more where the predictor errs.

The paper looks for errors on its test points, measures close around them and reports the error on
the same points. Here a part of what was measured is kept from training to look for errors, the
*search* part, and the test set is locked away before the first measurement: the loop is given a
prior that draws nothing near it, and never the test set itself.

    locked = lock(prior.draw(1000, (), rng), 0.2, PAPER_RADIUS, rng)
    for done in rounds(replace(prior, admits=locked.admits), measure, fit, plan): ...

`recorded.Pool` stands in for priors and GPUs where measurements are given.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.records import MeterError
from llm_carbon_meter.training.data.configurations import Configuration
from llm_carbon_meter.training.data.physics_features import column
from llm_carbon_meter.training.data.rows import Row
from llm_carbon_meter.training.fit.metrics import absolute_percentage_errors
from llm_carbon_meter.training.study.baselines.baseline import Predict

Floats = npt.NDArray[np.float64]
Measured = Mapping[Configuration, Row]

Measure = Callable[[Sequence[Configuration]], Measured]
"""Configurations to what they cost; those that could not be measured are left out."""
Fit = Callable[[Sequence[Row]], Predict]


class Prior(Protocol):
    """Where configurations come from; fewer than asked for where there are no more."""

    def draw(
        self, count: int, taken: Collection[Configuration], rng: np.random.Generator
    ) -> list[Configuration]:
        """Draw from the priors of architectures, requests and hardware, none that is taken."""
        ...

    def around(
        self,
        centre: Configuration,
        count: int,
        taken: Collection[Configuration],
        rng: np.random.Generator,
    ) -> list[Configuration]:
        """Draw within ±C of a configuration in every field, none that is taken."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and when to stop; the paper's symbols are in brackets."""

    first: int
    """[A] Drawn from the priors before the first training."""
    per_round: int
    """Between two trainings."""
    per_point: int
    """[B] Of these, around one point of large error."""
    budget: int
    """In all; what could not be measured counts too."""
    error_percent: float = 0.0
    """[e] When the mean error of the search part is below it, sampling is over; 0 for never."""
    limit_s: float = float("inf")
    """After it no round begins; one that has begun is finished."""
    large_percent: float = 10.0
    """An error above it is large, as in nn-Meter. Far above noise, which would attract for ever."""
    search_share: float = 0.2
    """Of what is measured, kept from training."""


@dataclass(frozen=True, slots=True)
class Round:
    """A training and what it found."""

    train: Measured
    search: Measured
    search_ape: Floats
    """Error of each point of the search part [%], in its order."""
    error_percent: float
    """Mean error by weight: above that of the priors where sampling went after errors."""
    taken: frozenset[Configuration]
    """All that was drawn; some could perhaps not be measured."""
    num_near: int
    """Of these, around points of large error."""
    predict: Predict
    stopped: str
    """Why this is the last round; empty if it is not."""


class Proposal(NamedTuple):
    """What to measure next."""

    near: Sequence[Configuration]
    """Around points of large error."""
    anywhere: Sequence[Configuration]
    """From the priors."""


Propose = Callable[[Round, int, Plan, Prior, np.random.Generator], Proposal]
"""So many configurations, after a round."""


def around_errors(
    done: Round, count: int, plan: Plan, prior: Prior, rng: np.random.Generator
) -> Proposal:
    """Focused: around points of large error, the worst first; the rest from the priors."""
    near: list[Configuration] = []
    centres = list(done.search)
    for place in np.argsort(-done.search_ape, kind="stable"):
        missing = min(plan.per_point, count - len(near))
        if done.search_ape[place] <= plan.large_percent or not missing:
            break
        near += prior.around(centres[place], missing, done.taken.union(near), rng)
    return Proposal(near, prior.draw(count - len(near), done.taken.union(near), rng))


def from_priors(
    done: Round, count: int, plan: Plan, prior: Prior, rng: np.random.Generator
) -> Proposal:
    """Not focused: what focused sampling is compared with."""
    return Proposal([], prior.draw(count, done.taken, rng))


def rounds(
    prior: Prior,
    measure: Measure,
    fit: Fit,
    plan: Plan,
    propose: Propose = around_errors,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Round]:
    """Measure and train in turn until the error, the budget or the deadline is reached.

    Args:
        prior: draws configurations, none near a test set.
        measure: finds what they cost.
        fit: trains a predictor.
        plan: how much is measured.
        propose: what to measure next.
        seed: of all that is drawn.
        clock: monotonic [s].

    Raises:
        MeterError: the plan makes no sense, or too little could be measured to train on.
    """
    _check(plan)
    rng, deadline = np.random.default_rng(seed), clock() + plan.limit_s
    proposed = Proposal([], prior.draw(plan.first, (), rng))
    taken, num_near = frozenset[Configuration](), 0
    train: Measured = {}
    search: Measured = {}
    while True:
        wanted = [*proposed.near, *proposed.anywhere]
        taken, num_near = taken.union(wanted), num_near + len(proposed.near)
        train_rows, held = _parted(measure(wanted), plan.search_share, rng)
        train, search = {**train, **train_rows}, {**search, **held}
        _check_parts(train, search, len(taken))
        predict = fit(list(train.values()))
        ape, error = _errors(predict, list(search.values()))
        stopped = _why_stop(plan, error, len(taken), late=clock() >= deadline)
        done = Round(train, search, ape, error, taken, num_near, predict, stopped)
        if not stopped:
            count = min(plan.per_round, plan.budget - len(taken))
            proposed = propose(done, count, plan, prior, rng)
            if not any(proposed):
                done = replace(done, stopped=f"all {len(taken)} that the priors give are measured")
        yield done
        if done.stopped:
            return


def _parted(
    measured: Measured, share: float, rng: np.random.Generator
) -> tuple[Measured, Measured]:
    """To train on, and the share to search."""
    every = list(measured)
    order = rng.permutation(len(every))
    held = {every[place] for place in order[: round(share * len(every))]}
    return (
        {
            configuration: row
            for configuration, row in measured.items()
            if configuration not in held
        },
        {configuration: row for configuration, row in measured.items() if configuration in held},
    )


def _errors(predict: Predict, search: Sequence[Row]) -> tuple[Floats, float]:
    """Of each row, and their mean by weight [%]."""
    ape = absolute_percentage_errors(column(search, "energy_joules"), predict(search))
    return ape, float(np.average(ape, weights=column(search, "weight")))


def _why_stop(plan: Plan, error: float, num_taken: int, *, late: bool) -> str:
    if error < plan.error_percent:
        return f"error {error:.3g} %, asked for {plan.error_percent:g} %"
    if num_taken >= plan.budget:
        return f"budget of {plan.budget} measurements spent"
    return f"deadline of {plan.limit_s:g} s reached" if late else ""


def _check(plan: Plan) -> None:
    if plan.first > plan.budget:
        raise MeterError(
            f"the first batch of {plan.first} measurements is more than the budget of "
            f"{plan.budget}; lower one or raise the other"
        )
    least = min(plan.first, plan.per_round, plan.per_point)
    if least < 1 or not 0 < plan.search_share < 1:
        raise MeterError(
            f"first, per_round and per_point are at least {least} and search_share is "
            f"{plan.search_share:g}; give counts from 1 and a share between 0 and 1"
        )


def _check_parts(train: Measured, search: Measured, num_taken: int) -> None:
    if not (train and search):
        raise MeterError(
            f"of {num_taken} configurations drawn {len(train)} were measured to train on and "
            f"{len(search)} to look for errors; draw a larger first batch, from a prior or a pool "
            "that is not empty and not locked away, and see why measurements fail"
        )
