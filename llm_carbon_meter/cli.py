"""The command line: verbs only, each calls one function elsewhere."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_carbon_meter import __version__
from llm_carbon_meter.config import Config
from llm_carbon_meter.demo.run import add_arguments, run_demo
from llm_carbon_meter.meter import grid
from llm_carbon_meter.predictor.offline import flop_report, named_model
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.request_log import ledger_table, read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; 0 where it succeeded, 1 where it failed, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except MeterError as error:
        print(f"llm-carbon-meter: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-carbon-meter", description="Energy and carbon of every LLM request."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    demo = verbs.add_parser("demo", help="meter a real vLLM server under real-looking traffic")
    add_arguments(demo)
    demo.set_defaults(run=run_demo)

    estimate = verbs.add_parser("estimate", help="what a request costs before it runs")
    estimate.add_argument("--model", required=True, help="a built-in name or a config.json")
    estimate.add_argument("--prompt-tokens", type=int, required=True)
    estimate.add_argument("--output-tokens", type=int, required=True)
    estimate.add_argument("--method", choices=["flop"], default="flop")
    estimate.set_defaults(run=_estimate)

    replay = verbs.add_parser("replay", help="print the ledger of a request log again")
    replay.add_argument("log", type=Path, help="a file written by LLM_CARBON_METER_REQUEST_LOG")
    replay.set_defaults(run=_replay)
    return parser


def _estimate(options: argparse.Namespace) -> int:
    config, _ = Config.from_environment()
    model = named_model(options.model)
    print(flop_report(model, options.prompt_tokens, options.output_tokens, grid(config)))
    return 0


def _replay(options: argparse.Namespace) -> int:
    print(ledger_table(read(options.log)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
