"""The verb ``replay``: the accounts of a request log, nothing else."""

import argparse
from pathlib import Path

from llm_carbon_meter.frontend.request_log import ledger_table, read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("log", type=Path, help="a file written by LLM_CARBON_METER_REQUEST_LOG")


def run(options: argparse.Namespace) -> int:
    """Print the accounts.

    Raises:
        MeterError: the file cannot be read, or a line is no record.
    """
    print(ledger_table(read(options.log)))
    return 0
