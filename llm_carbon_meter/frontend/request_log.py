"""One JSON line per finished request, rotated by size; read back by ``llm-carbon-meter replay``."""

import json
import logging
import logging.handlers
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter.exporters.columns import aligned, figure, percent
from llm_carbon_meter.records import ACCOUNT_NAMES, MeterError
from llm_carbon_meter.units import watt_hours


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

    def write(self, text: str) -> None:
        """Append one record.

        Raises:
            OSError: the disk is full or gone.
        """
        self._handler.emit(logging.LogRecord("", logging.INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


def _raise(_record: logging.LogRecord) -> None:
    """Logging prints errors of its own files; ours are counted."""
    raise


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
        raise MeterError(f"the request log {str(path)!r} cannot be read: {error}") from error


def parse(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    """The record of a line.

    Raises:
        MeterError: it is none; names file and line.
    """
    try:
        record = json.loads(line)
        str(record["source"])
        for name in ("energy_joules", *FIGURES):
            float(record[name] if name == "energy_joules" else record.get(name, 0.0))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise MeterError(
            f"{path}, line {number}: not a record of the request log ({error!r}); "
            "cut the line out or give another file"
        ) from error
    return record  # type: ignore[no-any-return]


FIGURES: Final = (*(f"{account}_joules" for account in ACCOUNT_NAMES), "operational_grams")


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
