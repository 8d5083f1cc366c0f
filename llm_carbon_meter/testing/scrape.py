"""Reads the server's own account of energy: /metrics and the record of each request."""

import json
import time
import urllib.error
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from prometheus_client.parser import text_string_to_metric_families

from llm_carbon_meter.addresses import open_url
from llm_carbon_meter.service import Service

PREFIX: Final = "llm_carbon_meter_"
_ENERGY: Final = PREFIX + "energy_joules_total"
_ACCOUNTED: Final = PREFIX + "accounted_ratio"
_TIMEOUT_S: Final = 10.0


class Entry(NamedTuple):
    """Which joules: the labels of ``energy_joules_total``."""

    gpu: str
    source: str
    account: str


@dataclass(frozen=True, slots=True)
class Scrape:
    """One look at /metrics."""

    monotonic_s: float
    joules: Mapping[Entry, float]
    accounted_ratios: tuple[float, ...]
    """One per engine."""

    def total(
        self, *, gpu: str | None = None, source: str | None = None, accounts: Iterable[str] = ()
    ) -> float:
        """The joules of the entries that agree; no accounts: all of them."""
        wanted = frozenset(accounts)
        return sum(
            joules
            for entry, joules in self.joules.items()
            if gpu in (None, entry.gpu)
            and source in (None, entry.source)
            and (not wanted or entry.account in wanted)
        )

    @property
    def gpus(self) -> list[str]:
        """Every GPU that has joules."""
        return sorted({entry.gpu for entry in self.joules})

    @property
    def sources(self) -> list[str]:
        """Measured or modelled; the two are never added."""
        return sorted({entry.source for entry in self.joules})


def scrape(url: str) -> Scrape:
    """Read /metrics once."""
    text = _get(url + "/metrics").decode("utf-8")
    return parse(text, time.monotonic())


def parse(text: str, monotonic_s: float) -> Scrape:
    """The meter's part of an exposition; vLLM's own hundreds of lines are left out."""
    ours = "".join(line + "\n" for line in text.splitlines() if PREFIX in line)
    joules: dict[Entry, float] = {}
    ratios = []
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            if sample.name == _ENERGY:
                labels = sample.labels
                entry = Entry(labels["gpu"], labels["source"], labels["account"])
                # Several engines may share a GPU's label: modelled-0 of each.
                joules[entry] = joules.get(entry, 0.0) + sample.value
            elif sample.name == _ACCOUNTED:
                ratios.append(sample.value)
    return Scrape(monotonic_s, joules, tuple(ratios))


def fetch_record(url: str, response_id: str) -> dict[str, Any] | None:
    """What the server says of one request; None where it knows nothing."""
    try:
        quoted = urllib.parse.quote(response_id, safe="")
        record = json.loads(_get(f"{url}/v1/carbon/requests/{quoted}"))
    except urllib.error.HTTPError as error:
        error.close()
        return None
    return record if isinstance(record, dict) else None


class Watch:
    """Scrapes in a thread while its ``with`` block runs."""

    def __init__(self, url: str, period_s: float = 0.5) -> None:
        self.scrapes: list[Scrape] = []
        self._url = url
        self._period_s = period_s
        self._service = Service("demo-watch", self._turn, self._missed)

    def _turn(self) -> float:
        self.scrapes.append(scrape(self._url))
        return self._period_s

    def _missed(self, _error: Exception) -> float:
        """A busy server may miss one; the counters are cumulative, so nothing is lost."""
        return self._period_s

    def __enter__(self) -> Self:
        self._service.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._service.stop(_TIMEOUT_S)


def _get(url: str) -> bytes:
    with open_url(url, timeout_s=_TIMEOUT_S) as response:
        return response.read()
