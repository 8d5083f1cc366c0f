"""What pack.py writes and unpack.py reads: the manifest; sums and progress for both."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

MANIFEST = "manifest.json"
PIECE = 1 << 20
"""Bytes that are read at once."""


class BundleError(Exception):
    """What was tried, what was found, what to do."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What a part or a file has to be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle: for which machine, what is in it and what is not."""

    vllm: str
    """Empty where the bundle is for another engine."""
    python: str
    """Its first two numbers."""
    torch: str
    """Empty where any will do."""
    packages: Mapping[str, str]
    """Packed, and their versions."""
    there: Mapping[str, str]
    """What the machine has to have; with these versions the list was found."""
    imports: Sequence[str]
    """Modules, of both, that runs import."""
    environment: Mapping[str, str]
    """Variables without which vLLM misses what is left out."""
    left_out_packages: Mapping[str, str]
    """Required by vLLM, and why not packed."""
    left_out_files: Mapping[str, str]
    """Of packed packages, and why not packed."""
    parts: Mapping[str, Sum]
    """In order they are the archive, a .tar.xz."""
    files: Mapping[str, Sum]
    probe: Sequence[str] = ("vllm",)
    """Modules that have to be importable there."""

    def write(self, folder: Path) -> None:
        """The same bytes for the same bundle."""
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)
        (folder / MANIFEST).write_text(text + "\n", "utf-8")

    @classmethod
    def read(cls, file: Path) -> Self:
        """From its file.

        Raises:
            BundleError: it is no manifest.
        """
        try:
            content = json.loads(file.read_text("utf-8"))
            sums = {
                table: {name: Sum(**each) for name, each in content[table].items()}
                for table in ("parts", "files")
            }
            return cls(**{**content, **sums})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{file}: no manifest of pack.py ({error}); bring it anew") from error


def sum_of(file: BinaryIO, count: Callable[[int], None] = lambda _: None) -> Sum:
    """Of what is left to read; ``count`` gets the bytes of each piece."""
    digest, size = hashlib.sha256(), 0
    while piece := file.read(PIECE):
        digest.update(piece)
        size += len(piece)
        count(len(piece))
    return Sum(size, digest.hexdigest())


class Progress:
    """Bytes done: tqdm's bar where it is installed, else a line per tenth."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what, self._done, self._tenths = total, what, 0, 0
        try:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True)
        except ImportError:
            self._bar = None

    def __call__(self, size: int) -> None:
        """Count more bytes."""
        self._done += size
        if self._bar is not None:
            self._bar.update(size)
        elif self._done * 10 >= (self._tenths + 1) * self._total:
            self._tenths = self._done * 10 // max(self._total, 1)
            print(f"{self._what}: {self._tenths * 10} %", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
