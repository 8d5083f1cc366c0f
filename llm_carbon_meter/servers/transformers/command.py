"""The verb ``serve-transformers``: hands its arguments to `serve` as they are."""

import argparse

from llm_carbon_meter.servers.transformers.serve import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take every argument, ``--help`` too: all are those of ``transformers serve``."""
    parser.prefix_chars = "\0"
    parser.add_argument("arguments", nargs="*")


def run(options: argparse.Namespace) -> int:
    """Serve until stopped.

    Raises:
        MeterError: see `serve`.
    """
    return serve(options.arguments)
