"""The verb ``check``: its option, and what it prints."""

import argparse

from llm_carbon_meter.check.host import POLL_S, check_host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--json", action="store_true", help="for programs, with more figures")


def run(options: argparse.Namespace) -> int:
    """Print what was found; 0 where a server started now would be metered."""
    report = check_host(POLL_S)
    print(report.json() if options.json else report.table())
    return 0 if report.works else 1
