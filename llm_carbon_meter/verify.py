"""The verb ``verify``: checks the receipts of one record, or of every line of a request log."""

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_carbon_meter.exporters import receipts
from llm_carbon_meter.formats import versioned
from llm_carbon_meter.records import MeterError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("file", type=Path, help="a record, or a request log; may end with .gz")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="PUBLIC.pem", help="of whoever signed"
    )


def run(options: argparse.Namespace) -> int:
    """Print what is wrong with which line, then the counts; 1 where a record does not verify."""
    key, verified, failed = receipts.public_key(options.key), 0, 0
    for number, text in _records(options.file):
        problem = _problem(text, key)
        if problem:
            failed += 1
            print(f"{options.file}, line {number}: {problem}")
        else:
            verified += 1
    if not verified + failed:
        raise MeterError(f"{options.file} has no record; give a record or a request log")
    print(f"{verified} verified, {failed} failed, key {receipts.key_id(key)}")
    return 1 if failed else 0


def _problem(text: bytes, key: "Ed25519PublicKey") -> str:
    """Why a record does not verify; empty where it does."""
    try:
        json.loads(text, object_pairs_hook=_once)
        receipts.verify(versioned.json_object(text), key)
    except (MeterError, ValueError, RecursionError) as error:
        return str(error)
    return ""


def _once(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    """An object each of whose names stands once: readers differ in which of two they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in it")
    return found


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """The texts of a file's records, each with the number of its first line.

    A record that a person has laid out over several lines begins with a line that holds its
    opening brace alone.

    Raises:
        MeterError: the file cannot be read.
    """
    opened = gzip.open if path.suffix == ".gz" else Path.open
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1 and line.strip() == b"{":
                    yield number, line + lines.read()
                elif line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        raise MeterError(f"{path} cannot be read: {error}") from error
