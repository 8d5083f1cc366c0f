"""One JSON line per finished request, rotated by size and age, the older files packed.

Read back by ``llm-carbon-meter replay``, ``report`` and ``export``.
"""

import contextlib
import gzip
import logging
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.columns import aligned, figure, percent
from llm_carbon_meter.exporters.log_line import COLUMNS, REQUEST, VERSION, Line, from_version_1
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.formats import versioned
from llm_carbon_meter.records import ACCOUNT_NAMES, MeterError
from llm_carbon_meter.units import watt_hours

logger = logging.getLogger("llm_carbon_meter")
ADVICE: Final = "give the file that LLM_CARBON_METER_REQUEST_LOG names"
PACKED: Final = ".gz"
PACKING: Final = ".part"
PACK_S: Final = 3.0
"""For which the end of a server waits for the packing of a file; the next start goes on with it."""
ROTATED: Final = re.compile(r"\.(?:(?P<number>\d{1,4})|(?P<time>\d{8}T\d{6}\.\d{6}Z))(?:\.gz)?$")
"""What follows the log's name; numbers are those of an older version, 1 the latest."""


class RequestLog:
    """Appends lines to a file; of two rotated ones the name with the later time is the later.

    Args:
        path: of the current file; an older one gets the time of its end, and is packed by gzip.
        max_bytes: size at which the file is rotated.
        max_age_s: the file is rotated at each multiple of it since 1970: 86400 is midnight, UTC.
        files: rotated files that are kept.

    Raises:
        MeterError: the file cannot be opened.
    """

    def __init__(self, path: str, max_bytes: int, max_age_s: float, files: int) -> None:
        self._path = Path(path)
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._files = files
        self._writing = threading.Lock()
        self._packing = threading.Thread(target=self._tidy, name="request-log", daemon=True)
        try:
            self._open()
        except OSError as error:
            raise MeterError(
                f"the request log {path!r} cannot be opened: {error}; "
                "set LLM_CARBON_METER_REQUEST_LOG to a writable file"
            ) from error
        self._packing.start()

    def write(self, lines: str) -> None:
        """Append lines that came together, without the last end of a line; from any thread.

        The kernel has them then, so that they outlive this process; the disk has them after
        `close`, and when the kernel writes them.

        Raises:
            OSError: the disk is full or gone.
        """
        text = lines.encode() + b"\n"
        with self._writing:
            if self._size and self._is_due(len(text)):
                self._rotate()
            self._append(text)

    def close(self) -> None:
        """Bring the file to the disk and close it."""
        with self._writing:
            if self._size:
                os.fsync(self._file.fileno())
            self._file.close()
        self._packing.join(PACK_S)
        self._tidy_soon()
        self._packing.join(PACK_S)

    def _open(self) -> None:
        self._file: IO[bytes] = self._path.open("ab", buffering=0)
        status = os.fstat(self._file.fileno())
        self._size = status.st_size if self._path.is_file() else 0
        self._written_s = status.st_mtime
        if self._size and not _ends_a_line(self._path):  # its writer was killed
            self._append(b"\n")

    def _append(self, text: bytes) -> None:
        rest, before = memoryview(text), self._size
        try:
            while rest:
                written = self._file.write(rest)
                self._size += written
                rest = rest[written:]
        except OSError:  # half a line would spoil the next one
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), before)
                self._size = before
            raise
        self._written_s = time.time()

    def _is_due(self, more: int) -> bool:
        age = self._max_age_s
        return self._size + more > self._max_bytes or time.time() // age > self._written_s // age

    def _rotate(self) -> None:
        """Where no other file can be opened, the old one is gone on with at the next time."""
        old = self._file
        if self._path.exists():
            self._set_aside()
        self._open()
        old.close()
        self._tidy_soon()

    def _set_aside(self) -> None:
        ended = datetime.fromtimestamp(self._written_s, UTC)
        while any((target := _named(self._path, ended)).parent.glob(f"{target.name}*")):
            ended += timedelta(microseconds=1)
        self._path.rename(target)

    def _tidy_soon(self) -> None:
        """On a thread; where one is at it, the next rotation or the end goes on with the rest."""
        if not self._packing.is_alive():
            self._packing = threading.Thread(target=self._tidy, name="request-log", daemon=True)
            self._packing.start()

    def _tidy(self) -> None:
        """Pack what is not packed, and remove what is too old."""
        try:
            rotated = rotated_files(self._path)
            for file in rotated[: -self._files]:
                file.unlink(missing_ok=True)
            for file in rotated[-self._files :]:
                if file.suffix != PACKED:
                    _pack(file)
        except OSError as error:
            logger.warning(
                "llm_carbon_meter: older files of the request log stay as they are: %s.", error
            )


