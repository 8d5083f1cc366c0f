"""The report of a period from a Prometheus server: increases of our counters, added up by it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

import httpx

from llm_carbon_meter.addresses import check_url, is_loopback, shown_url, split_login
from llm_carbon_meter.exporters.columns import aligned
from llm_carbon_meter.records import Account, MeterError
from llm_carbon_meter.report.groups import Value
from llm_carbon_meter.report.periods import STEPS, Period, iso, label_format
from llm_carbon_meter.report.summary import Question
from llm_carbon_meter.report.text import shown
from llm_carbon_meter.units import watt_hours

TIMEOUT_S: Final = 30.0
PREFIX: Final = "llm_carbon_meter_"
ADVICE: Final = "give the address of a Prometheus server such as http://localhost:9090"
GROUPINGS: Final = ("model", *STEPS)
WORDS: Final = (0, 1)
"""Columns of group and source."""
MEMORY: Final = "7d"
"""A series without a sample for so long before a time began in it."""
SCOPES: Final = ("operational", "embodied")
ACCOUNT_COLUMNS: Final = {account.label: f"{account.label}_wh" for account in Account}

Labels = tuple[str, str]
"""Model, or model and time; and source."""
Sums = Mapping[Labels, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What a server's counters grew by."""

    url: str
    """As it may be shown."""
    since_s: float
    until_s: float
    by: str
    rows: Sequence[Mapping[str, Value]]
    """One per group and source; the first two columns say which."""


def server_report(url: str, question: Question) -> ServerReport:
    """Ask a Prometheus server.

    Args:
        url: of the server, as for Grafana.
        question: of a period with a beginning, which ends now where no end is given, by one of
            `GROUPINGS`.

    Raises:
        MeterError: no beginning, another grouping, no answer, or no figures of ours.
    """
    period: Period = question.period
    if not math.isfinite(period.since_s):
        raise MeterError(
            "a report from Prometheus needs --since or --period; its counters have no beginning"
        )
    if len(question.by) > 1 or question.by[0] not in GROUPINGS:
        raise MeterError(
            f"--by {','.join(question.by)} needs a request log; of Prometheus: one of "
            f"{', '.join(GROUPINGS)}"
        )
    (by,) = question.by
    until_s = min(period.until_s, time.time())
    if period.since_s >= until_s:
        raise MeterError(f"the period is empty: it begins {iso(period.since_s)}, and it is later")
    bars = bars_of(period.since_s, until_s, by, question.zone)
    with _client(url) as client:
        joules = _grown(client, "energy_joules_total", "account", bars)
        grams = _grown(client, "emissions_grams_total", "scope", bars)
        requests = _grown(client, "requests_total", "outcome", bars)
        tokens = _grown(client, "tokens_total", "phase", bars)
    where = shown_url(url)
    if not joules:
        raise MeterError(
            f"{where} has no {PREFIX}energy_joules_total between {iso(period.since_s)} and "
            f"{iso(until_s)}; give the server that scrapes the metered ones"
        )
    rows = [
        _row(by, group, joules[group], grams.get(group, {}), counted)
        for group in sorted(joules)
        for counted in [{**requests.get((group[0], ""), {}), **tokens.get((group[0], ""), {})}]
    ]
    return ServerReport(where, period.since_s, until_s, by, rows)


def _client(url: str) -> httpx.Client:
    try:
        address, login = split_login(check_url(url, query=False))
        outside = not is_loopback(address)
        return httpx.Client(base_url=address, auth=login, timeout=TIMEOUT_S, trust_env=outside)
    except (ValueError, httpx.InvalidURL):
        raise MeterError(
            f"the address of Prometheus {shown_url(url)} cannot be used; {ADVICE}"
        ) from None


