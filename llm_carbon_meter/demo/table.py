"""What the demo prints: requests, accounts and the balance line."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, Final

from llm_carbon_meter.demo.replay import Answer
from llm_carbon_meter.exporters.columns import aligned, figure, percent
from llm_carbon_meter.records import REQUEST_ACCOUNTS, Account, Source
from llm_carbon_meter.testing.scrape import Scrape
from llm_carbon_meter.units import watt_hours

Record = Mapping[str, Any]

BALANCE_TOLERANCE: Final = 1e-9
MAX_UNATTRIBUTED: Final = 0.01
_MISSING: Final = "missing"


def request_table(answers: Sequence[Answer], records: Sequence[Record | None]) -> str:
    """One row per request; what the server did not give is called missing."""
    rows = [
        ["#", "request", "kind", "prompt", "output", "estimated Wh", f"{_sources(records)} Wh",
         "gCO2eq", "error"]
    ]  # fmt: skip
    pairs = zip(answers, records, strict=True)
    rows += [[str(number), *_row(*pair)] for number, pair in enumerate(pairs, start=1)]
    return aligned(rows, left={1, 2})


def estimate_table(records: Sequence[Record | None]) -> str:
    """How far the estimates were off: given the true length and company, and as told before."""
    finished = [record for record in records if record is not None and record["status"] == "final"]
    rows = [["error of the estimate", "stage", "requests", "median", "mean of |error|"]]
    for basis, name in _BASES.items():
        for stage in ("raw", "calibrated"):
            errors = [
                error for record in finished if (error := _off(record, name, stage)) is not None
            ]
            if errors:
                mean = fmean(map(abs, errors))
                rows.append(
                    [basis, stage, str(len(errors)), percent(median(errors), "+"), percent(mean)]
                )
    return aligned(rows, left={0, 1}) if len(rows) > 1 else "no request has an estimate"


_BASES: Final = {"given length and company": "conditional", "end to end": "estimate"}


def _off(record: Record, name: str, stage: str) -> float | None:
    """(estimated - used) / used; None where one of them is missing."""
    estimate, used = record.get(name), record["energy_joules"] - record["idle_joules"]
    if not estimate or used <= 0.0:
        return None
    shown = estimate["calibrated"] if stage == "calibrated" else estimate
    return float(shown["energy_joules"] / used - 1.0)


def error_note(records: Sequence[Record | None]) -> str:
    """What the errors mean for this model and this source."""
    estimated = [record for record in records if record is not None and record.get("estimate")]
    notes = []
    if any(record["estimate"]["method"] == "flop" for record in estimated):
        notes.append(
            "The estimate (method flop) counts the operations of a model. This one has hardly any, "
            "and its steps\nare the CPU's overhead: an error near -100 % is expected, and says "
            "nothing of a real model."
        )
    if any(record.get("source") == Source.MODELLED for record in estimated):
        notes.append(
            "The power is modelled, not measured: these are differences between two models, and "
            "nothing of them\nis kept as calibration or exported as an error."
        )
    return "\n".join(notes)


def account_table(last: Scrape) -> str:
    """Joules, watt-hours and share of every account, each GPU and source apart."""
    rows = [["GPU", "source", "account", "J", "Wh", "share"]]
    for gpu in last.gpus:
        for source in last.sources:
            total = last.total(gpu=gpu, source=source)
            if total == 0.0:
                continue
            for account in Account:
                joules = last.total(gpu=gpu, source=source, accounts=[account.label])
                rows.append(
                    [gpu, source, account.label, figure(joules), figure(watt_hours(joules)),
                     percent(joules / total)]
                )  # fmt: skip
    return aligned(rows, left={0, 1, 2})


def records_line(records: Sequence[Record | None], last: Scrape) -> str:
    """The requests' own figures beside the accounts that are charged to requests."""
    present = [record for record in records if record is not None]
    own = sum(record["energy_joules"] - record["idle_joules"] for record in present)
    final = sum(record["status"] == "final" for record in present)
    charged = last.total(accounts=[account.label for account in REQUEST_ACCOUNTS])
    return (
        f"{len(present)} of {len(records)} records found, {final} final; they add up to "
        f"{own:.3f} J, the accounts charged to requests hold {charged:.3f} J"
    )


