"""The FLOP formula of the LLM-BENCH note: operations / utilisation x joules per FLOP."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from llm_carbon_meter.physics.model_specs import ModelSpec
from llm_carbon_meter.physics.phases import PLAIN, Serving
from llm_carbon_meter.predictor.energy_model import Deployment, Numbers, PhaseEnergy
from llm_carbon_meter.records import DeploymentFactors


class PhaseFlop(NamedTuple):
    """Operations of both phases of one sequence: a number, or shape (requests,)."""

    prefill: Numbers
    decode: Numbers


@dataclass(frozen=True, slots=True)
class FlopConstants:
    """The note's constants; a facility figure, so PUE is not applied again."""

    joules_per_flop: float = 1.5e-12
    """1500 W / 1e15 FLOP/s"""
    prefill_utilisation: float = 0.5
    decode_utilisation: float = 0.1


NOTE_CONSTANTS: Final = FlopConstants()


def note_flop(model: ModelSpec, prompt_tokens: Numbers, output_tokens: Numbers) -> PhaseFlop:
    """Operations as the LLM-BENCH note counts them.

    FLOP = 2 P_act S + 4 d n_q layers x mean_input_len x S, with S = L and mean_input_len = L for
    prefill (the full square), S = N and mean_input_len = L + (N - 1)/2 for decode.
    """
    return _flop(2.0 * model.active_parameters, _per_context(model), prompt_tokens, output_tokens)


def _per_context(model: ModelSpec) -> float:
    return 4.0 * model.head_dim * model.num_heads * model.num_layers


def _flop(per_token: float, per_context: float, prompt: Numbers, output: Numbers) -> PhaseFlop:
    decode_context = prompt + (output - 1) / 2
    return PhaseFlop(
        prefill=(per_token + per_context * prompt) * prompt,
        decode=(per_token + per_context * decode_context) * output,
    )


class FlopModel:
    """Energy [J] = FLOP / utilisation x joules per FLOP, per phase.

    Knows neither GPU nor batch: decode at 10 % utilisation assumes one already.

    Args:
        constants: of the note by default.
    """

    name = "flop"
    facility = True

    def __init__(self, constants: FlopConstants = NOTE_CONSTANTS) -> None:
        self._constants = constants

    def bind(self, deployment: Deployment) -> "BoundFlop":
        """Count the model's parameters once."""
        model, constants = deployment.model, self._constants
        return BoundFlop(
            per_token=2.0 * model.active_parameters,
            per_context=_per_context(model),
            prefill_joules=constants.joules_per_flop / constants.prefill_utilisation,
            decode_joules=constants.joules_per_flop / constants.decode_utilisation,
            out_of_domain=model.approximation,
        )


@dataclass(frozen=True, slots=True)
class BoundFlop:
    """The formula for one model."""

    per_token: float
    """Operations of a token outside attention."""
    per_context: float
    """Operations of a token per token of its context."""
    prefill_joules: float
    """Per operation."""
    decode_joules: float
    out_of_domain: str
    measured: bool = False
    """The formula is of no measurement."""

    def adopt(self, factors: DeploymentFactors) -> None:
        """The formula has no law that a deployment could correct."""

    def phases(
        self,
        concurrency: Numbers,
        prompt_tokens: Numbers,
        output_tokens: Numbers,
        serving: Serving = PLAIN,
    ) -> PhaseEnergy:
        """See `energy_model.BoundModel`; cached tokens take no operations, drafts do."""
        flop = _flop(self.per_token, self.per_context, prompt_tokens, output_tokens)
        kept = _flop(self.per_token, self.per_context, serving.cached, 0.0)
        drafted = flop.decode * (serving.verified / serving.accepted)
        return PhaseEnergy(
            (flop.prefill - kept.prefill) * self.prefill_joules, drafted * self.decode_joules
        )
