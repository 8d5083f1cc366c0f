"""Makes the record of an exchange, in flight or finished."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_carbon_meter.carbon.money import Prices
from llm_carbon_meter.frontend.exchanges import Exchange
from llm_carbon_meter.frontend.sums import stopped
from llm_carbon_meter.predictor.live import LiveEstimator, Served
from llm_carbon_meter.records import (
    GPU,
    CarbonIntensity,
    Cost,
    EnergyEstimate,
    Features,
    Place,
    RequestEnergy,
    RequestRecord,
)


class Surroundings(NamedTuple):
    """What all records of a server have in common."""

    model_name: str
    deployment: Mapping[str, str | float]
    pue: float
    covers: str
    prices: Prices | None
    place: Place
    boundary: str = GPU


def record_of(
    exchange: Exchange,
    surroundings: Surroundings,
    intensity: CarbonIntensity,
    conditional: EnergyEstimate | None,
) -> RequestRecord:
    """An exchange as known now; it has at least one engine request.

    Args:
        exchange: of this server.
        surroundings: of this server.
        intensity: of the grid now.
        conditional: the estimate once nothing is unknown any more; None before.
    """
    assert exchange.features is not None
    energy = exchange.energy
    if energy is not None and exchange.answered:
        energy = stopped(energy)
    return RequestRecord(
        id=exchange.id,
        external_ids=exchange.external_ids(),
        internal_ids=exchange.internal_ids,
        model=exchange.model or surroundings.model_name,
        deployment=surroundings.deployment,
        energy=energy,
        provisional=exchange.provisional,
        estimate=exchange.estimate,
        conditional=conditional,
        features=dataclasses.replace(exchange.features, num_sequences=len(exchange.members)),
        intensity_g_per_kwh=intensity.grams_per_kwh,
        intensity_source=intensity.provider,
        zone=intensity.zone,
        pue=surroundings.pue,
        covers=surroundings.covers,
        boundary=surroundings.boundary,
        tokens_from=exchange.tokens_from,
        whose=exchange.whose,
        cost=_cost(surroundings.prices, energy, exchange.features),
        place=surroundings.place,
    )


def _cost(prices: Prices | None, energy: RequestEnergy | None, features: Features) -> Cost | None:
    """At the price of the time when the request came."""
    if prices is None or energy is None:
        return None
    return prices.cost(energy.joules, energy.gpu_seconds, features.arrived_unix_s)


def conditionals(
    exchanges: Sequence[Exchange], live: LiveEstimator
) -> Sequence[EnergyEstimate | None]:
    """The estimates of exchanges once nothing is unknown any more; None before.

    Args:
        exchanges: whose figures came together.
        live: estimates them together: for each alone it takes ten times as long.
    """
    served = [_served(exchange) for exchange in exchanges]
    made = iter(live.conditionals([one for members in served for one in members]))
    return [
        exchange.joined([next(made) for _ in members]) if members else None
        for exchange, members in zip(exchanges, served, strict=True)
    ]


def _served(exchange: Exchange) -> Sequence[Served]:
    """Every member of an exchange; empty where one is not final or has no estimate."""
    members = exchange.members.values()
    if not exchange.is_final() or any(member.estimate is None for member in members):
        return ()
    return [
        Served(member.energy, member.asked.query.remark)
        for member in members
        if member.energy is not None and member.asked is not None
    ]
