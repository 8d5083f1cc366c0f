"""Tokens per second of two real servers of an engine, one metered and one not, asked in turn."""

import contextlib
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llm_carbon_meter.progress import progress
from llm_carbon_meter.testing.servers import Server, TransformersServer, VllmServer
from llm_carbon_meter.testing.throughput import by_turns, tokens_per_s

STARTS, PAIRS = 6, 20


def measure(model: Path) -> Mapping[str, float]:
    """vLLM's."""
    return {"tokens_ratio": _ratio(VllmServer, model)}


def measure_transformers(model: Path) -> Mapping[str, float]:
    """That of ``transformers serve`` with continuous batching."""
    return {"transformers_tokens_ratio": _ratio(TransformersServer, model)}


def _ratio(kind: type[VllmServer | TransformersServer], model: Path) -> float:
    """Median of with / without over short rounds in turn, of servers that were started anew often.

    Short rounds, because the speed of a shared machine drifts within seconds; new servers, because
    two of the same kind differ by some percent for as long as they live.
    """
    medians = []
    for start in progress(range(STARTS), desc="throughput", unit="start"):
        ratios = _ratios(kind, model, metered_first=bool(start % 2))
        medians.append(statistics.median(ratios))
    shown = " ".join(f"{each:.3f}" for each in sorted(medians))
    print(f"with / without, medians of {PAIRS} pairs for each start of two servers: {shown}")
    return statistics.median(medians)


def _ratios(
    kind: type[VllmServer | TransformersServer], model: Path, *, metered_first: bool
) -> list[float]:
    """Of two new servers; who is asked first alternates."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            metered: stack.enter_context(_server(kind, model, folder, metered))
            for metered in (metered_first, not metered_first)
        }
        for server in servers.values():
            tokens_per_s(server)  # warm-up
        ratios = []
        for pair in range(PAIRS):
            speed = by_turns(servers, pair)
            ratios.append(speed[True] / speed[False])
    return ratios


def _server(
    kind: type[VllmServer | TransformersServer], model: Path, folder: Path, metered: bool
) -> Server:
    return kind(
        model,
        log=folder / f"{metered}.log",
        environment={
            "LLM_CARBON_METER_ENABLED": str(int(metered)),
            "LLM_CARBON_METER_POWER": "modelled",
            # transformers' answers always have our headers; what they wait for is no cost of steps.
            "LLM_CARBON_METER_PROVISIONAL_WAIT_S": "0",
        },
    )
