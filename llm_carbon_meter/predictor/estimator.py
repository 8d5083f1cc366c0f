"""An estimate of a request on one deployment, while the length of its answer is not known."""

from math import exp, hypot, log

from llm_carbon_meter.carbon.emissions import operational_grams
from llm_carbon_meter.physics.phases import Serving
from llm_carbon_meter.predictor.energy_model import Deployment, EnergyModel
from llm_carbon_meter.predictor.lengths import LengthForecast
from llm_carbon_meter.records import (
    CarbonIntensity,
    DeploymentFactors,
    EnergyEstimate,
    EstimateQuery,
    MeterError,
)


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
        # A request without an answer (an embedding) is a prefill that samples nothing.
        mean = max(lengths.mean, 1.0) if lengths.mean > 0 else 0.0
        asked = float(query.concurrency), float(query.prompt_tokens), mean
        serving = Serving(float(query.cached_tokens), query.verified, query.accepted)
        energy = self._bound.phases(*asked, serving)
        gpu_seconds, width, calibration = energy.gpu_seconds, energy.width, energy.calibration
        # The estimate carries the model's own figures, and the factor that clients are told.
        prefill, decode = energy.prefill_joules / calibration, energy.decode_joules / calibration
        point = prefill + decode
        per_token = decode / mean if mean else 0.0
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


def _check(query: EstimateQuery) -> None:
    if min(query.prompt_tokens, query.num_sequences, query.concurrency) < 1:
        raise MeterError(
            f"prompt_tokens is {query.prompt_tokens}, n is {query.num_sequences} and concurrency "
            f"is {query.concurrency}; each must be at least 1"
        )
    if not 0 <= query.cached_tokens < query.prompt_tokens:
        raise MeterError(
            f"cached_tokens is {query.cached_tokens} of {query.prompt_tokens} prompt tokens; "
            "at least the last one is computed"
        )