def grams_table(records: Sequence[Record | None]) -> str:
    """gCO2eq of the requests by where the grid's intensity came from, estimated and used."""
    present = [record for record in records if record is not None]
    rows = [["grid", "gCO2eq/kWh", "requests", "scope", "estimated g", f"{_sources(present)} g"]]
    grids = dict.fromkeys((entry["intensity_source"], entry["zone"]) for entry in present)
    for source, zone in grids:
        same = [
            entry
            for entry in present
            if (entry["intensity_source"], entry["zone"]) == (source, zone)
        ]
        about = [f"{zone} ({source})", figure(same[-1]["intensity_g_per_kwh"]), str(len(same))]
        for scope in ("operational", "embodied"):
            estimates = [(entry["estimate"] or {}).get(f"{scope}_grams") for entry in same]
            used = [entry[f"{scope}_grams"] for entry in same]
            rows.append([*about, scope, _total(estimates), _total(used)])
    covers = dict.fromkeys(entry["covers"] for entry in present)
    return "\n".join([aligned(rows, left={0, 3}), *covers])


def _total(figures: Sequence[float | None]) -> str:
    """The sum; missing where one is."""
    return _figure(None if None in figures else sum(filter(None, figures)))


def headers_line(answers: Sequence[Answer]) -> str:
    """How many responses had the meter's headers, and one of them in full."""
    with_headers = [answer for answer in answers if answer.headers]
    line = f"{len(with_headers)} of {len(answers)} responses had the headers LLM-Carbon-*"
    whole = [answer for answer in with_headers if not answer.streamed]
    for example in (whole or with_headers)[:1]:
        line += f"; one {example.label}:"
        line += "".join(f"\n    {name}: {value}" for name, value in example.headers.items())
    return line


def unattributed_share(last: Scrape) -> float:
    """Of all joules; nan where there are none."""
    total = last.total()
    return last.total(accounts=["unattributed"]) / total if total else float("nan")


def balance_line(last: Scrape) -> str:
    """The whole of the meter's bookkeeping in a line."""
    if not last.accounted_ratios:
        return "balance missing: /metrics has no llm_carbon_meter_accounted_ratio"
    accounted = max(last.accounted_ratios, key=lambda ratio: abs(ratio - 1.0))
    return (
        f"accounted {accounted * 100:.6f} % of {last.total():.1f} J, "
        f"unattributed {unattributed_share(last) * 100:.3f} %"
    )


def problems(
    answers: Sequence[Answer], records: Sequence[Record | None], last: Scrape
) -> list[str]:
    """Why the demo did not show what it should; empty when all is well."""
    failures = [f"request {n}: {a.failure}" for n, a in enumerate(answers, 1) if a.failure]
    if None in records:
        failures.append(f"{list(records).count(None)} requests have no record")
    if not last.accounted_ratios:
        failures.append("the meter's metrics are missing: is the plugin loaded?")
    if any(abs(ratio - 1.0) > BALANCE_TOLERANCE for ratio in last.accounted_ratios):
        failures.append(f"the accounts do not add up to the counter: {last.accounted_ratios}")
    if len(last.sources) > 1:
        failures.append(f"the engine's joules have several sources: {last.sources}")
    if unattributed_share(last) > MAX_UNATTRIBUTED:
        failures.append(f"{percent(unattributed_share(last))} of the joules are unattributed")
    return failures


def _row(answer: Answer, record: Record | None) -> list[str]:
    tokens = [str(answer.prompt_tokens), str(answer.output_tokens)]
    about = [_short(answer.response_id), answer.label, *tokens]
    if answer.failure is not None or record is None:
        return [*about, *[_MISSING] * 4]
    estimated = (record.get("estimate") or {}).get("energy_wh")
    return [
        *about,
        _figure(estimated),
        _figure(record["energy_wh"]),
        _figure(record["operational_grams"]),
        _error(estimated, record["energy_wh"]),
    ]


def _sources(records: Sequence[Record | None]) -> str:
    """The heading of the column: measured or modelled."""
    sources = {str(record.get("source", "unknown")) for record in records if record is not None}
    return "/".join(sorted(sources)) or f"{Source.MEASURED}/{Source.MODELLED}"


def _error(estimated: float | None, actual: float) -> str:
    if estimated is None or actual <= 0.0:
        return _MISSING
    return percent((estimated - actual) / actual, "+")


def _figure(value: float | None) -> str:
    return _MISSING if value is None else figure(value)


def _short(response_id: str | None) -> str:
    return _MISSING if response_id is None else response_id[:17]
