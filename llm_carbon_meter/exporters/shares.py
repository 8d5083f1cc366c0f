"""Counters of finished exchanges by whose they are: tenants, adapters.

Counting is a matter of a microsecond, so it adds up in this process what `Shares.tell` then counts.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from llm_carbon_meter.records import Cost, RequestEnergy

FIGURES: Final = {
    "energy_joules_total": "Energy of finished exchanges by {}",
    "emissions_grams_total": "Operational gCO2eq of finished exchanges by {}",
    "tokens_total": "Tokens of finished exchanges by {}, of prompts and answers",
    "requests_total": "Finished exchanges by {}",
}
COST: Final = "cost_total"
COST_TEXT: Final = "Money for finished exchanges by {}"


class Counted(Protocol):
    """A counter of prometheus_client."""

    def labels(self, *values: str) -> Any:
        """One series."""
        ...


class Share(NamedTuple):
    """Labels of one owner."""

    model_name: str
    engine: str
    name: str
    source: str


class Shares:
    """What belongs to whom; safe from any thread.

    Args:
        counters: by the names of `FIGURES`, with the labels of `Share`.
        cost: with labels of kind and currency behind them; None where nothing has a price.
    """

    def __init__(self, counters: Mapping[str, Counted], cost: Counted | None) -> None:
        self._counters = tuple(counters.values())
        self._cost = cost
        self._lock = threading.Lock()
        self._shown: set[Share] = set()
        self._waiting: dict[Share, list[float]] = {}
        self._costs: dict[tuple[Share, str, str], float] = {}

    def begin(self, shares: Iterable[Share]) -> None:
        """Show owners before their first exchange: Prometheus sees no increase from nothing."""
        for share in set(shares) - self._shown:
            self._shown.add(share)
            for counter in self._counters:
                counter.labels(*share)

    def add(self, share: Share, energy: RequestEnergy, cost: Cost | None) -> None:
        """An exchange is finished."""
        with self._lock:
            sums = self._waiting.get(share)
            if sums is None:
                sums = self._waiting[share] = [0.0] * len(FIGURES)
            sums[0] += energy.joules
            sums[1] += energy.operational_grams
            sums[2] += energy.prompt_tokens + energy.output_tokens
            sums[3] += 1
            if cost is not None:
                for kind, money in cost.by_kind.items():
                    key = share, kind, cost.currency
                    self._costs[key] = self._costs.get(key, 0.0) + money

    def tell(self) -> None:
        """Count what was added since."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            costs, self._costs = self._costs, {}
        for share, sums in waiting.items():
            for counter, value in zip(self._counters, sums, strict=True):
                counter.labels(*share).inc(value)
        for (share, kind, currency), money in costs.items():
            if self._cost is not None:
                self._cost.labels(*share, kind, currency).inc(money)
