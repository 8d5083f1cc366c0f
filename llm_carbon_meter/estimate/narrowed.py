"""Lists of names that a word narrows: ``models qwen3``, ``gpus h200``."""

import argparse
from collections.abc import Iterable

from llm_carbon_meter.records import MeterError


def add_word(parser: argparse.ArgumentParser) -> None:
    """Add the option that narrows a list."""
    parser.add_argument("word", nargs="?", default="", help="only names that contain it")


def narrowed(names: Iterable[str], word: str, kind: str) -> list[str]:
    """The names that contain a word, in any case.

    Raises:
        MeterError: none does; says of what kind.
    """
    found = [name for name in names if word.casefold() in name.casefold()]
    if not found:
        raise MeterError(f"no known {kind} is called {word!r}; leave the word out for all")
    return found
