"""The command line: the verbs and where each lives; a verb's module is loaded when it is asked for.

Such a module has ``add_arguments(parser)`` and ``run(options)``, which gives the exit code.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, NamedTuple

from llm_carbon_meter import __version__
from llm_carbon_meter.records import MeterError

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells number it."""
READER_GONE: Final = 141
"""Exit code where whoever read the output left early, as ``head`` does."""


class Verb(NamedTuple):
    """A word of the command line."""

    module: str
    """In this package."""
    help: str


VERBS: Final[Mapping[str, Verb]] = {
    "demo": Verb("demo.command", "meter a real vLLM server under real-looking traffic"),
    "campaign": Verb(
        "campaign.command",
        "measure prefill and decode of many models and loads on the GPUs at hand",
    ),
    "check": Verb("check.command", "would this host meter, and how well? starts no engine"),
    "serve-transformers": Verb(
        "servers.transformers.command",
        "`transformers serve` with the meter; all arguments are its own",
    ),
    "sidecar": Verb(
        "servers.sidecar.command",
        "a proxy that meters an OpenAI-compatible server of this host from outside",
    ),
    "estimate": Verb("estimate.command", "what a request costs before it runs"),
    "plan": Verb("estimate.plan_command", "GPUs, latency, energy and money for a month's traffic"),
    "models": Verb("estimate.models_command", "the models that are known by name"),
    "gpus": Verb("estimate.gpus_command", "the GPUs that are known, and which were measured"),
    "replay": Verb("report.replay_command", "print the ledger of a request log again"),
    "report": Verb("report.command", "energy and carbon of a period, from a request log"),
    "verify": Verb("verify", "check the signatures of a record or of a request log"),
    "export": Verb("report.export_command", "a request log as Parquet, a folder for each day"),
    "train": Verb("training.fit.command", "fit the predictor to measurements anew"),
    "evaluate": Verb("training.study.command", "judge the predictor on measurements held out"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: those of the process unless given.

    Returns:
        0 where the verb succeeded, 1 where it failed, `INTERRUPTED` or `READER_GONE`.

    Raises:
        SystemExit: 2 for wrong usage; 0 after ``--help`` and ``--version``.
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            # Here a reader that has gone can be caught, at exit it cannot; there may be no stdout.
            print(end="", flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE


def _run(arguments: Sequence[str]) -> int:
    options = _parser(arguments).parse_args(arguments)
    try:
        return int(options.run(options))
    except MeterError as error:
        print(f"llm-carbon-meter: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Knows every verb's name, and the options of the verb that the arguments begin with."""
    parser = argparse.ArgumentParser(
        prog="llm-carbon-meter", description="Energy and carbon of every LLM request."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    asked = next((word for word in arguments if not word.startswith("-")), "")
    for name, verb in VERBS.items():
        options = verbs.add_parser(name, help=verb.help)
        if name == asked:
            module = import_module(f"llm_carbon_meter.{verb.module}")
            module.add_arguments(options)
            options.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
