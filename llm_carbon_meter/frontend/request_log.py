"""One JSON line per finished request, rotated by size; read back by ``llm-carbon-meter replay``."""

import contextlib
import logging
import logging.handlers
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import msgspec

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.columns import aligned, figure, percent
from llm_carbon_meter.exporters.headers import record_json
from llm_carbon_meter.exporters.receipts import Sign, unsigned
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.formats import versioned
from llm_carbon_meter.records import ACCOUNT_NAMES, MeterError, RequestRecord
from llm_carbon_meter.units import watt_hours

logger = logging.getLogger("llm_carbon_meter")


class RequestLog:
    """Appends records to a file.

    Args:
        path: of the current file; older ones get ``.1`` and up.
        max_bytes: size at which the file is rotated.
        files: rotated files that are kept.

    Raises:
        MeterError: the file cannot be opened.
    """

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        try:
            self._handler = logging.handlers.RotatingFileHandler(
                path, maxBytes=max_bytes, backupCount=files, encoding="utf-8"
            )
        except OSError as error:
            raise MeterError(
                f"the request log {path!r} cannot be opened: {error}; "
                "set LLM_CARBON_METER_REQUEST_LOG to a writable file"
            ) from error
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        self._handler.handleError = _raise  # type: ignore[method-assign, assignment]

    def write(self, lines: str) -> None:
        """Append records that came together, without the last end of a line; from any thread.

        The kernel has them then, so that they outlive this process; the disk has them after
        `close`, and when the kernel writes them.

        Raises:
            OSError: the disk is full or gone.
        """
        self._handler.handle(logging.LogRecord("", logging.INFO, "", 0, lines, None, None))

    def close(self) -> None:
        """Bring the file to the disk and close it."""
        if self._handler.stream is not None:
            with contextlib.suppress(OSError):  # a full disk was counted before
                os.fsync(self._handler.stream.fileno())
        self._handler.close()


def _raise(_record: logging.LogRecord) -> None:
    """Logging prints errors of its own files; ours are counted."""
    raise


def open_log(config: Config, index: int, faults: Faults) -> RequestLog | None:
    """The log of the settings; None where they want none, or it cannot be opened.

    Args:
        config: settings.
        index: of the API server: two processes must not rotate one file.
        faults: counts what went wrong.
    """
    path = config.request_log
    if not path:
        return None
    try:
        path = path if index == 0 else f"{path}-{index}"
        return RequestLog(path, config.request_log_max_bytes, config.request_log_files)
    except MeterError as error:
        faults.note("request_log", error)
        return None


VERSION: Final = 1
"""Of the form of a line; a line that names none has this one."""
FIGURES: Final = (*(f"{account}_joules" for account in ACCOUNT_NAMES), "operational_grams")
_WATT_HOURS: Final = (*(f"{account}_wh" for account in ACCOUNT_NAMES), "energy_wh")
_Line: Final = msgspec.defstruct(
    "_Line",
    [
        ("source", str),
        ("energy_joules", float),
        *((name, float, 0.0) for name in (*FIGURES, *_WATT_HOURS, "gpu_seconds", "pue")),
        *((name, int, 0) for name in ("prompt_tokens", "cached_tokens", "output_tokens", "engine")),
        *((name, list[str], []) for name in ("external_ids", "internal_ids")),
        *((name, str, "") for name in ("id", "model", "boundary", "status", "quality", "outcome")),
        *((name, str, "") for name in ("tokens_from", "intensity_source", "zone", "covers")),
        ("host_source", str, ""),
        *((name, dict[str, Any], {}) for name in ("deployment", "features")),
        *((name, dict[str, Any] | None, None) for name in ("estimate", "conditional")),
        ("provisional", dict[str, Any] | None, None),
        ("receipt", dict[str, Any] | None, None),
        *((name, float | None, None) for name in ("embodied_grams", "uncertainty")),
        *((name, float | None, None) for name in ("water_litres", "host_joules", "host_wh")),
        ("intensity_g_per_kwh", float, 0.0),
    ],
)
"""What `exporters.headers.record_json` makes of a finished request."""


def log_line(record: RequestRecord, sign: Sign = unsigned) -> str:
    """The line of a record, its version first, signed where there is a key."""
    return msgspec.json.encode(sign({"version": VERSION, **record_json(record)})).decode()


def read(path: Path) -> Iterable[Mapping[str, Any]]:
    """The records of a log, in order.

    Raises:
        MeterError: a line is not a record; names the line.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield parse(path, number, line)
    except OSError as error:
        raise MeterError(
            f"the request log {str(path)!r} cannot be read: {error.strerror}; "
            "give the file that LLM_CARBON_METER_REQUEST_LOG names"
        ) from error


def parse(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    """The record of a line.

    Raises:
        MeterError: it is none; names file and line.
    """
    try:
        record = versioned.json_object(line)
        version = record.pop("version", VERSION)
        say = partial(_say_once, path, version)
        versioned.read(record, _Line, version=version, ours=VERSION, say=say)
    except MeterError as error:
        raise MeterError(
            f"{path}, line {number}: not a record of the request log ({error}); "
            "cut the line out or give another file"
        ) from error
    return record


@cache
def _say_once(path: Path, _version: Any, text: str) -> None:
    """A log has many lines of one version."""
    logger.warning("llm_carbon_meter: %s: %s.", path, text)


def ledger_table(records: Iterable[Mapping[str, Any]]) -> str:
    """The accounts of a log's requests; measured and modelled joules are never added up."""
    books: dict[str, Counter[str]] = {}
    for record in records:
        book = books.setdefault(str(record["source"]), Counter())
        for name in (*ACCOUNT_NAMES, "energy"):
            book[name] += float(record.get(f"{name}_joules", 0.0))  # type: ignore[assignment]
        book["grams"] += float(record.get("operational_grams", 0.0))  # type: ignore[assignment]
        book["requests"] += 1
    if not books:
        return "no finished requests"
    return "\n\n".join(_book_text(source, book) for source, book in books.items())


def _book_text(source: str, book: Counter[str]) -> str:
    total = book["energy"]
    rows = [
        [name, *_energy(book[name]), percent(book[name] / total if total else 0.0)]
        for name in ACCOUNT_NAMES
    ]
    rows.append(["total", *_energy(total), ""])
    rows.append(["emissions", figure(book["grams"]), "gCO2eq", "", "", ""])
    return f"{book['requests']} requests, {source}\n{aligned(rows, left=(0, 2, 4))}"


def _energy(joules: float) -> tuple[str, ...]:
    return figure(joules), "J", figure(watt_hours(joules)), "Wh"
