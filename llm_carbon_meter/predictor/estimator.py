"""An estimate of a request on one deployment, while the length of its answer is not known."""

from math import exp, hypot, log

from llm_carbon_meter.carbon.emissions import operational_grams
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

        Each of ``num_sequences`` answers is charged its own prefill.

        Raises:
            MeterError: the query makes no sense.
        """
        _check(query)
        # A request without an answer (an embedding) is a prefill: one token, its decode left out.
        mean, short, long = map(max, lengths, (1.0, 1.0, 1.0))
        asked = float(query.concurrency), float(query.prompt_tokens), mean
        energy = self._bound.phases(*asked)
        gpu_seconds, width, calibration = energy.gpu_seconds, energy.width, energy.calibration
        # The estimate carries the model's own figures, and the factor that clients are told.
        prefill, decode = energy.prefill_joules / calibration, energy.decode_joules / calibration
        point = prefill + decode
        below = hypot(log(point / (prefill + decode * short / mean)), width)
        above = hypot(log((prefill + decode * long / mean) / point), width)
        sequences = query.num_sequences
        decode_joules = decode * sequences if lengths.mean > 0 else 0.0
        joules = prefill * sequences + decode_joules
        return EnergyEstimate(
            method=self.method,
            prefill_joules=prefill * sequences,
            decode_joules=decode_joules,
            low_joules=joules * exp(-below),
            high_joules=joules * exp(above),
            output_tokens=lengths.mean * sequences,
            facility=self.facility,
            operational_grams=operational_grams(joules, self.intensity, self._pue),
            embodied_grams=None
            if gpu_seconds is None or self._embodied_rate is None
            else gpu_seconds * sequences * self._embodied_rate,
            out_of_domain=self._out_of_domain,
            calibration=calibration,
        )


def _check(query: EstimateQuery) -> None:
    if min(query.prompt_tokens, query.num_sequences, query.concurrency) < 1:
        raise MeterError(
            f"prompt_tokens is {query.prompt_tokens}, n is {query.num_sequences} and concurrency "
            f"is {query.concurrency}; each must be at least 1"
        )
