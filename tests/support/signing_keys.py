"""Key pairs as the documents say how to make them: with openssl."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class Keys(NamedTuple):
    """Files of a pair."""

    private: Path
    public: Path


def make_keys(folder: Path, *, algorithm: str = "ed25519") -> Keys:
    """A new pair in a folder."""
    keys = Keys(folder / "KEY.pem", folder / "PUBLIC.pem")
    run("genpkey", "-algorithm", algorithm, "-out", keys.private)
    run("pkey", "-in", keys.private, "-pubout", "-out", keys.public)
    return keys


def run(*arguments: str | Path) -> bytes:
    """What an openssl command prints."""
    return subprocess.run(["openssl", *arguments], capture_output=True, check=True).stdout
