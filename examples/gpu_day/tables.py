"""The report's tables: ground truth beside what the meter said, a row at a time."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

import truth
from rows import MEASURED, Row, of_kind

from llm_carbon_meter.exporters.columns import figure, percent
from llm_carbon_meter.ledger.attribution import POLICIES

MISSING = "-"
Cells = Sequence[str]


class Findings(NamedTuple):
    """All that the table, the plots and the cards are made of."""

    rows: list[Row]
    remarks: Sequence[str]
    host: Row
    shares: Sequence[truth.Shares]
    configurations: Sequence[truth.Configuration]
    estimates: Sequence[tuple[float, float]]
    """Joules of prefill and decode, of each configuration."""

    @property
    def simulated(self) -> bool:
        """Whether the rows are of a rehearsal."""
        return bool(self.host["source"] != MEASURED)


def markdown(heading: Cells, rows: Sequence[Cells]) -> str:
    """A table; a line instead where there are no rows."""
    if not rows:
        return "Nothing was measured."
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


HEADING = ("what", "ground truth", "the meter", "difference")


def table(found: Findings) -> Iterator[Cells]:
    """The day in a dozen lines."""
    yield from _lag_row(found.rows)
    yield from _share_rows(found.shares)
    yield from _balance_rows(found.rows)
    yield from _served_rows(found.rows)
    yield from _inside_row(found.rows)
    yield from _campaign_summary(found)
    yield from _throughput_row(found.rows)


def _ms(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{figure(1000 * seconds)} ms"


def _lag_row(rows: list[Row]) -> Iterator[Cells]:
    lags_s, learnt_s = truth.onset_lags_s(rows), truth.learnt_lag_s(rows)
    if lags_s:
        true_s = median(lags_s)
        off = MISSING if learnt_s is None else _ms(learnt_s - true_s)
        said = "not learnt" if learnt_s is None else f"ledger: {_ms(learnt_s)}"
        yield f"lag of the counter, {len(lags_s)} onsets of a load", _ms(true_s), said, off


def _share_rows(shares: Sequence[truth.Shares]) -> Iterator[Cells]:
    for policy in POLICIES if shares else ():
        errors = [abs(error) for one in shares for error in one.errors(policy)]
        relative = [abs(error) for one in shares for error in one.relative_errors(policy)]
        yield (
            f"shares of {len(errors)} requests in {len(shares)} steps",
            "Shapley value of all subsets",
            f"policy `{policy}`",
            f"largest {percent(max(errors))} of the step, median {percent(median(relative))} of "
            "the share",
        )


def _balance_rows(rows: list[Row]) -> Iterator[Cells]:
    for one in truth.balances(rows):
        yield (
            "joules while requests were served",
            f"counter {figure(one.counter)} J ± {figure(one.resolution)} J",
            f"all accounts {figure(one.accounts)} J",
            percent(one.accounts_error, "+"),
        )
        yield (
            "joules charged to requests",
            f"accounts {one.requests_accounts:.1f} J",
            f"sum of the records {one.records:.1f} J",
            percent(round(one.records_error, 9), "+"),
        )


def _served_rows(rows: list[Row]) -> Iterator[Cells]:
    for one in truth.estimate_errors(rows):
        if one.phase == "whole request":
            sizes = percent(one.median_size), percent(one.median, "+")
            yield (
                f"{one.requests} served requests, estimate {one.basis}",
                "record of each",
                one.stage,
                "median absolute error {}, median {}".format(*sizes),
            )


def _inside_row(rows: list[Row]) -> Iterator[Cells]:
    within, judged = truth.inside(rows)
    if judged:
        told = f"{within} of {judged}, {percent(within / judged)}"
        yield (
            "served requests inside the estimate's interval",
            "80%: from 10% to 90%",
            told,
            MISSING,
        )


def _campaign_summary(found: Findings) -> Iterator[Cells]:
    for place, phase in enumerate(("prefill", "decode")):
        errors = [abs(error[place]) for error in campaign_errors(found)]
        if errors:
            yield (
                f"{phase} of {len(errors)} configurations",
                "campaign rows",
                "estimate of the verb",
                f"median absolute error {percent(median(errors))}, largest {percent(max(errors))}",
            )


def _throughput_row(rows: list[Row]) -> Iterator[Cells]:
    ratios = truth.ratios(rows)
    if ratios:
        told = f"{min(ratios):.3f} to {max(ratios):.3f}"
        pairs = f"tokens per second, {len(ratios)} pairs of rounds by turns"
        yield pairs, "without the meter: 1", f"with it: {median(ratios):.3f}", told


SENSOR_HEADING = ("load", "period", "counter W", "power W", "counter / power", "a call, p99")


def sensor_rows(rows: list[Row]) -> Iterator[Cells]:
    """Steady loads and bursts."""
    for kind, about in (("load", ""), ("burst", "bursts of period, s: ")):
        for row in of_kind(rows, "sensor", kind):
            call = f"{_ms(row['call_median_s'])}, {_ms(row['call_p99_s'])}"
            watts = [_number(row[name]) for name in ("counter_watts", "instant_watts")]
            agreement = _number(row["counter_to_power"])
            yield about + row["key"], _ms(row["period_s"]), *watts, agreement, call


def _number(value: float | None) -> str:
    return MISSING if value is None or value != value else figure(value)


def shares_text(found: Findings) -> str:
    """A table of every request's share, by its definition and by policy."""
    heading = ("batch", "new + cached tokens", "exact", *(f"`{policy}`" for policy in POLICIES))
    rows = [
        (
            one.batch,
            f"{request[0]} + {request[1]}",
            percent(one.exact[place]),
            *(percent(one.meter[policy][place]) for policy in POLICIES),
        )
        for one in found.shares
        for place, request in enumerate(one.requests)
    ]
    return markdown(heading, rows)


