"""Figures of a group of requests; a group has one source: measured and modelled never meet."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Final

from llm_carbon_meter.records import ACCOUNT_NAMES
from llm_carbon_meter.report.entries import Entry
from llm_carbon_meter.units import watt_hours

Value = float | int | str | None
THOUSAND: Final = 1000.0
ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class Group:
    """Requests with something in common, all of one source."""

    label: str
    source: str
    entries: Sequence[Entry]

    @property
    def joules(self) -> float:
        """Of all accounts."""
        return sum(entry.joules for entry in self.entries)

    @property
    def output_tokens(self) -> int:
        """Generated."""
        return sum(entry.output_tokens for entry in self.entries)

    @property
    def tokens(self) -> int:
        """Of prompts, cached ones too, and output."""
        return self.output_tokens + sum(entry.prompt_tokens for entry in self.entries)

    @property
    def operational_grams(self) -> float:
        """Of the energy."""
        return sum(entry.operational_grams for entry in self.entries)

    @property
    def embodied_grams(self) -> float | None:
        """Of the hardware's making; None unless every request has its part."""
        grams = [entry.embodied_grams for entry in self.entries if entry.embodied_grams is not None]
        return sum(grams) if len(grams) == len(self.entries) else None

    @property
    def sci_grams(self) -> float | None:
        """Operational and embodied, as the SCI specification adds them."""
        embodied = self.embodied_grams
        return None if embodied is None else self.operational_grams + embodied

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Estimated and actual joules, where there are both."""
        return [
            (entry.estimated_joules, entry.joules)
            for entry in self.entries
            if entry.estimated_joules is not None and entry.joules > 0.0
        ]


def _hour(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.arrived_unix_s, UTC).strftime("%Y-%m-%d %H:00")


def _day(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.arrived_unix_s, UTC).strftime("%Y-%m-%d")


GROUPINGS: Final[Mapping[str, Callable[[Entry], str]]] = {
    "model": lambda entry: entry.model,
    "hour": _hour,
    "day": _day,
    "zone": lambda entry: entry.zone,
}
"""Hours and days are those of UTC."""


def grouped(entries: Iterable[Entry], by: str) -> list[Group]:
    """Groups in order of source and label; where a source has several, all of them at its end."""
    sources: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries:
        labels = sources.setdefault(entry.source, {})
        labels.setdefault(GROUPINGS[by](entry), []).append(entry)
    return [group for source in sorted(sources) for group in _groups(source, sources[source])]


def _groups(source: str, labels: Mapping[str, Sequence[Entry]]) -> list[Group]:
    groups = [Group(label, source, labels[label]) for label in sorted(labels)]
    if len(groups) == 1:
        return groups
    return [*groups, Group(ALL, source, [entry for group in groups for entry in group.entries])]


def by_source(entries: Iterable[Entry]) -> list[Group]:
    """One group of everything per source."""
    books: dict[str, list[Entry]] = {}
    for entry in entries:
        books.setdefault(entry.source, []).append(entry)
    return [Group(ALL, source, books[source]) for source in sorted(books)]


def _ratio(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else part / whole


def counted(values: Iterable[str]) -> str:
    """Values and how often each is there, the most frequent first."""
    return ", ".join(f"{value} {count}" for value, count in Counter(values).most_common())


def _account(name: str) -> Callable[[Group], Value]:
    return lambda group: watt_hours(sum(entry.account_joules[name] for entry in group.entries))


def _error_percent(group: Group) -> Value:
    estimated, actual = (sum(pair[side] for pair in group.pairs) for side in (0, 1))
    return 100.0 * (estimated / actual - 1.0) if actual else None


def _median_error_percent(group: Group) -> Value:
    errors = [abs(estimated / actual - 1.0) for estimated, actual in group.pairs]
    return 100.0 * median(errors) if errors else None


Columns = Mapping[str, Callable[[Group], Value]]
SECTIONS: Final[Mapping[str, Columns]] = {
    "Requests": {
        "requests": lambda group: len(group.entries),
        "prompt_tokens": lambda group: group.tokens - group.output_tokens,
        "output_tokens": lambda group: group.output_tokens,
        "quality": lambda group: counted(entry.quality for entry in group.entries),
    },
    "Energy": {
        **{f"{name}_wh": _account(name) for name in ACCOUNT_NAMES},
        "energy_wh": lambda group: watt_hours(group.joules),
        "wh_per_1000_output_tokens": lambda group: _ratio(
            watt_hours(group.joules) * THOUSAND, group.output_tokens
        ),
    },
    "Emissions, gCO2eq": {
        "operational_grams": lambda group: group.operational_grams,
        "embodied_grams": lambda group: group.embodied_grams,
        "sci_grams_per_request": lambda group: _ratio(group.sci_grams, len(group.entries)),
        "sci_grams_per_1000_tokens": lambda group: _ratio(
            None if group.sci_grams is None else group.sci_grams * THOUSAND, group.tokens
        ),
    },
    "Estimates": {
        "compared_requests": lambda group: len(group.pairs),
        "estimated_wh": lambda group: watt_hours(sum(pair[0] for pair in group.pairs)),
        "compared_wh": lambda group: watt_hours(sum(pair[1] for pair in group.pairs)),
        "error_percent": _error_percent,
        "median_error_percent": _median_error_percent,
    },
}
"""Columns by the table that they stand in; None where there is no such figure."""
