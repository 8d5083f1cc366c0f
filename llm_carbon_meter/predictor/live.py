"""Estimates that learn while a server runs: what its API servers ask, what its meter teaches.

The meter's process sees steps and ticks and learns the deployment's factors. Every API server
estimates with what it last heard of them, and learns how long answers are, how much of a prompt is
in the prefix cache and how many drafts are accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_carbon_meter.data.azure_trace import conversation_quantiles
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.formats.kept_state import Identity, KeptState
from llm_carbon_meter.physics.memory import Memory, check_context
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.estimator import DeploymentEstimator
from llm_carbon_meter.predictor.fitted_physics import Prior
from llm_carbon_meter.predictor.gnn import Weights
from llm_carbon_meter.predictor.lengths import AdapterLengths, LengthForecast, exact_length
from llm_carbon_meter.predictor.posterior import FactorPosterior, Steps
from llm_carbon_meter.predictor.served import Prompt, PromptCache, ServedDrafts, drafts_of
from llm_carbon_meter.predictor.step_law import FACTORS, term_matrix
from llm_carbon_meter.records import (
    CarbonIntensity,
    DeploymentFactors,
    EnergyEstimate,
    EstimateQuery,
    RequestEnergy,
)

Floats = NDArray[np.float64]

MOST_STEPS: Final = 128
"""Of a lesson that are looked at; of more, every n-th stands for n."""
LEAST_BUSY_S: Final = 0.5
"""Work that teaches at once: ticks with less are joined with the next, since single requests on a
fast GPU would else say nothing."""


class Served(NamedTuple):
    """An engine request that has its final figure."""

    energy: RequestEnergy
    remark: str
    """As of `Prompt`."""


def _as_served(energy: RequestEnergy, remark: str) -> EstimateQuery:
    drafts, prompt_tokens = drafts_of(energy), max(energy.prompt_tokens, 1)
    return EstimateQuery(
        prompt_tokens,
        None,
        concurrency=max(1.0, energy.mean_running),
        output_tokens=energy.output_tokens,
        cached_tokens=min(energy.cached_tokens, prompt_tokens - 1),
        verified=drafts.verified,
        accepted=drafts.accepted,
        remark=remark,
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """What an engine request was estimated for, until it ends."""

    query: EstimateQuery
    matched_tokens: int
    """At the beginning of its prompt, that were sent before."""


class LiveEstimator:
    """Estimates before and, given what is known then, after a request.

    Args:
        estimator: of this deployment.
        block_tokens: of the engine's prefix cache; 0 where it has none.
        memory: of the GPUs, which bounds how many requests share a batch; None bounds nothing.
    """

    def __init__(
        self,
        estimator: DeploymentEstimator,
        block_tokens: int = 0,
        memory: Memory | None = None,
    ) -> None:
        self._estimator = estimator
        self._memory = memory if memory is not None and memory.cache_bytes > 0 else None
        self._cache = PromptCache(block_tokens)
        self._drafts = ServedDrafts()
        self._adopted: DeploymentFactors | None = None
        self._lengths = AdapterLengths(conversation_quantiles().output_tokens)

    @property
    def intensity(self) -> CarbonIntensity:
        """Of the grid, for the grams."""
        return self._estimator.intensity

    @intensity.setter
    def intensity(self, now: CarbonIntensity) -> None:
        self._estimator.intensity = now

    def adopt(self, factors: DeploymentFactors) -> None:
        """Estimate with what the meter has learnt so far; totals repeat it until it changes."""
        if factors != self._adopted:
            self._adopted = factors
            self._estimator.adopt(factors)

    def ask(
        self,
        prompt: Prompt,
        max_tokens: int | None,
        concurrency: int,
        *,
        num_sequences: int = 1,
        output_tokens: int | None = None,
        comes: bool = False,
    ) -> Asked:
        """What is known of a request, and what is expected of it by what was served here.

        Args:
            prompt: of each of its answers.
            max_tokens: of each; None where only the context length bounds it.
            concurrency: requests that share the batch, its own included.
            num_sequences: answers.
            output_tokens: of each, where they are known.
            comes: whether it is sent to the engine now.
        """
        matched, drafts = self._cache.match(prompt, remember=comes), self._drafts.expected
        query = EstimateQuery(
            prompt.num_tokens,
            max_tokens,
            num_sequences,
            concurrency,
            output_tokens,
            self._cache.expected(prompt, matched, num_sequences),
            drafts.verified,
            drafts.accepted,
            prompt.remark,
            prompt.adapter,
        )
        return Asked(self._as_fits(query), matched)

    def _as_fits(self, query: EstimateQuery) -> EstimateQuery:
        """The query with no more requests in the batch than the cache holds: the others wait."""
        if self._memory is None:
            return query
        most = self._memory.most(query.prompt_tokens, self._length(query).mean)
        if query.concurrency <= most:
            return query
        remark = f"{query.concurrency:g} at once, counted as the {most} that the cache holds"
        if not most:
            remark = f"a cache of {query.prompt_tokens:g} prompt tokens and an answer does not fit"
        remarks = "; ".join(filter(None, (query.remark, remark + " by the data sheet")))
        return replace(query, concurrency=max(most, 1), remark=remarks)

    def check_context(self, query: EstimateQuery) -> None:
        """Refuse a request that this server would refuse.

        Raises:
            SpecError: it is longer than the model's context.
        """
        output_tokens = query.output_tokens or query.max_tokens or 1
        check_context(self._estimator.deployment.model, query.prompt_tokens, output_tokens)

    def estimates(self, queries: Sequence[EstimateQuery]) -> list[EnergyEstimate]:
        """Estimate requests that have not run.

        Raises:
            MeterError: a query makes no sense.
        """
        return self._estimator.estimate_all(queries, list(map(self._length, queries)))

    def _length(self, query: EstimateQuery) -> LengthForecast:
        if query.output_tokens is None:
            return self._lengths.of(query.adapter).forecast(query.max_tokens)
        return exact_length(query.output_tokens)

    def conditionals(self, served: Sequence[Served]) -> list[EnergyEstimate]:
        """What would have been estimated, had all been known of how requests were served."""
        lengths = [exact_length(one.energy.output_tokens) for one in served]
        return self._estimator.estimate_all([_as_served(*one) for one in served], lengths)

    def learn(self, asked: Asked, energy: RequestEnergy, *, whole: bool) -> None:
        """A request has its final figure.

        Args:
            asked: what it was estimated for.
            energy: how it was served.
            whole: its answer ended by itself or at its limit.
        """
        self._cache.see(energy, asked.matched_tokens)
        self._drafts.see(energy)
        if whole and energy.output_tokens:
            limit = asked.query.max_tokens
            cut = limit is not None and energy.output_tokens >= limit
            self._lengths.of(asked.query.adapter).observe(energy.output_tokens, cut=cut)


@dataclass(frozen=True, slots=True)
class FactorState:
    """What is kept over a restart.

    Raises:
        ValueError: these are the factors of no deployment.
    """

    factors: DeploymentFactors

    def __post_init__(self) -> None:
        size, covariance = len(FACTORS), np.array(self.factors.covariance)
        if len(self.factors.mean) != size or covariance.shape != (size, size):
            raise ValueError(f"{len(self.factors.mean)} factors, expected {size}")
        sane = np.isfinite(self.factors.mean).all() and np.isfinite(covariance).all()
        if not sane or np.linalg.eigvalsh(covariance)[0] <= 0:
            raise ValueError("its covariance is none")


def identity(deployment: Deployment, checksum: str) -> Identity:
    """What learnt factors hold for: another model, GPU, power limit, engine version or prior needs
    its own."""
    return {
        "weights": checksum,
        "model": deployment.model.name,
        "weight_bytes": str(deployment.model.weight_bytes),
        "gpu": deployment.gpu.name,
        "limit_watts": deployment.gpu.limit_watts,
        "num_gpus": deployment.num_gpus,
        "engine": deployment.engine,
        "engine_version": deployment.engine_version,
    }


class LiveLearner:
    """Learns the factors of one deployment in its meter's process, and keeps them in a file.

    Args:
        weights: whose prior it begins with.
        deployment: whose steps it sees.
        file: None keeps nothing.
        faults: counts what went wrong with the file.

    Raises:
        SpecError: heads that cannot be divided among the GPUs.
    """

    def __init__(
        self, weights: Weights, deployment: Deployment, file: Path | None, faults: Faults
    ) -> None:
        holds_for = identity(deployment, weights.checksum)
        self._file = KeptState(file, FactorState, holds_for, faults, "calibration")
        prior = weights.prior(deployment)
        before = self._file.load(lambda state: state.factors)
        seen = Prior(np.array(before.mean), np.array(before.covariance)) if before else None
        physics = weights.physics.at_limit(deployment.gpu)
        self._posterior = FactorPosterior(physics, prior, seen)
        self._ticks = before.ticks if before else 0
        self._saved_ticks = self._ticks
        self._limit_watts = deployment.gpu.limit_watts
        self._waiting: list[tuple[Floats, Floats]] = []
        """Steps that have not taught yet, and how much of each is meant."""
        self._seconds = self._joules = 0.0
        """Of them."""
        matrix = term_matrix(
            deployment.model, deployment.gpu, deployment.num_gpus, deployment.engine
        )
        self._terms = np.ascontiguousarray(matrix.T)

    def see_tick(self, sums: Floats, parts: Floats, seconds: float, joules: float) -> None:
        """What one GPU did and counted.

        Args:
            sums: `phases.SUMS` of its steps, shape (steps, sums).
            parts: how much of each step is meant, shape (steps,).
            seconds: that the steps took, short gaps between them included.
            joules: counted in them.

        Raises:
            ValueError: seconds or joules are no numbers.
        """
        if not isfinite(seconds + joules):
            raise ValueError(f"a tick of {seconds} s and {joules} J")
        self._waiting.append((sums, parts))
        self._seconds += seconds
        self._joules += joules
        self._ticks += 1
        if self._seconds >= LEAST_BUSY_S:
            self._learn()

    def _learn(self) -> None:
        """From all that waits, at once."""
        sums, parts = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        every = -(-len(parts) // MOST_STEPS)
        few = parts[::every]
        steps = Steps(sums[::every] @ self._terms, few * (parts.sum() / few.sum()))
        boards = self._joules / self._limit_watts
        self._posterior.observe(steps, boards if boards > 0 else None, self._seconds)
        self._waiting, self._seconds, self._joules = [], 0.0, 0.0

    @property
    def factors(self) -> DeploymentFactors | None:
        """As known now; None before anything was seen."""
        return self._posterior.record(self._ticks) if self._ticks else None

    def save_at_times(self) -> None:
        """Write the file if a while has passed."""
        if self._file.is_due:
            self.save()

    def save(self) -> None:
        """Write the file if something was learnt: of several engines, the last one's."""
        factors = self.factors
        if factors is not None and self._ticks > self._saved_ticks:
            self._saved_ticks = self._ticks
            self._file.save(FactorState(factors))
