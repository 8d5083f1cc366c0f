"""An estimate of a request on one deployment, while the length of its answer is not known."""

from collections.abc import Sequence
from itertools import repeat
from math import exp, hypot, log
from typing import Final

import numpy as np

from llm_carbon_meter.carbon.emissions import operational_grams
from llm_carbon_meter.physics.phases import Serving
from llm_carbon_meter.predictor.energy_model import Deployment, EnergyModel, PhaseEnergy
from llm_carbon_meter.predictor.lengths import LengthForecast
from llm_carbon_meter.records import (
    CarbonIntensity,
    DeploymentFactors,
    EnergyEstimate,
    EstimateQuery,
    MeterError,
)

FEW: Final = 4
"""Fewer are estimated one by one."""


class DeploymentEstimator:
    """Estimates of one deployment's requests while their length is not known.

    Two things are uncertain: how long the answer gets, and the energy of a given length. Either
    gives a distance from the estimate as a factor; both are independent, so that their logarithms
    add in quadrature:  ln(high / E) = hypot(ln(E(long) / E), width),  low likewise. For E(long)
    decode grows with its tokens.

    Args:
        model: predicts the energy.
        deployment: what it is bound to.
        intensity: of the grid, for the grams.
        pue: on top of figures that do not contain it.
        remark: joins the model's own ``out_of_domain``.
        embodied_grams_per_gpu_s: of the hardware's making; None to leave it out.

    Raises:
        SpecError: the model cannot run on that deployment.
    """

    def __init__(
        self,
        model: EnergyModel,
        deployment: Deployment,
        intensity: CarbonIntensity,
        pue: float = 1.0,
        remark: str = "",
        embodied_grams_per_gpu_s: float | None = None,
    ) -> None:
        self.deployment = deployment
        self.method = model.name
        self.facility = model.facility
        self._bound = model.bind(deployment)
        self._out_of_domain = "; ".join(filter(None, (remark, self._bound.out_of_domain)))
        self.measured = self._bound.measured
        self.intensity = intensity
        self._pue = 1.0 if model.facility else pue
        self._embodied_rate = embodied_grams_per_gpu_s

    def adopt(self, factors: DeploymentFactors) -> None:
        """From now on estimate with what the deployment has shown."""
        self._bound.adopt(factors)

    def estimate(self, query: EstimateQuery, lengths: LengthForecast) -> EnergyEstimate:
        """Estimate a request of known prompt and expected output length.

        Each of ``num_sequences`` answers is charged its own prefill, beyond what the prefix cache
        holds for it.

        Raises:
            MeterError: the query makes no sense.
        """
        _check(query)
        return self._made(query, lengths, self._bound.phases(*_asked(query, lengths)))

    def estimate_all(
        self, queries: Sequence[EstimateQuery], lengths: Sequence[LengthForecast]
    ) -> list[EnergyEstimate]:
        """The same of many, which takes about as long as one.

        Raises:
            MeterError: one of the queries makes no sense.
        """
        if len(queries) < FEW:
            return list(map(self.estimate, queries, lengths))
        for query in queries:
            _check(query)
        rows = [(*numbers, *serving) for *numbers, serving in map(_asked, queries, lengths)]
        concurrency, prompt, output, *serving = np.array(rows).T
        energies = self._bound.phases(concurrency, prompt, output, Serving(*serving))
        columns = [
            column.tolist() if isinstance(column, np.ndarray) else repeat(column)
            for column in energies
        ]
        figures = map(PhaseEnergy, *columns)
        return list(map(self._made, queries, lengths, figures))

    def _made(
        self, query: EstimateQuery, lengths: LengthForecast, energy: PhaseEnergy
    ) -> EnergyEstimate:
        gpu_seconds, width, calibration = energy.gpu_seconds, energy.width, energy.calibration
        # The estimate carries the model's own figures, and the factor that clients are told.
        prefill, decode = energy.prefill_joules / calibration, energy.decode_joules / calibration
        point = prefill + decode
        per_token = decode / _output(lengths) if lengths.mean > 0 else 0.0
        below = hypot(log(point / (prefill + per_token * max(lengths.low, 1.0))), width)
        above = hypot(log((prefill + per_token * max(lengths.high, 1.0)) / point), width)
        sequences = query.num_sequences
        joules = point * sequences
        return EnergyEstimate(
            method=self.method,
            prefill_joules=prefill * sequences,
            decode_joules=decode * sequences,
            low_joules=joules * exp(-below),
            high_joules=joules * exp(above),
            output_tokens=lengths.mean * sequences,
            facility=self.facility,
            operational_grams=operational_grams(joules, self.intensity, self._pue),
            embodied_grams=None
            if gpu_seconds is None or self._embodied_rate is None
            else gpu_seconds * sequences * self._embodied_rate,
            cached_tokens=query.cached_tokens * sequences,
            out_of_domain=self._remarks(query.remark),
            calibration=calibration,
        )

    def _remarks(self, remark: str) -> str:
        return "; ".join(filter(None, (self._out_of_domain, remark)))


def _output(lengths: LengthForecast) -> float:
    """Tokens of an answer; of a request without one (an embedding) nothing is sampled."""
    return max(lengths.mean, 1.0) if lengths.mean > 0 else 0.0


def _asked(query: EstimateQuery, lengths: LengthForecast) -> tuple[float, float, float, Serving]:
    """What `energy_model.BoundModel.phases` is asked."""
    serving = Serving(float(query.cached_tokens), query.verified, query.accepted)
    return float(query.concurrency), float(query.prompt_tokens), _output(lengths), serving


def _check(query: EstimateQuery) -> None:
    if min(query.prompt_tokens, query.num_sequences, query.concurrency) < 1:
        raise MeterError(
            f"prompt_tokens is {query.prompt_tokens}, n is {query.num_sequences} and concurrency "
            f"is {query.concurrency}; each must be at least 1"
        )
    check_cached(query.cached_tokens, query.prompt_tokens)


def check_cached(cached_tokens: float, prompt_tokens: float) -> None:
    """A request's last prompt token is computed whatever is cached.

    Raises:
        MeterError: there are too many, or fewer than none.
    """
    if not 0 <= cached_tokens < prompt_tokens:
        raise MeterError(
            f"cached_tokens is {cached_tokens:g} of {prompt_tokens:g} prompt tokens; expected at "
            "least 0, and fewer than the prompt has, since its last one is always computed"
        )
