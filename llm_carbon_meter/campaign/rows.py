"""The file of a campaign: a CSV line per repetition, written at once, never changed afterwards."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.training.data.campaign_columns import OCCASION

Row = Mapping[str, Any]
"""By column; as text where it was read or written."""

COLUMNS: Final = (
    # what was run
    *("model", "changes", "dtype", "quantisation", "tensor_parallel", "weights"),
    *("batch", "prompt_tokens", "output_tokens", "phase"),
    # where and with what
    *("gpu", "engine", "engine_version", "torch_version", "driver", "power_limit_watts"),
    # what was seen
    *("status", "source", "quality", "joules", "seconds", "batches", "joules_per_request"),
    *("idle_watts_before", "idle_watts_after", "sm_clock_mhz_lowest", "temperature_c_highest"),
    *("slowed_by", "repetition", "utc", "note"),
)


class Status(StrEnum):
    """Of a repetition."""

    OK = "ok"
    OUT_OF_MEMORY = "out_of_memory"
    """The batch never fits; the campaign does not try it again."""
    THROTTLED = "throttled"
    """Heat or the power supply slowed the GPU down; joules are those of a slow GPU."""
    UNSTABLE = "unstable"
    """Far from the repetitions before."""
    FAILED = "failed"
    """The engine raised; tried again when the campaign goes on."""


class Measurements:
    """The rows of a file, old and new.

    Args:
        path: of a CSV file that is there, or will be.

    Raises:
        ConfigError: the file has other columns, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise ConfigError(f"--out {path}: {error.strerror}; choose another file") from error
        self.rows: list[Row] = list(self._read())

    def _read(self) -> Iterator[Row]:
        self._file.seek(0)
        text = self._file.read()
        whole = text.rfind(b"\n") + 1
        reader = csv.DictReader(io.StringIO(text[:whole].decode("utf-8", "replace"), newline=""))
        if not text:
            self._write(COLUMNS)
        elif tuple(reader.fieldnames or ()) != COLUMNS:
            self.close()
            raise ConfigError(
                f"--out {self.path}: it has other columns than a campaign of this version; "
                "choose another file"
            )
        else:
            # Whoever was cut off while writing left half a line.
            self._file.truncate(whole)
        yield from reader

    def append(self, row: Row) -> None:
        """Write a row; it survives whatever happens next."""
        values = {name: value for name, value in row.items() if value is not None}
        cells = [str(values.get(column, "")) for column in COLUMNS]
        self.rows.append(dict(zip(COLUMNS, cells, strict=True)))
        self._write(cells)

    def _write(self, cells: Sequence[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self._file.write(line.getvalue().encode("utf-8"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def good(self) -> Counter[tuple[str, ...]]:
        """Good repetitions of each occasion."""
        return Counter(occasion(row) for row in self.rows if row["status"] == Status.OK)

    def hopeless(self) -> set[tuple[str, ...]]:
        """Occasions that do not fit into memory."""
        return {occasion(row) for row in self.rows if row["status"] == Status.OUT_OF_MEMORY}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def occasion(row: Row) -> tuple[str, ...]:
    """What a row is a repetition of."""
    return tuple(str(row.get(column, "")) for column in OCCASION)


def write_parquet(path: Path) -> Path | None:
    """The CSV file's rows beside it as Parquet; None where pyarrow is not installed."""
    try:
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ImportError:
        return None
    target = path.with_suffix(".parquet")
    parquet.write_table(arrow_csv.read_csv(path), target)
    return target
