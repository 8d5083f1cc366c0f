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
    fields = ("prefill_joules", "decode_joules", "low_joules", "high_joules", "output_tokens")
    totals = {name: sum(getattr(each, name) for each in estimates) for name in fields}
    joules = sum(each.joules for each in estimates)
    # The calibration may have moved from one to the next.
    calibrated = sum(each.joules * each.calibration for each in estimates)
    return dataclasses.replace(
        estimates[0],
        **totals,
        operational_grams=sum(each.operational_grams for each in estimates),
        embodied_grams=_sum_known(each.embodied_grams for each in estimates),
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
    )
    steps = sum(each.num_steps for each in energies)
    running = sum(each.mean_running * each.num_steps for each in energies)
    final = all(each.status is Status.FINAL for each in energies)
    return dataclasses.replace(
        energies[0],
        accounts=reduce(add, (each.accounts for each in energies)),
        **{name: sum(getattr(each, name) for each in energies) for name in fields},
        embodied_grams=_sum_known(each.embodied_grams for each in energies),
        status=Status.FINAL if final else Status.PROVISIONAL,
        quality=max((each.quality for each in energies), key=lambda quality: Quality(quality).rank),
        outcome=max((each.outcome for each in energies), key=_OUTCOMES.index),
        mean_running=running / steps if steps else 0.0,
        first_step_s=min(each.first_step_s for each in energies),
        last_step_s=max(each.last_step_s for each in energies),
    )


def _sum_known(figures: Iterable[float | None]) -> float | None:
    """None where one is not known."""
    known = list(figures)
    return None if None in known else sum(filter(None, known))


def stopped(energy: RequestEnergy) -> RequestEnergy:
    """An abort after a complete answer was a stop string, found by the frontend."""
    if energy.outcome is Outcome.ABORTED:
        return dataclasses.replace(energy, outcome=Outcome.STOPPED)
    return energy
