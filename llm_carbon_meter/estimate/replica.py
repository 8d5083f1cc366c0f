"""What one replica of a deployment does while so many requests share it: time, latency, energy.

The step law knows batches of equal requests. A server that always holds B of them does the work of
such a batch again and again (continuous batching mixes the same work into other steps), so that by
Little's law a request stays T(B), the time of the batch, and B / T(B) leave a second. Of its stay:

    TTFT = its own prefill + the wait for other prompts (Pollaczek and Khinchine)
           + the decode steps of the others that its own steps carry and the half that runs already
    TPOT = (T - TTFT) / (output tokens - 1)

Both are means, without waiting for a place among the B.
"""

from dataclasses import dataclass, fields
from math import inf
from typing import Final

import numpy as np

from llm_carbon_meter.estimate.traffic import Lengths
from llm_carbon_meter.predictor.energy_model import Floats
from llm_carbon_meter.predictor.gnn import Batches, BoundGnn

POINTS: Final = 16
"""Concurrencies that are looked at together."""


@dataclass(frozen=True, slots=True)
class Slo:
    """What users are promised, on average."""

    ttft_s: float = inf
    """Time to first token."""
    tpot_s: float = inf
    """Time per output token after it."""


@dataclass(frozen=True, slots=True)
class Served:
    """A replica by how many requests share it, shapes (concurrencies,)."""

    concurrency: Floats
    seconds: Floats
    """Mean stay of a request; as many leave in it as are there."""
    ttft_s: Floats
    tpot_s: Floats
    """0 where answers have one token."""
    joules: Floats
    """A request, all GPUs of the replica together."""
    energy_width: Floats
    """ln(energy that 90 % of measurements stay below / this)."""
    time_width: Floats
    """Likewise of every time."""

    def meets(self, slo: Slo) -> int:
        """How many of the concurrencies, in their order, are within the promise."""
        late = (self.ttft_s > slo.ttft_s) | (self.tpot_s > slo.tpot_s)
        return int(late.argmax()) if late.any() else len(late)

    def at(self, place: int) -> "Served":
        """At one of the concurrencies, shapes (1,)."""
        return Served(*(getattr(self, column.name)[place, None] for column in fields(self)))


class Replica:
    """The GPUs of one tensor-parallel group with the model.

    Args:
        law: of the deployment.
        lengths: of the requests.
        step_tokens: that a step takes; the law's own budget.
    """

    def __init__(self, law: BoundGnn, lengths: Lengths, step_tokens: int) -> None:
        self._law = law
        self._prompt, self._output = lengths.prompt_tokens, lengths.output_tokens
        alone = law.batches(np.ones(len(self._prompt)), self._prompt, self._output)
        self._prefill_s = alone.prefill_s
        """Of a request alone, of each kind."""
        self._shortest_s = float((alone.prefill_s + alone.decode_s).mean())
        """Mean stay of requests that are alone."""
        self._chunks = np.maximum(self._prompt / step_tokens, 1.0)
        """Steps of each kind's prefill."""

    def serve(self, concurrency: Floats) -> Served:
        """What it does at each of some concurrencies of at least 1, shape (concurrencies,)."""
        kinds, size = len(self._prompt), len(concurrency)
        columns = self._law.batches(
            np.tile(concurrency, kinds),
            np.repeat(self._prompt, size),
            np.repeat(self._output, size),
        )
        batches = Batches(*(column.reshape(kinds, size) for column in columns))
        stay = batches.prefill_s + batches.decode_s
        prefilling = batches.prefill_s.sum(0) / stay.sum(0)
        # A kind is met among the running as often as it stays long.
        step_s = (batches.decode_step_s * stay).sum(0) / stay.sum(0)
        company = np.minimum(concurrency - 1.0, 1.0)
        ttft = np.minimum(self._first_token_s(prefilling * company, step_s * company), stay)
        later = np.maximum(self._output - 1.0, 0.0).sum()
        between = np.maximum((stay - ttft).sum(0) / later, step_s) if later else np.zeros(size)
        return Served(
            concurrency,
            stay.mean(0),
            ttft.mean(0),
            between,
            batches.joules.mean(0) / concurrency,
            batches.energy_width.mean(0),
            batches.time_width.mean(0),
        )

    def _first_token_s(self, prefilling: Floats, step_s: Floats) -> Floats:
        """Of each kind, shape (kinds, concurrencies).

        Args:
            prefilling: share of the time in which prompts of others are computed.
            step_s: of the decode steps of the others.
        """
        alone = self._prefill_s
        wait = (alone**2).mean() / (2 * alone.mean()) * prefilling
        wait = wait / np.maximum(1.0 - prefilling, np.finfo(float).tiny)
        return np.asarray(alone[:, None] + wait + (self._chunks[:, None] + 0.5) * step_s)

    def largest(self, most: int, slo: Slo) -> Served:
        """At the largest concurrency up to ``most`` that meets the promise.

        Where none does, at that of 1, which has the shortest times.
        """
        served = self.serve(_whole(np.geomspace(1.0, most, POINTS)))
        met = served.meets(slo)
        while 0 < met < len(served.concurrency):
            low, high = served.concurrency[met - 1 : met + 1]
            if high - low <= 1:
                break
            served = self.serve(_whole(np.linspace(low, high, POINTS)))
            met = served.meets(slo)
        return served.at(max(met - 1, 0))

    def under_load(self, rate: float, full: Served) -> tuple[Served, float]:
        """At a mean load, and the share of the time in which it has any request.

        Requests come by themselves (Poisson), so that b = rate x stay of them are there on average,
        none for exp(-b) of the time, and b / (1 - exp(-b)) of them when there are any.

        Args:
            rate: requests a second, at most what it serves when full.
            full: at its largest concurrency.
        """
        most = full.concurrency[0]
        there = np.geomspace(rate * self._shortest_s, rate * full.seconds[0], POINTS)
        stay = self.serve(_when_any(there, most)).seconds
        # rate x stay / b falls in b, and is 1 where the load is in balance.
        balance = np.log(rate * stay / there)
        found = np.exp(np.interp([0.0], -balance, np.log(there)))
        at = self.serve(_when_any(found, most))
        return at, min(rate * float(at.seconds[0] / at.concurrency[0]), 1.0)


def _whole(concurrency: Floats) -> Floats:
    """Whole numbers, each once."""
    return np.unique(np.rint(concurrency))


def _when_any(there: Floats, most: float) -> Floats:
    """Requests that are there when any is, of their mean number over all time."""
    return np.asarray(np.clip(there / -np.expm1(-there), 1.0, most))
