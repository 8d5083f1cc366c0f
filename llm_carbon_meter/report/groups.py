"""Figures of a group of requests; a group has one source: measured and modelled never meet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, Final

from llm_carbon_meter.records import ACCOUNT_NAMES
from llm_carbon_meter.report.database import clean, quoted
from llm_carbon_meter.report.periods import STEPS, label_format
from llm_carbon_meter.units import watt_hours

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Value = float | int | str | None
THOUSAND: Final = 1000.0
ALL: Final = "all"
NO_ADAPTER: Final = "none"
"""Stands for requests to the model itself."""
NOT_SAID: Final = "not said"
"""Stands where a line has nothing."""
NAMES: Final = (
    *("model", "tenant", "adapter", "zone", "currency"),
    *("instance", "host", "pod", "node", "namespace"),
)
GROUPINGS: Final = (*NAMES, *STEPS)
"""What requests can be grouped by; days, hours and months are those of a time zone."""
OF_REQUESTS: Final = ("tenant", "adapter", "currency")
"""Of these, what belongs to a request and not to the GPUs."""


@dataclass(frozen=True, slots=True)
class Group:
    """Requests with something in common, all of one source."""

    labels: Sequence[str]
    source: str
    sums: Mapping[str, Any]
    """By the names of `_SUMS`."""

    @property
    def label(self) -> str:
        """All labels in one text."""
        return ", ".join(self.labels)

    @property
    def requests(self) -> int:
        """At least one."""
        return int(self.sums["requests"])

    @property
    def joules(self) -> float:
        """Of all accounts."""
        return float(self.sums["energy_joules"])

    @property
    def output_tokens(self) -> int:
        """Generated."""
        return int(self.sums["output_tokens"])

    @property
    def tokens(self) -> int:
        """Of prompts, cached ones too, and output."""
        return self.output_tokens + int(self.sums["prompt_tokens"])

    @property
    def operational_grams(self) -> float:
        """Of the energy."""
        return float(self.sums["operational_grams"])

    def known(self, name: str) -> float | None:
        """A sum; None unless every request has its part."""
        whole = self.sums[f"{name}_known"] == self.requests
        return float(self.sums[name]) if whole else None

    @property
    def sci_grams(self) -> float | None:
        """Operational and embodied, as the SCI specification adds them."""
        embodied = self.known("embodied_grams")
        return None if embodied is None else self.operational_grams + embodied

    def cost(self, name: str) -> float | None:
        """Money; None where currencies differ or a request has no cost."""
        return self.known(name) if len(self.sums["currencies"] or {}) == 1 else None


_OPTIONAL: Final = ("embodied_grams", "host_joules", "water_litres", "energy_cost", "gpu_cost")
_COMPARED: Final = "energy_joules > 0 AND NOT coalesce(estimate_facility, false)"
_ESTIMATE: Final = "estimate_calibrated_joules"
_SUMS: Final[Mapping[str, str]] = {
    "requests": "count(*)",
    "prompt_tokens": "sum(prompt_tokens)",
    "output_tokens": "sum(output_tokens)",
    "qualities": "histogram(quality)",
    "energy_joules": "sum(energy_joules)",
    **{f"{name}_joules": f"coalesce(sum({name}_joules), 0)" for name in ACCOUNT_NAMES},
    "operational_grams": "coalesce(sum(operational_grams), 0)",
    "pue_joules": "sum(energy_joules * coalesce(pue, 1))",
    **{name: f"coalesce(sum({name}), 0)" for name in _OPTIONAL},
    **{f"{name}_known": f"count({name})" for name in _OPTIONAL},
    "currencies": "histogram(currency)",
    "uncertain_joules": "coalesce(sum(uncertainty * abs(energy_joules)), 0)",
    "uncertain_joules_known": "count(uncertainty)",
    "compared": f"count({_ESTIMATE}) FILTER ({_COMPARED})",
    "estimated": f"coalesce(sum({_ESTIMATE}) FILTER ({_COMPARED}), 0)",
    "actual": f"coalesce(sum(energy_joules) FILTER ({_COMPARED} AND {_ESTIMATE} IS NOT NULL), 0)",
    "median_error": f"approx_quantile(abs({_ESTIMATE} / energy_joules - 1), 0.5) "
    f"FILTER ({_COMPARED})::DOUBLE",
}
"""What is added up."""


def label_expression(by: str, zone: tzinfo) -> str:
    """The label of a line in SQL; the time zone of the session is `zone`."""
    if by in STEPS:
        return f"strftime(to_timestamp(arrived_unix_s), {quoted(label_format(by, zone))})"
    nothing = NO_ADAPTER if by == "adapter" else NOT_SAID
    ours = ", ".join(map(quoted, (ALL, NO_ADAPTER, NOT_SAID)))
    named = f"CASE WHEN {by} IN ({ours}) THEN '\"' || {by} || '\"' ELSE nullif({by}, '') END"
    return f"coalesce({named}, {quoted(nothing)})"


def grouped(
    connection: "DuckDBPyConnection", by: Sequence[str], zone: tzinfo, where: str
) -> list[Group]:
    """Groups in order of source and label; where a source has several, all of them at its end.

    Args:
        connection: with the table ``lines``.
        by: keys of `GROUPINGS`.
        zone: of the session.
        where: condition of the requests that count.
    """
    labels = [f"{label_expression(name, zone)} AS label_{name}" for name in by]
    names = [f"label_{name}" for name in by]
    sums = ", ".join(f"{expression} AS {name}" for name, expression in _SUMS.items())
    rows = connection.execute(
        f"SELECT source, grouping({names[0]}), {', '.join(names)}, {sums} "
        f"FROM (SELECT *, {', '.join(labels)} FROM lines WHERE {where}) "
        f"GROUP BY GROUPING SETS ((source, {', '.join(names)}), (source)) "
        f"ORDER BY source, grouping({names[0]}), {', '.join(names)}"
    ).fetchall()
    groups = [_group(row, len(by)) for row in rows]
    parts = {source: sum(group.source == source for group in groups) for source in sources(groups)}
    return [group for group in groups if group.labels != [ALL] or parts[group.source] > 2]


def _group(row: Sequence[Any], labels: int) -> Group:
    source, is_all, *rest = row
    named = [ALL] if is_all else [clean(label) for label in rest[:labels]]
    return Group(named, source, dict(zip(_SUMS, rest[labels:], strict=True)))


def sources(groups: Sequence[Group]) -> list[str]:
    """Of some groups, in order."""
    return list(dict.fromkeys(group.source for group in groups))


def totals(groups: Sequence[Group]) -> list[Group]:
    """The last group of each source, which has all its requests."""
    return list({group.source: group for group in groups}.values())


def _ratio(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else part / whole


def _percent(part: float | None, whole: float) -> float | None:
    ratio = _ratio(part, whole)
    return None if ratio is None else 100.0 * ratio


def counted(counts: Mapping[str, int] | None) -> str:
    """Values and how often each is there, the most frequent first."""
    ordered = sorted((counts or {}).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{clean(value)} {count}" for value, count in ordered)


def _account(name: str) -> Callable[[Group], Value]:
    return lambda group: watt_hours(group.sums[f"{name}_joules"])


def _watt_hours(joules: float | None) -> float | None:
    return None if joules is None else watt_hours(joules)


def _currency(group: Group) -> Value:
    return ", ".join(sorted(map(clean, group.sums["currencies"] or {}))) or None


Columns = Mapping[str, Callable[[Group], Value]]
SECTIONS: Final[Mapping[str, Columns]] = {
    "Requests": {
        "requests": lambda group: group.requests,
        "prompt_tokens": lambda group: group.tokens - group.output_tokens,
        "output_tokens": lambda group: group.output_tokens,
        "quality": lambda group: counted(group.sums["qualities"]),
    },
    "Energy": {
        **{f"{name}_wh": _account(name) for name in ACCOUNT_NAMES},
        "energy_wh": lambda group: watt_hours(group.joules),
        "at_most_off_percent": lambda group: _percent(
            group.known("uncertain_joules"), abs(group.joules)
        ),
        "wh_per_1000_output_tokens": lambda group: _ratio(
            watt_hours(group.joules) * THOUSAND, group.output_tokens
        ),
    },
    "Emissions, gCO2eq": {
        "operational_grams": lambda group: group.operational_grams,
        "embodied_grams": lambda group: group.known("embodied_grams"),
        "sci_grams_per_request": lambda group: _ratio(group.sci_grams, group.requests),
        "sci_grams_per_1000_tokens": lambda group: _ratio(
            None if group.sci_grams is None else group.sci_grams * THOUSAND, group.tokens
        ),
    },
    "Beside the GPUs": {
        "host_wh": lambda group: _watt_hours(group.known("host_joules")),
        "water_litres": lambda group: group.known("water_litres"),
        "energy_cost": lambda group: group.cost("energy_cost"),
        "gpu_cost": lambda group: group.cost("gpu_cost"),
        "cost_currency": _currency,
    },
    "Estimates": {
        "compared_requests": lambda group: group.sums["compared"],
        "estimated_wh": lambda group: watt_hours(group.sums["estimated"]),
        "compared_wh": lambda group: watt_hours(group.sums["actual"]),
        "error_percent": lambda group: _percent(
            group.sums["estimated"] - group.sums["actual"], group.sums["actual"]
        ),
        "median_error_percent": lambda group: _percent(group.sums["median_error"], 1.0),
    },
}
"""Columns by the table that they stand in; None where there is no such figure."""


def sections(groups: Sequence[Group]) -> Mapping[str, Columns]:
    """Those that have a figure."""
    return {
        title: columns
        for title, columns in SECTIONS.items()
        if any(figure(group) is not None for figure in columns.values() for group in groups)
    }