def _named(path: Path, ended: datetime) -> Path:
    return path.with_name(f"{path.name}.{ended:%Y%m%dT%H%M%S.%f}Z")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _pack(file: Path) -> None:
    """Readers find one of the two whenever they look.

    Raises:
        OSError: the disk is full, or the like; the file stays as it is.
    """
    part, packed = (file.with_name(file.name + suffix) for suffix in (PACKING, PACKED))
    try:
        with file.open("rb") as plain, gzip.open(part, "wb", compresslevel=6) as target:
            shutil.copyfileobj(plain, target, 1 << 20)
        with part.open("rb") as whole:
            os.fsync(whole.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.rename(packed)
    file.unlink()


def rotated_files(path: Path) -> list[Path]:
    """The rotated files of a log, oldest first; of one that is being packed only the plain one."""
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    found = {
        file: match
        for file in siblings
        if file.name.startswith(path.name)
        and (match := ROTATED.fullmatch(file.name, len(path.name)))
    }
    once = [file for file in found if file.suffix != PACKED or file.with_suffix("") not in found]
    return sorted(once, key=lambda file: (-int(found[file]["number"] or 0), file.name))


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
        return RequestLog(
            path if index == 0 else f"{path}-{index}",
            config.request_log_max_bytes,
            config.request_log_max_age_s,
            config.request_log_files,
        )
    except MeterError as error:
        faults.note("request_log", error)
        return None


_TYPES: Final[Mapping[type, Any]] = {list: list[str], dict: dict[str, Any]}
_Line: Final = msgspec.defstruct(
    "_Line",
    [
        ("source", str),
        ("energy_joules", float),
        *(
            (column.name, _TYPES.get(column.kind, column.kind) | None, None)
            for column in COLUMNS
            if column.name not in ("source", "energy_joules")
        ),
    ],
)
"""A line of this version."""


def text_of(line: Line) -> str:
    """A line as JSON, its version first."""
    return msgspec.json.encode(line).decode()


def opened(path: Path) -> IO[bytes]:
    """A file of a log, to be read; packed ones too.

    Raises:
        OSError: it cannot be opened.
    """
    open_file = gzip.open if path.suffix == PACKED else cast(Callable[..., IO[bytes]], open)
    return cast(IO[bytes], open_file(path, "rb"))


def read(path: Path) -> Iterable[Mapping[str, Any]]:
    """The requests of a file of a log, in order, in the form of this version.

    Raises:
        MeterError: a line is not a record; names the line.
    """
    try:
        with opened(path) as lines:
            for number, line in enumerate(lines, 1):
                record = parse(path, number, line)
                if record.get("kind", REQUEST) == REQUEST:
                    yield record
    except (OSError, EOFError) as error:  # a packed file may be cut
        reason = getattr(error, "strerror", None) or error
        raise MeterError(
            f"the request log {str(path)!r} cannot be read: {reason}; {ADVICE}"
        ) from error


def parse(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    """The record of a line, in the form of this version.

    Raises:
        MeterError: it is none; names file and line.
    """
    try:
        record = versioned.json_object(line)
        version = record.get("version", 1)
        if version == 1:
            record, version = _upgraded(record), VERSION
        say = partial(_say_once, path, version)
        versioned.read(record, _Line, version=version, ours=VERSION, say=say)
    except MeterError as error:
        raise MeterError(
            f"{path}, line {number}: not a record of the request log ({error}); "
            "cut the line out or give another file"
        ) from error
    return record


def _upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return from_version_1(record)
    except (AttributeError, TypeError) as error:
        raise MeterError(f"its features or estimates are no objects: {error}") from error


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