def served_text(rows: list[Row]) -> str:
    """What was served, how fast, and how the meter labels it; nothing where nothing was."""
    requests = list(of_kind(rows, "served", "request"))
    balances = list(of_kind(rows, "served", "balance"))
    if not requests or not balances:
        return ""
    tokens = sum(row["output_tokens"] for row in requests)
    seconds = sum(row["serving_s"] for row in balances)
    given_up = sum(row["num_failed"] for row in balances)
    qualities = ", ".join(dict.fromkeys(row["quality"] for row in requests))
    company = median(row["mean_running"] for row in requests)
    doubts = {row["estimate"]["out_of_domain"] for row in requests if row["estimate"]} - {""}
    text = (
        f"{len(requests)} requests with {tokens} output tokens in {figure(seconds)} s, a median of "
        f"{figure(company)} at once; quality {qualities}; {given_up} given up. A reading of the "
        f"meter took {_ms(balances[-1]['sampler_read_s'])}."
    )
    return (
        f"{text} The estimates say of themselves: {'; '.join(sorted(doubts))}." if doubts else text
    )


ESTIMATE_HEADING = ("estimate", "stage", "phase", "requests", "median", "median absolute error")


def estimate_rows(rows: list[Row]) -> Iterator[Cells]:
    """By basis, stage and phase."""
    for one in truth.estimate_errors(rows):
        sizes = percent(one.median, "+"), percent(one.median_size)
        yield one.basis, one.stage, one.phase, str(one.requests), *sizes


CAMPAIGN_HEADING = (
    *("model", "batch", "prompt", "output"),
    *("prefill J, counter", "estimated", "decode J, counter", "estimated"),
)


def campaign_rows(found: Findings) -> Iterator[Cells]:
    """One a configuration; joules of a request, gross."""
    for one, (prefill, decode) in zip(found.configurations, found.estimates, strict=True):
        lengths = (one.batch, one.prompt_tokens, one.output_tokens)
        joules = (one.prefill_joules, prefill, one.decode_joules, decode)
        yield one.model, *map(str, lengths), *map(figure, joules)


def campaign_errors(found: Findings) -> list[tuple[float, float]]:
    """Of prefill and decode, (estimated - measured) / measured."""
    return [
        (prefill / one.prefill_joules - 1, decode / one.decode_joules - 1)
        for one, (prefill, decode) in zip(found.configurations, found.estimates, strict=True)
    ]
