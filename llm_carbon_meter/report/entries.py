"""Lines of a request log, its rotated files included, as entries that can be added up."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter.exporters.log_line import REQUEST
from llm_carbon_meter.frontend.request_log import parse
from llm_carbon_meter.records import ACCOUNT_NAMES, MeterError

NOT_SAID: Final = "not said"
"""Stands where an older version logged nothing."""
MOST: Final = 1e12
"""Joules or grams of a request, beyond all that a data centre could spend on one."""
MOST_TOKENS: Final = 1_000_000_000
MOST_CHARACTERS: Final = 100
"""Of a name."""
LAST_UNIX_S: Final = datetime(2100, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished request."""

    arrived_unix_s: float
    model: str
    zone: str
    source: str
    quality: str
    prompt_tokens: int
    output_tokens: int
    joules: float
    account_joules: Mapping[str, float]
    """By the names of `ACCOUNT_NAMES`; they add up to the joules."""
    operational_grams: float
    embodied_grams: float | None
    """None where the settings left it out, or an older version logged the request."""
    covers: str
    intensity_source: str
    estimated_joules: float | None
    """As clients were told; None without an estimate, and for one of a whole facility."""


@dataclass(frozen=True, slots=True)
class Log:
    """What the files of a log hold."""

    files: Sequence[Path]
    """Oldest first."""
    entries: Sequence[Entry]
    broken: Sequence[str]
    """What is wrong, file and number of the line first."""


@dataclass(frozen=True, slots=True)
class Period:
    """From `since` until before `until`, in seconds of Unix time."""

    since_s: float = -math.inf
    until_s: float = math.inf

    def __str__(self) -> str:
        sides = {"from": self.since_s, "until before": self.until_s}
        said = [f"{word} {iso(at)}" for word, at in sides.items() if math.isfinite(at)]
        return " ".join(said) or "whole log"


def iso(unix_s: float) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rotated_files(path: Path) -> list[Path]:
    """``path.2``, ``path.1`` and ``path``: those that are there, oldest first.

    Raises:
        MeterError: there is none.
    """
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    numbers = [
        int(file.suffix[1:])
        for file in siblings
        if file.stem == path.name and file.suffix[1:].isdecimal()
    ]
    older = [path.with_name(f"{path.name}.{number}") for number in sorted(numbers, reverse=True)]
    files = [*older, *([path] if path.exists() else [])]
    if not files:
        raise MeterError(
            f"there is no request log {str(path)!r}, nor an older {path.name}.1 beside it; "
            "give the file that LLM_CARBON_METER_REQUEST_LOG names"
        )
    return files


def read_log(path: Path) -> Log:
    """All entries that can be read, with a word about every line that cannot.

    Raises:
        MeterError: a file cannot be read.
    """
    files, broken = rotated_files(path), list[str]()
    return Log(files, [entry for file in files for entry in _entries(file, broken)], broken)


def _entries(file: Path, broken: list[str]) -> Iterator[Entry]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = parse(file, number, line)
                    if record.get("kind", REQUEST) == REQUEST:
                        yield entry_of(record)
                except MeterError as error:
                    broken.append(str(error))
                except ValueError as error:
                    broken.append(f"{file}, line {number}: no use for a report: {error}")
                except (KeyError, TypeError, AttributeError) as error:
                    broken.append(f"{file}, line {number}: no use for a report ({error!r})")
    except OSError as error:
        raise MeterError(
            f"the request log {str(file)!r} cannot be read: {error}; give a file of JSON lines"
        ) from error


def entry_of(record: Mapping[str, Any]) -> Entry:
    """A record as an entry; what older versions did not log is None or `NOT_SAID`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: a field is missing or no figure.
    """
    return Entry(
        arrived_unix_s=_within(record, "arrived_unix_s", 0.0, LAST_UNIX_S),
        model=_word(record, "model"),
        zone=_word(record, "zone"),
        source=_word(record, "source"),
        quality=_word(record, "quality"),
        prompt_tokens=_tokens(record, "prompt_tokens"),
        output_tokens=_tokens(record, "output_tokens"),
        joules=_figure(record, "energy_joules"),
        account_joules={name: _figure(record, f"{name}_joules", 0.0) for name in ACCOUNT_NAMES},
        operational_grams=_figure(record, "operational_grams", 0.0),
        embodied_grams=_figure(record, "embodied_grams")
        if _has(record, "embodied_grams")
        else None,
        covers=_word(record, "covers"),
        intensity_source=_word(record, "intensity_source"),
        estimated_joules=_estimated(record),
    )


def _has(record: Mapping[str, Any], name: str) -> bool:
    return record.get(name) is not None


def _word(record: Mapping[str, Any], name: str) -> str:
    """A text that fits a cell: of a bounded length, and without characters that move a cursor."""
    text = str(record.get(name) or NOT_SAID)
    shown = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"
    return "".join(character if character.isprintable() else "\ufffd" for character in shown)


def _tokens(record: Mapping[str, Any], name: str) -> int:
    return int(_within(record, name, 0, MOST_TOKENS))


def _figure(record: Mapping[str, Any], name: str, *default: float) -> float:
    """Joules or grams; as many as asked for where the record has none."""
    return float(_within(record, name, -MOST, MOST, *default))


def _within(
    record: Mapping[str, Any], name: str, low: float, high: float, *default: float
) -> float:
    value: Any = record.get(name, *default) if default else record[name]
    figure: float = value if isinstance(value, int) else float(value)
    if not low <= figure <= high:  # also refuses nan
        raise ValueError(f"{name} is {figure}; expected a number from {low:g} to {high:g}")
    return figure


def _estimated(record: Mapping[str, Any]) -> float | None:
    name = "estimate_calibrated_joules"
    if record.get("estimate_facility") or not _has(record, name):
        return None
    return _figure(record, name)


def within(log: Log, period: Period) -> Log:
    """The log without the requests that came at other times.

    Raises:
        MeterError: nothing is left.
    """
    inside = [
        entry for entry in log.entries if period.since_s <= entry.arrived_unix_s < period.until_s
    ]
    if inside:
        return replace(log, entries=inside)
    if log.entries:
        raise MeterError(
            f"no request came in the period asked for ({period}); the log's {len(log.entries)} "
            f"requests came {span(log.entries)}: give another --since or --until"
        )
    raise MeterError(
        f"{log.files[-1]} holds no finished request and {len(log.broken)} broken lines"
        + "".join(f"; {text}" for text in log.broken[:1])
        + "; give a log that a metered server has written to"
    )


def span(entries: Iterable[Entry]) -> str:
    """When the first and the last came."""
    times = [entry.arrived_unix_s for entry in entries]
    return f"from {iso(min(times))} to {iso(max(times))}"
