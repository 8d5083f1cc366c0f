"""Ground truth against what the meter said, from a day's rows: arithmetic alone."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rows import Row, of_kind

from llm_carbon_meter.campaign.subsets import StepMember, exact_shares, modelled_shares
from llm_carbon_meter.ledger.attribution import POLICIES
from llm_carbon_meter.physics.step_work import CostModel

PHASES: Mapping[str, str] = {
    "prefill": "prefill_joules",
    "decode": "decode_joules",
    "whole request": "energy_joules",
}
BASES: Mapping[str, str] = {
    "before it ran": "estimate",
    "given length and company": "conditional",
}
STAGES = ("raw", "calibrated")
MIN_JOULES = 1e-9
"""Below it a phase did not happen."""


class Shares(NamedTuple):
    """Of one batch of which every subset was run."""

    batch: str
    requests: Sequence[Sequence[int]]
    """New and cached tokens."""
    exact: Sequence[float]
    meter: Mapping[str, Sequence[float]]
    """By policy."""

    def errors(self, policy: str) -> list[float]:
        """Of each request's share, as a part of the step."""
        return [said - true for said, true in zip(self.meter[policy], self.exact, strict=True)]

    def relative_errors(self, policy: str) -> list[float]:
        """Of each request's share, as a part of its true share."""
        pairs = zip(self.meter[policy], self.exact, strict=True)
        return [said / true - 1 for said, true in pairs]


def shares(rows: list[Row], model: CostModel) -> list[Shares]:
    """Of each batch whose subsets are all there.

    Args:
        rows: of the day.
        model: of the GPU and of the decoder that was run.
    """
    by_batch: dict[str, dict[tuple[int, ...], Row]] = {}
    for row in of_kind(rows, "shares", "subset"):
        by_batch.setdefault(row["batch"], {})[tuple(row["members"])] = row
    found = []
    for batch, subsets in by_batch.items():
        requests = next(iter(subsets.values()))["requests"]
        if len(subsets) == 2 ** len(requests) - 1:
            found.append(_shares(batch, requests, subsets, model))
    return found


def _shares(
    batch: str, requests: Any, subsets: Mapping[tuple[int, ...], Row], model: CostModel
) -> Shares:
    members = [StepMember(*request) for request in requests]
    joules = {subset: row["joules"] for subset, row in subsets.items()}
    step_s = subsets[tuple(range(len(members)))]["step_s"]
    said = {policy: modelled_shares(members, step_s, model, policy) for policy in POLICIES}
    return Shares(batch, requests, exact_shares(joules, len(members)), said)


class EstimateErrors(NamedTuple):
    """How far estimates of the served requests were from what the meter measured."""

    basis: str
    stage: str
    phase: str
    requests: int
    median: float
    """Signed, (estimated - measured) / measured."""
    median_size: float
    """Of the absolute errors."""


def estimate_errors(rows: list[Row]) -> Iterator[EstimateErrors]:
    """By basis, stage and phase."""
    requests = list(of_kind(rows, "served", "request"))
    for basis, field in BASES.items():
        for stage in STAGES:
            for phase, joules in PHASES.items():
                errors = [
                    error
                    for row in requests
                    if (error := _off(row, row[field], stage, joules)) is not None
                ]
                if errors:
                    sizes = [abs(error) for error in errors]
                    counted = len(errors), median(errors), median(sizes)
                    yield EstimateErrors(basis, stage, phase, *counted)


def _off(row: Row, estimate: Any, stage: str, joules: str) -> float | None:
    measured = float(row[joules])
    if joules == "energy_joules":
        measured -= row["idle_joules"]
    if not estimate or measured < MIN_JOULES:
        return None
    return float(estimate[stage][joules]) / measured - 1


def inside(rows: list[Row]) -> tuple[int, int]:
    """Requests whose measurement was within the estimate's interval, and all with an estimate."""
    judged = [row for row in of_kind(rows, "served", "request") if row["estimate"]]
    within = [
        row
        for row in judged
        if row["estimate"]["low_joules"]
        <= row["energy_joules"] - row["idle_joules"]
        <= row["estimate"]["high_joules"]
    ]
    return len(within), len(judged)


class Balance(NamedTuple):
    """Joules of one serving session, by three ways to count them."""

    counter: float
    accounts: float
    requests_accounts: float
    records: float
    resolution: float
    """Joules: how far the accounts were behind the counter varied so much."""
    unattributed: float

    @property
    def accounts_error(self) -> float:
        """Accounts less counter, as a part of the counter."""
        return self.accounts / self.counter - 1

    @property
    def records_error(self) -> float:
        """Records less what is charged to requests, as a part of that."""
        return self.records / self.requests_accounts - 1


def balances(rows: list[Row]) -> list[Balance]:
    """One of each session of the served part."""
    return [
        Balance(
            row["counter_joules"],
            sum(row["accounts_joules"].values()),
            row["requests_accounts_joules"],
            row["records_joules"],
            row["resolution_joules"],
            row["accounts_joules"]["unattributed"],
        )
        for row in of_kind(rows, "served", "balance")
    ]


def ratios(rows: list[Row]) -> list[float]:
    """Tokens per second with the meter / without, of each pair of rounds."""
    return [row["metered"] / row["plain"] for row in of_kind(rows, "throughput", "pair")]


def period_s(rows: list[Row]) -> float | None:
    """Between moves of the counter, median of the loads."""
    seen = [row["period_s"] for row in of_kind(rows, "sensor", "load") if row["period_s"]]
    return float(np.median(seen)) if seen else None


def onset_lags_s(rows: list[Row]) -> list[float]:
    """Of each start of a load."""
    return [row["lag_s"] for row in of_kind(rows, "sensor", "onset")]


def learnt_lag_s(rows: list[Row]) -> float | None:
    """What the ledger says of the counter's lag after the served requests."""
    said = [row["counter_lag_s"] for row in of_kind(rows, "served", "balance")]
    return said[-1] if said else None


class Configuration(NamedTuple):
    """A model under a load in the campaign, both phases known."""

    model: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    engine: str
    engine_version: str
    dtype: str
    gpu: str
    prefill_joules: float
    """Of one request, gross."""
    decode_joules: float


def configurations(raws: Sequence[Mapping[str, str]]) -> list[Configuration]:
    """Medians of good repetitions; decode is the whole answer less its prefill."""
    kept = ("model", "batch", "prompt_tokens", "output_tokens")
    about = ("engine", "engine_version", "dtype", "gpu")
    joules: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for raw in raws:
        if raw["status"] == "ok":
            key = tuple(raw[name] for name in (*kept, *about))
            phase = joules.setdefault(key, {}).setdefault(raw["phase"], [])
            phase.append(float(raw["joules_per_request"]))
    found = []
    for key, phases in joules.items():
        if {"prefill", "prefill+decode"} <= phases.keys():
            prefill, whole = median(phases["prefill"]), median(phases["prefill+decode"])
            model, batch, prompt, output, engine, version, dtype, gpu = key
            lengths = int(batch), int(prompt), int(output)
            where = engine, version, dtype, gpu
            found.append(Configuration(model, *lengths, *where, prefill, whole - prefill))
    return found
