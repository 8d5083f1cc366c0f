"""Whether the sums are right after all that happened."""

import contextlib
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from llm_carbon_meter.frontend.request_log import read, rotated_files
from tests.support.servers.metered import KEY, Metered
from tests.support.waiting import eventually

from .clients import SECRET, Clients
from .watching import Watch

MOST_MEGABYTES: Final = 2.0
"""That a process may grow by in a minute: vLLM's server grows by 1.1 without the meter, too."""
MOST_DESCRIPTORS: Final = 32
"""More at the end than after the warm-up: some connections are kept open, a leak is thousands."""
BROKEN_BY_A_RESTART: Final = 8
"""Requests of each client of the sidecar: the one in flight, and those sent meanwhile."""


class Line(NamedTuple):
    """One line of the summary."""

    what: str
    seen: str
    holds: bool


class Sent(NamedTuple):
    """Both groups of clients."""

    server: Clients
    sidecar: Clients
    """Its requests go to the same server."""


def verdict(
    metered: Metered, sidecar_url: str, sent: Sent, watch: Watch, restarts: int
) -> Iterator[Line]:
    """Line by line, once the last figures have come."""
    yield Line("requests sent", f"{sent.server.sent.total()}", sent.server.sent.total() > 0)
    yield Line("failed", _words(sent.server.failed.items()), not sent.server.failed)
    broken = sent.sidecar.failed
    yield Line(
        "failed where the sidecar's server was away",
        _words(broken.items()),
        broken.total() <= restarts * BROKEN_BY_A_RESTART * 4,
    )
    yield from _records(metered, sent)
    ratios = {"server": _ratio(metered.url), "sidecar": _ratio(sidecar_url)}
    for name, ratio in ratios.items():
        yield Line(f"accounts / counter, {name}", f"1 {ratio - 1:+.1e}", abs(ratio - 1) < 1e-9)
    for name, (megabytes, descriptors) in watch.grown().items():
        yield Line(
            f"{name} grew",
            f"{megabytes:+.2f} MB/min, {descriptors:+d} file descriptors",
            megabytes < MOST_MEGABYTES and descriptors < MOST_DESCRIPTORS,
        )
    files = [path for path in metered.log.parent.rglob("*") if path.is_file()]
    telling = [path.name for path in files if _tells(path)]
    yield Line("files with words of clients or the key", _words(telling), not telling)


def _records(metered: Metered, sent: Sent) -> Iterator[Line]:
    served = sent.server.served + sent.sidecar.served
    with contextlib.suppress(AssertionError):
        eventually(lambda: _recorded(metered) >= served, "a record of each request", 90)
    recorded, lost = _recorded(metered), _lost(metered)
    # A request that broke on its way may have reached the server, or not.
    most = served + sent.sidecar.failed.total()
    yield Line("served / recorded", f"{served} / {recorded}", served <= recorded <= most)
    logs = [*rotated_files(metered.request_log), metered.request_log]
    logged = [record["id"] for path in logs for record in read(path)]
    once = len(set(logged)) == len(logged)
    yield Line(
        "lines in the log, each of its own request; counted as lost",
        f"{len(logged)}, {lost}",
        once and recorded - lost <= len(logged) <= recorded,
    )


def _recorded(metered: Metered) -> int:
    return int(metered.metric("llm_carbon_meter_requests_total"))


def _lost(metered: Metered) -> int:
    return int(metered.metric("llm_carbon_meter_errors_total", where="request_log"))


def _ratio(url: str) -> float:
    request = urllib.request.Request(url + "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    (ratio,) = (s.value for s in samples if s.name == "llm_carbon_meter_accounted_ratio")
    return float(ratio)


def _tells(path: Path) -> bool:
    text = path.read_bytes()
    return SECRET.encode() in text or KEY.encode() in text


def _words(found: Iterable[object]) -> str:
    return ", ".join(map(str, found)) or "none"