def bars_of(
    since_s: float, until_s: float, by: str, zone: tzinfo
) -> Mapping[str, tuple[float, float]]:
    """Begin and end of each bar by its name: hours, days or months, the first and last ones cut."""
    if by not in STEPS:
        return {"": (since_s, until_s)}
    bars, begin_s = {}, since_s
    while begin_s < until_s:
        at = datetime.fromtimestamp(begin_s, zone)
        end_s = min(_next(at, by), until_s)
        bars[at.strftime(label_format(by, zone)) + " "] = begin_s, end_s
        begin_s = end_s
    return bars


def _next(at: datetime, by: str) -> float:
    """Unix time at which the next hour, day or month begins."""
    begin = STEPS[by](at)
    if by == "hour":
        return begin.timestamp() + 3600.0
    return STEPS[by](begin + timedelta({"day": 1, "month": 31}[by])).timestamp()


def _grown(
    client: httpx.Client, name: str, label: str, bars: Mapping[str, tuple[float, float]]
) -> Sums:
    """By how much a counter grew in each bar: group -> value of the label -> increase."""
    grown: dict[Labels, dict[str, float]] = {}
    for bar, (begin_s, end_s) in bars.items():
        seconds = max(round(end_s - begin_s), 1)
        grown_by = _growth(PREFIX + name, seconds)
        query = f"sum by (model_name, source, {label}) ({grown_by})"
        for series in _ask(client, query, end_s):
            labels, value = series["metric"], float(series["value"][1])
            group = bar + labels.get("model_name", ""), labels.get("source", "")
            grown.setdefault(group, {})[labels.get(label, "")] = value
    return grown


def _growth(metric: str, seconds: int) -> str:
    """By how much a counter grew, in PromQL.

    ``increase`` begins with a series' first sample, and loses what the counter had by then. A
    series that began in the time, and was never reset, has grown by all that it counts.
    """
    span, before = f"{metric}[{seconds}s]", f"{metric}[{MEMORY}] offset {seconds}s"
    whole = f"last_over_time({span}) and resets({span}) == 0"
    return f"({whole}) unless last_over_time({before}) or increase({span})"


def _ask(client: httpx.Client, query: str, at_s: float) -> list[Any]:
    try:
        answer = client.get("/api/v1/query", params={"query": query, "time": at_s})
        answer.raise_for_status()
        result: list[Any] = answer.json()["data"]["result"]
        return result
    except httpx.HTTPStatusError as error:  # its text has the address
        raise _unusable(client, f"it answered {error.response.status_code}") from None
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise _unusable(client, str(error)) from error


def _unusable(client: httpx.Client, why: str) -> MeterError:
    where = shown_url(str(client.base_url))
    return MeterError(f"{where} gave no answer that can be used ({why}); {ADVICE}")


def _row(
    by: str,
    group: Labels,
    joules: Mapping[str, float],
    grams: Mapping[str, float],
    counted: Mapping[str, float],
) -> Mapping[str, Value]:
    phases = ("prefill", "decode")
    total, decoded = watt_hours(sum(joules.values())), counted.get("decode", 0.0)
    return {
        by: group[0],
        "source": group[1],
        "requests": sum(value for name, value in counted.items() if name not in phases),
        **{f"{phase}_tokens": counted.get(phase, 0.0) for phase in phases},
        **{
            column: watt_hours(joules.get(account, 0.0))
            for account, column in ACCOUNT_COLUMNS.items()
        },
        "energy_wh": total,
        "wh_per_1000_decode_tokens": 1000.0 * total / decoded if decoded else None,
        **{f"{scope}_grams": grams.get(scope) for scope in SCOPES},
    }


def server_table(report: ServerReport) -> str:
    """What the figures are, and one line per group."""
    heading = list(report.rows[0])
    cells = [[shown(row[name]) for name in heading] for row in report.rows]
    return "\n".join(
        [
            f"period: from {iso(report.since_s)} until {iso(report.until_s)}",
            f"server: {report.url}",
            "sources: never added to each other",
            "increases: as Prometheus extrapolates them; of a server that began in the period all "
            "that it counted",
            "",
            aligned([heading, *cells], left=WORDS),
        ]
    )
