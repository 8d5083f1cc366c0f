"""Which files an address means: a log with its rotated and sibling files, a folder, S3."""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from llm_carbon_meter.frontend.request_log import rotated_files
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.periods import Period

CLICKHOUSE: Final = re.compile(r"clickhouses?://")
REMOTE: Final = re.compile(r"(?:s3|gs|gcs|r2)://")
PARQUET: Final = ".parquet"
LOG: Final = re.compile(
    r"\.(?:jsonl|ndjson)(?:-\d+)?(?:\.(?:\d{1,4}|\d{8}T\d{6}\.\d{6}Z))?(?:\.gz)?$"
)
"""How a log's files end, in a folder, which may hold other logs."""


@dataclass(frozen=True, slots=True)
class Files:
    """What is to be read, oldest first as far as their names tell."""

    json: Sequence[str]
    """Paths, addresses or patterns of JSON lines, packed ones too."""
    parquet: Sequence[str]
    name: str = ""
    """Of where they are from, if they are a copy."""

    def __str__(self) -> str:
        return self.name or ", ".join([*self.json, *self.parquet])

    @property
    def may_repeat(self) -> bool:
        """Whether some may be a copy of others: an export beside its log."""
        return bool(self.json and self.parquet)

    @property
    def are_remote(self) -> bool:
        """Whether one of them is in an object store."""
        return any(REMOTE.match(name) for name in (*self.json, *self.parquet))


@contextmanager
def found_files(address: str, period: Period) -> Iterator[Files]:
    """What an address means; a copy of a table's lines is gone after it.

    Args:
        address: as of `files_of`, or of a table of ClickHouse.
        period: of the lines.

    Raises:
        MeterError: there is nothing.
    """
    if not CLICKHOUSE.match(address):
        yield files_of(address)
        return
    from llm_carbon_meter.report.clickhouse import fetch  # httpx takes a while

    with TemporaryDirectory(prefix="llm-carbon-meter-") as folder:
        file = Path(folder, f"lines{PARQUET}")
        fetch(address, period, file)
        yield Files((), (str(file),), name="a table of ClickHouse")


def files_of(address: str) -> Files:
    """What an address means.

    Args:
        address: a file of a request log: its rotated files, and the logs of the server's other
            processes, are read with it; a folder; a pattern such as ``logs/*.gz``; or ``s3://…``.

    Raises:
        MeterError: there is nothing.
    """
    if REMOTE.match(address):
        name = address if Path(address).suffix else f"{address.rstrip('/')}/**/*{PARQUET}"
        return Files((), (name,)) if name.endswith(PARQUET) else Files((name,), ())
    path = Path(address)
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _is_ours(file, path)]
    elif glob.has_magic(address) and not path.exists():
        found = [Path(name) for name in sorted(glob.glob(address, recursive=True))]
    else:
        found = [file for log in [path, *_siblings(path)] for file in _log_files(log)]
    if not found:
        raise MeterError(
            f"there is no request log {address!r}, nor an older one beside it, nor a folder with "
            "some; give the file that LLM_CARBON_METER_REQUEST_LOG names, a folder or a pattern"
        )
    packed_once = [file for file in found if not (file.suffix == ".gz" and _plain(file) in found)]
    return Files(
        [str(file) for file in packed_once if file.suffix != PARQUET],
        [str(file) for file in packed_once if file.suffix == PARQUET],
    )


def _is_ours(file: Path, folder: Path) -> bool:
    """Not of a hidden folder, which an export that is at work has."""
    if any(part.startswith(".") for part in file.relative_to(folder).parts[:-1]):
        return False
    return file.is_file() and (file.suffix == PARQUET or bool(LOG.search(file.name)))


def _plain(file: Path) -> Path:
    """The file that is being packed, if it is still there."""
    return file.with_suffix("")


def _siblings(path: Path) -> list[Path]:
    """The logs of a server's other processes: ``path-1``, ``path-2``, …, by their numbers."""
    folder = path.parent
    pattern = re.compile(re.escape(path.name) + r"-(\d{1,4})(?=\.|$)")
    names = [found for file in _inside(folder) if (found := pattern.match(file.name))]
    numbers = sorted({int(name[1]) for name in names})
    return [path.with_name(f"{path.name}-{number}") for number in numbers]


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _log_files(log: Path) -> list[Path]:
    return [*rotated_files(log), *([log] if log.exists() else [])]
