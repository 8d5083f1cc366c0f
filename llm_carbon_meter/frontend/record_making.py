"""Makes the record of an exchange, in flight or finished."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from llm_carbon_meter.frontend.exchanges import Exchange
from llm_carbon_meter.frontend.sums import stopped, sum_estimates
from llm_carbon_meter.predictor.live import LiveEstimator
from llm_carbon_meter.records import CarbonIntensity, EnergyEstimate, RequestRecord


class Surroundings(NamedTuple):
    """What all records of a server have in common."""

    model_name: str
    deployment: Mapping[str, str | int]
    pue: float
    covers: str


def record_of(
    exchange: Exchange,
    surroundings: Surroundings,
    intensity: CarbonIntensity,
    live: LiveEstimator | None,
) -> RequestRecord:
    """An exchange as known now; it has at least one engine request.

    Args:
        exchange: of this server.
        surroundings: of this server.
        intensity: of the grid now.
        live: makes the conditional estimate; None where there are no estimates.
    """
    assert exchange.features is not None
    energy = exchange.energy
    if energy is not None and exchange.answered:
        energy = stopped(energy)
    return RequestRecord(
        id=exchange.id,
        external_ids=exchange.external_ids(),
        internal_ids=tuple(exchange.members),
        model=surroundings.model_name,
        deployment=surroundings.deployment,
        energy=energy,
        provisional=exchange.provisional,
        estimate=exchange.estimate,
        conditional=_conditional(exchange, live) if live else None,
        features=dataclasses.replace(exchange.features, num_sequences=len(exchange.members)),
        intensity_g_per_kwh=intensity.grams_per_kwh,
        intensity_source=intensity.provider,
        zone=intensity.zone,
        pue=surroundings.pue,
        covers=surroundings.covers,
        tokens_from=exchange.tokens_from,
    )


def _conditional(exchange: Exchange, live: LiveEstimator) -> EnergyEstimate | None:
    """The estimate once nothing is unknown any more; None before."""
    members = exchange.members.values()
    if not exchange.is_final() or any(member.estimate is None for member in members):
        return None
    served = [(member.energy, member.asked) for member in members]
    return sum_estimates(
        [
            live.conditional(energy, asked.query.remark)
            for energy, asked in served
            if energy and asked
        ]
    )
