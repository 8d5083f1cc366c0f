"""Figures of several engine requests of one exchange as one."""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Final

from llm_carbon_meter.records import EnergyEstimate, Outcome, Quality, RequestEnergy, Status

# From the best to the worst that can happen to one of several.
_OUTCOMES: Final = (Outcome.FINISHED, Outcome.STOPPED, Outcome.ABORTED, Outcome.FAILED)


def sum_estimates(estimates: Sequence[EnergyEstimate]) -> EnergyEstimate:
    """Estimates of several engine requests as one."""
    if len(estimates) == 1:
        return estimates[0]
    fields = (
        "prefill_joules",
        "decode_joules",
        "low_joules",
        "high_joules",
        "output_tokens",
        "cached_tokens",
    )
    totals = {name: sum(getattr(estimate, name) for estimate in estimates) for name in fields}
    joules = sum(estimate.joules for estimate in estimates)
    # The calibration may have moved from one to the next.
    calibrated = sum(estimate.joules * estimate.calibration for estimate in estimates)
    return dataclasses.replace(
        estimates[0],
        **totals,
        operational_grams=sum(estimate.operational_grams for estimate in estimates),
        embodied_grams=_sum_known(estimate.embodied_grams for estimate in estimates),
        out_of_domain="; ".join(dict.fromkeys(estimate.out_of_domain for estimate in estimates)),
        calibration=calibrated / joules,
    )


def sum_energies(energies: Sequence[RequestEnergy]) -> RequestEnergy:
    """Energies of several engine requests as one; the worst quality and outcome count."""
    if len(energies) == 1:
        return energies[0]
    fields = (
        "operational_grams",
        "gpu_seconds",
        "prompt_tokens",
        "cached_tokens",
        "output_tokens",
        "num_steps",
        "decode_steps",
        "decode_tokens",
    )
    steps = sum(energy.num_steps for energy in energies)
    running = sum(energy.mean_running * energy.num_steps for energy in energies)
    final = all(energy.status is Status.FINAL for energy in energies)
    return dataclasses.replace(
        energies[0],
        accounts=reduce(add, (energy.accounts for energy in energies)),
        **{name: sum(getattr(energy, name) for energy in energies) for name in fields},
        embodied_grams=_sum_known(energy.embodied_grams for energy in energies),
        host_joules=_sum_known(energy.host_joules for energy in energies),
        water_litres=_sum_known(energy.water_litres for energy in energies),
        status=Status.FINAL if final else Status.PROVISIONAL,
        quality=max(
            (energy.quality for energy in energies), key=lambda quality: Quality(quality).rank
        ),
        outcome=max((energy.outcome for energy in energies), key=_OUTCOMES.index),
        mean_running=running / steps if steps else 0.0,
        first_step_s=min(energy.first_step_s for energy in energies),
        last_step_s=max(energy.last_step_s for energy in energies),
        uncertainty=_joint_uncertainty(energies),
    )


def sum_beams(energies: Sequence[RequestEnergy]) -> RequestEnergy:
    """Energies of a beam search, whose engine requests go on with the prompt of the first."""
    first = energies[0]
    return dataclasses.replace(
        sum_energies(energies),
        prompt_tokens=first.prompt_tokens,
        cached_tokens=first.cached_tokens,
    )


def sum_beam_estimates(estimates: Sequence[EnergyEstimate]) -> EnergyEstimate:
    """Estimates of its engine requests, likewise."""
    whole = sum_estimates(estimates)
    return dataclasses.replace(whole, cached_tokens=estimates[0].cached_tokens)


def _joint_uncertainty(energies: Sequence[RequestEnergy]) -> float | None:
    """As if all erred to the same side, as requests of one exchange may."""
    joules = sum(energy.joules for energy in energies)
    spans = [_times(energy.uncertainty, energy.joules) for energy in energies]
    span = _sum_known(spans)
    return span / joules if span is not None and joules else None


def _times(share: float | None, joules: float) -> float | None:
    return None if share is None else share * joules


def _sum_known(figures: Iterable[float | None]) -> float | None:
    """None where one is not known."""
    values = list(figures)
    return None if None in values else sum(filter(None, values))


def stopped(energy: RequestEnergy) -> RequestEnergy:
    """An abort after a complete answer was a stop string, found by the frontend."""
    if energy.outcome is Outcome.ABORTED:
        return dataclasses.replace(energy, outcome=Outcome.STOPPED)
    return energy
