"""The file of a GPU day: a JSON line per fact, written at once, so that a killed run loses one."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_carbon_meter.records import MeterError

Row = Mapping[str, Any]
NAME = "rows.jsonl"
MEASURED, SIMULATED = "measured", "simulated"
"""On a GPU; on the stub library of NVML, where no figure is of a GPU."""
HOST, ENDED = "host", "ended"
"""Kinds of rows: what was measured on, and how a part ended."""


class DayError(MeterError):
    """What was tried, what was found, and what to do."""


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Rows of a file, and what of it could not be read; neither where there is no file."""
    rows: list[Row] = []
    remarks: list[str] = []
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({**row, "part": row["part"], "kind": row["kind"]})
        except (ValueError, KeyError, TypeError):
            remarks.append(f"line {number} of {path.name} cannot be read and is left out")
    return rows, remarks


def of_kind(rows: list[Row], part: str, kind: str) -> Iterator[Row]:
    """A part's rows of a kind, in the order in which they were written."""
    return (row for row in rows if (row["part"], row["kind"]) == (part, kind))


class RowsFile:
    """Rows of a folder, old and new; several threads may add.

    Args:
        folder: of the day.
        source: of all rows: measured or simulated.

    Raises:
        DayError: the folder cannot be written, or has rows of the other source.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise DayError(
                f"{path} cannot be written ({error.strerror}): name another OUT"
            ) from error
        self.rows, self.remarks = read_rows(path)
        if others := {str(row.get("source")) for row in self.rows} - {source}:
            self.close()
            raise DayError(
                f"{folder} has {', '.join(sorted(others))} rows, and this run is {source}: name "
                "another OUT, the two are never mixed"
            )
        self._end_last_line(path)

    def _end_last_line(self, path: Path) -> None:
        """Whoever was cut off while writing left half a line."""
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._write("\n")

    def add(self, part: str, kind: str, key: str = "", **values: Any) -> Row:
        """Write a row; it survives whatever happens next."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"part": part, "kind": kind, "key": key, "source": self._source, "utc": when}
        row = {**about, **values}
        with self._lock:
            self.rows.append(row)
            self._write(json.dumps(row) + "\n")
        return row

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())

    def of(self, part: str, kind: str) -> list[Row]:
        """A part's rows of a kind."""
        return list(of_kind(self.rows, part, kind))

    def has(self, part: str, kind: str, key: str) -> bool:
        """Whether a row is there."""
        return any(row["key"] == key for row in self.of(part, kind))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
