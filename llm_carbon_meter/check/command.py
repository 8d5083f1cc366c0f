"""The verb ``check``: its options, and what it prints."""

import argparse

from llm_carbon_meter.check.findings import Report
from llm_carbon_meter.check.host import POLL_S, check_host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--json", action="store_true", help="for programs, with more figures")
    parser.add_argument(
        "--model", default="", help="a built-in name or a config.json: would it be estimated?"
    )


def run(options: argparse.Namespace) -> int:
    """Print each finding as it comes; 0 where a server started now would be metered."""
    findings = []
    for finding in check_host(POLL_S, options.model):
        findings.append(finding)
        if not options.json:
            print(finding.block, flush=True)
    report = Report(findings)
    print(report.json() if options.json else f"\n{report.conclusion()}")
    return 0 if report.works else 1
