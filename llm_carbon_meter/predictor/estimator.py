"""Energy of a request before it runs: the protocol, and the FLOP formula of the LLM-BENCH note.

A new estimator is a class with `estimate`, and a name in `ESTIMATORS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from llm_carbon_meter.carbon import CarbonIntensity, operational_grams
from llm_carbon_meter.predictor.lengths import LengthForecast
from llm_carbon_meter.records import EnergyEstimate, EstimateQuery, MeterError
from llm_carbon_meter.specs import ModelSpec


class Estimator(Protocol):
    """Something that can say what a request will cost."""

    def estimate(self, query: EstimateQuery, lengths: LengthForecast) -> EnergyEstimate:
        """Estimate a request of known prompt and expected output length.

        Raises:
            MeterError: the query makes no sense.
        """
        ...


class PhaseFlop(NamedTuple):
    """Operations of both phases of one sequence."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class FlopConstants:
    """The note's constants; a facility figure, so PUE is not applied again."""

    joules_per_flop: float = 1.5e-12
    """1500 W / 1e15 FLOP/s"""
    prefill_utilisation: float = 0.5
    decode_utilisation: float = 0.1


NOTE_CONSTANTS: Final = FlopConstants()


def note_flop(model: ModelSpec, prompt_tokens: float, output_tokens: float) -> PhaseFlop:
    """Operations as the LLM-BENCH note counts them.

    FLOP = 2 P_act S + 4 d n_q layers x mean_input_len x S, with S = L and mean_input_len = L for
    prefill (the full square), S = N and mean_input_len = L + (N - 1)/2 for decode.
    """
    per_context = 4.0 * model.head_dim * model.num_heads * model.num_layers
    per_token = 2.0 * model.active_parameters
    decode_context = prompt_tokens + (output_tokens - 1) / 2
    return PhaseFlop(
        prefill=(per_token + per_context * prompt_tokens) * prompt_tokens,
        decode=(per_token + per_context * decode_context) * output_tokens,
    )


class FlopEstimator:
    """Energy [J] = FLOP / utilisation x joules per FLOP, per phase (the LLM-BENCH note).

    Args:
        model: shape of the served model.
        intensity: of the grid, for the grams.
        constants: of the note by default.
    """

    def __init__(
        self,
        model: ModelSpec,
        intensity: CarbonIntensity,
        constants: FlopConstants = NOTE_CONSTANTS,
    ) -> None:
        self._model = model
        self._intensity = intensity
        self._constants = constants

    def estimate(self, query: EstimateQuery, lengths: LengthForecast) -> EnergyEstimate:
        """See `Estimator`; concurrency is not an input of the formula."""
        if query.prompt_tokens < 1 or query.num_sequences < 1:
            raise MeterError(
                f"prompt_tokens is {query.prompt_tokens} and n is {query.num_sequences}; "
                "both must be at least 1"
            )
        prefill, decode = self._joules(query, lengths.mean)
        return EnergyEstimate(
            method="flop",
            prefill_joules=prefill,
            decode_joules=decode,
            low_joules=sum(self._joules(query, lengths.low)),
            high_joules=sum(self._joules(query, lengths.high)),
            output_tokens=lengths.mean * query.num_sequences,
            facility=True,
            operational_grams=operational_grams(prefill + decode, self._intensity, pue=1.0),
        )

    def _joules(self, query: EstimateQuery, output_tokens: float) -> tuple[float, float]:
        """Prefill and decode; each of ``n`` sequences is charged its own prefill."""
        flop = note_flop(self._model, query.prompt_tokens, output_tokens)
        constants = self._constants
        scale = constants.joules_per_flop * query.num_sequences
        return (
            flop.prefill / constants.prefill_utilisation * scale,
            flop.decode / constants.decode_utilisation * scale,
        )


ESTIMATORS: Mapping[str, Callable[[ModelSpec, CarbonIntensity], Estimator]] = {
    "flop": FlopEstimator,
}
