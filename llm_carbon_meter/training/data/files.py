"""The accepted files of the training data: which ones, and that they are what they were.

``manifest.json`` holds the SHA-256 of each; nothing else of a data folder is ever read.
"""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from llm_carbon_meter.records import ConfigError

Manifest = Mapping[str, str]
"""Path below the data folder -> SHA-256 in hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Rows (or one whole file) that are not used, and why."""

    source: str
    reason: str
    count: int


@cache
def manifest() -> Manifest:
    """The files that this version of the package was made with."""
    text = (resources.files(__package__) / "manifest.json").read_text("utf-8")
    accepted: Manifest = json.loads(text)
    return accepted


def require(folder: Path, paths: Iterable[str]) -> None:
    """Check that files are there.

    Raises:
        ConfigError: names every one that is missing.
    """
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing:
        raise ConfigError(
            f"the data folder {folder} lacks {', '.join(missing)}; "
            "fetch them as their PROVENANCE.md says, or give another folder with --data"
        )


def accepted_text(folder: Path, path: str, accepted: Manifest) -> str | Refused:
    """A file's content, decompressed where it ends in ``.gz``, or why it is not accepted."""
    content = (folder / path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if path not in accepted:
        return Refused(path, "whole file: not in the manifest", 1)
    if digest != accepted[path]:
        reason = f"whole file: sha256 {digest[:12]}… is not {accepted[path][:12]}… of the manifest"
        return Refused(path, reason, 1)
    return (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8")


def csv_records(text: str) -> Sequence[Mapping[str, str]]:
    """The rows of a table, by column name."""
    return list(csv.DictReader(io.StringIO(text)))
