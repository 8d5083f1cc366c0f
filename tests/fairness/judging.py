"""Judges every policy on a run: what each request was given against what it truly caused."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from llm_carbon_meter.ledger.lag_learner import LagLearner
from llm_carbon_meter.records import Account, Quality, RequestEnergy

from .baselines import BASELINES
from .playing import Book, Run, learner_of, ledger_of, play, told_ledger
from .ranges import WARM_UP_S
from .sensor import resolution_s

Floats = npt.NDArray[np.float64]

LEARNT: Final = "shapley, learnt"
"""Goes on from the coefficients that it kept, run after run."""
STARTED: Final = "shapley, just started"
"""Learns in each run from the data sheet on, as where nothing was kept."""
LEDGERS: Final[Mapping[str, str]] = {
    "shapley, not learnt": "shapley",
    "tokens": "tokens",
    "flops": "flops",
    "equal": "equal",
}
"""Policy of the ledgers that learn nothing."""
TOLD: Final = "every step known"
"""The shipped ledger with the true cost of every step: what is left are the sensors' errors."""
UNDAMAGED: Final = (Quality.COUNTER, Quality.POWER)
"""Of records that no reset and no dead GPU has taken joules from."""
SHAPLEYS: Final = (LEARNT, STARTED, TOLD)
POLICIES: Final = (LEARNT, STARTED, *LEDGERS, *BASELINES, TOLD)


@dataclass(frozen=True)
class Figures:
    """One policy on one run; errors are relative to a request's true joules."""

    seed: int
    gpu: str
    model: str
    sensor: str
    neighbour: bool
    """Whether another process drew power, too; NVML lists it, and the meter would label for it."""
    load: str
    shares: bool
    """Whether several requests may run at once."""
    policy: str
    requests: int
    """Judged: begun after the warm-up, and not marked as damaged."""
    damaged: int
    """Marked by the ledger: a reset or a dead GPU took some of their joules."""
    sum_ratio: float
    """All that was given / all that was caused."""
    long_median: float
    """Of requests longer than the sensor's resolution."""
    long_p95: float
    prefill_ratio: float | None
    """All that was given for prefill / all that it caused; None where nothing was."""
    decode_ratio: float | None
    prefill_median: float | None
    """None where a policy knows no phases."""
    prefill_p95: float | None
    decode_median: float | None
    decode_p95: float | None
    short_requests: int
    """Not longer than the sensor's resolution."""
    short_joules: float
    short_true_joules: float
    covered: float | None
    """Share of requests whose true joules lie in the record's interval; None without one."""
    zeros: int
    """Requests that ran a step and were given nothing."""
    conservation: float | None
    truth_error: float
    """95 % of the requests' true joules are known better than this, relative."""


def judged(runs: Iterable[Run]) -> Iterator[Figures]:
    """Every policy on the runs of one world, in the order in which its meter lives through them."""
    kept, lags = None, LagLearner({})
    for run in runs:
        world, learner = run.world, learner_of(run.world, kept)
        before, lags = lags.lags_s, LagLearner(lags.lags_s)
        books = {
            LEARNT: play(run, ledger_of(run, "shapley", learner, lags=lags)),
            STARTED: play(run, ledger_of(run, "shapley", learner_of(world))),
            TOLD: play(run, told_ledger(run, learner_of(world, kept), LagLearner(before))),
        }
        books |= {name: play(run, ledger_of(run, policy)) for name, policy in LEDGERS.items()}
        kept = learner.state
        yield from _compared(run, books)


def _compared(run: Run, books: Mapping[str, Book]) -> Iterator[Figures]:
    """Nothing where no request can be judged; the learning ledger says which can."""
    reference = books[LEARNT].records
    begun = [
        name
        for name, record in reference.items()
        if name in run.causes and record.first_step_s >= WARM_UP_S
    ]
    names = [name for name in begun if reference[name].quality in UNDAMAGED]
    if not names:
        return
    lengths = [reference[name].last_step_s - reference[name].first_step_s for name in names]
    sample = _Sample(run, names, len(begun) - len(names), np.array(lengths))
    for policy, book in books.items():
        given = np.array([book.records[name].joules for name in names])
        phases = [_phases(book.records[name]) for name in names]
        yield sample.figures(policy, given, np.array(phases), book)
    for policy, rule in BASELINES.items():
        found = rule(run)
        yield sample.figures(policy, np.array([found[name] for name in names]), None, None)


def _phases(record: RequestEnergy) -> tuple[float, float]:
    return record.prefill_joules, record.decode_joules


@dataclass(frozen=True)
class _Sample:
    run: Run
    names: Sequence[str]
    damaged: int
    lengths_s: Floats

    def figures(
        self, policy: str, given: Floats, phases: Floats | None, book: Book | None
    ) -> Figures:
        causes = np.array([self.run.causes[name] for name in self.names])
        true = causes.sum(axis=1)
        errors = np.abs(given / true - 1)
        long = self.lengths_s > resolution_s(self.run.world)
        uncertain = [self.run.sampling_error[name] for name in self.names] / true
        world = self.run.world
        prefill, decode = (
            _phase_errors(phases, causes, column) for column in (Account.PREFILL, Account.DECODE)
        )
        return Figures(
            world.seed,
            world.gpu,
            world.model,
            world.sensor,
            world.happens["foreign_process"],
            self.run.load.name,
            self.run.load.concurrency > 1,
            policy,
            len(true),
            self.damaged,
            float(given.sum() / true.sum()),
            *spread(errors[long]),
            _phase_ratio(phases, causes, Account.PREFILL),
            _phase_ratio(phases, causes, Account.DECODE),
            *prefill,
            *decode,
            int((~long).sum()),
            float(given[~long].sum()),
            float(true[~long].sum()),
            self._covered(given, true, book),
            int((given <= 0).sum()),
            book.conservation_error if book else None,
            float(np.quantile(uncertain, 0.95)),
        )

    def _covered(self, given: Floats, true: Floats, book: Book | None) -> float | None:
        spans = [book.records[name].uncertainty for name in self.names] if book else [None]
        if None in spans:
            return None
        return float((np.abs(true - given) <= np.array(spans, np.float64) * given).mean())


def spread(errors: Floats) -> tuple[float, float]:
    """Median and 95 % quantile; NaN of nothing."""
    if not len(errors):
        return float("nan"), float("nan")
    return float(np.median(errors)), float(np.quantile(errors, 0.95))


def _phase_errors(
    phases: Floats | None, causes: Floats, account: Account
) -> tuple[float | None, float | None]:
    """Where a request has joules of a phase; PREFILL and DECODE are the first two accounts."""
    if phases is None:
        return None, None
    some = causes[:, account] > 0
    return spread(np.abs(phases[some, account] / causes[some, account] - 1))


def _phase_ratio(phases: Floats | None, causes: Floats, account: Account) -> float | None:
    """Sums over the requests."""
    true = float(causes[:, account].sum())
    return float(phases[:, account].sum()) / true if phases is not None and true else None
