"""The command line: verbs only, each calls one function elsewhere."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_carbon_meter import __version__
from llm_carbon_meter.campaign.command import add_arguments as add_campaign_arguments
from llm_carbon_meter.campaign.command import run_campaign
from llm_carbon_meter.carbon.grid import open_grid
from llm_carbon_meter.config import DATA_VARIABLE, Config, data_folder
from llm_carbon_meter.demo.command import add_arguments, run_demo
from llm_carbon_meter.estimate.one_request import OfflineEstimate, make_deployment
from llm_carbon_meter.estimate.table import INPUT_COLUMNS, estimate_file
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.request_log import ledger_table, read
from llm_carbon_meter.predictor.energy_model import EnergyModel
from llm_carbon_meter.predictor.models import ENERGY_MODELS, energy_model
from llm_carbon_meter.records import EstimateQuery, MeterError
from llm_carbon_meter.report.command import add_arguments as add_report_arguments
from llm_carbon_meter.report.command import run_report


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

    campaign = verbs.add_parser(
        "campaign", help="measure prefill and decode of many models and loads on the GPUs at hand"
    )
    add_campaign_arguments(campaign)
    campaign.set_defaults(run=run_campaign)

    check = verbs.add_parser("check", help="would this host meter, and how well? starts no engine")
    check.add_argument("--json", action="store_true", help="for programs, with more figures")
    check.set_defaults(run=_check)

    serve = verbs.add_parser(
        "serve-transformers",
        help="`transformers serve` with the meter; all arguments are its own",
        add_help=False,
        prefix_chars="\0",
    )
    serve.add_argument("arguments", nargs="*")
    serve.set_defaults(run=_serve_transformers)

    sidecar = verbs.add_parser(
        "sidecar", help="a proxy that meters an OpenAI-compatible server of this host from outside"
    )
    sidecar.add_argument(
        "--upstream", required=True, metavar="URL", help="the server, as in http://127.0.0.1:8000"
    )
    sidecar.add_argument(
        "--listen",
        default="127.0.0.1:8010",
        metavar="HOST:PORT",
        help="where clients go instead (default: 127.0.0.1:8010)",
    )
    sidecar.add_argument(
        "--model",
        default="",
        help="a built-in name or a config.json (default: the name that the server says)",
    )
    sidecar.add_argument(
        "--gpus", default="0", help="the server's, as nvidia-smi numbers them (default: 0)"
    )
    sidecar.set_defaults(run=_sidecar)

    _add_estimate(verbs.add_parser("estimate", help="what a request costs before it runs"))

    replay = verbs.add_parser("replay", help="print the ledger of a request log again")
    replay.add_argument("log", type=Path, help="a file written by LLM_CARBON_METER_REQUEST_LOG")
    replay.set_defaults(run=_replay)

    report = verbs.add_parser("report", help="energy and carbon of a period, from a request log")
    add_report_arguments(report)
    report.set_defaults(run=run_report)

    train = verbs.add_parser("train", help="fit the predictor to measurements anew")
    _add_data(train, "folder of the weights and their card")
    train.add_argument(
        "--campaign",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE.csv",
        help="your own measurements, by the verb campaign, to fit to as well",
    )
    train.add_argument("--seed", type=int, default=0, help="of the network (default: 0)")
    train.set_defaults(run=_train)

    evaluate = verbs.add_parser("evaluate", help="judge the predictor on measurements held out")
    _add_data(evaluate, "folder of results.json and the plots")
    evaluate.add_argument(
        "--quick", action="store_true", help="one seed, without the baselines that take long"
    )
    evaluate.set_defaults(run=_evaluate)
    return parser


def _check(options: argparse.Namespace) -> int:
    from llm_carbon_meter.check.host import POLL_S, check_host

    report = check_host(POLL_S)
    print(report.json() if options.json else report.table())
    return 0 if report.works else 1


def _serve_transformers(options: argparse.Namespace) -> int:
    from llm_carbon_meter.servers.transformers.serve import serve

    return serve(options.arguments)


def _sidecar(options: argparse.Namespace) -> int:
    try:
        from llm_carbon_meter.servers.sidecar.serve import serve
    except ImportError as error:
        raise MeterError(f"{error}: pip install 'llm-carbon-meter[sidecar]'") from error
    return serve(options.upstream, options.listen, options.model, options.gpus)


def _add_data(verb: argparse.ArgumentParser, output: str) -> None:
    verb.add_argument(
        "--data", default="", help=f"folder of the data sets (default: {DATA_VARIABLE})"
    )
    verb.add_argument("--output", type=Path, required=True, metavar="FOLDER", help=output)


def _add_estimate(estimate: argparse.ArgumentParser) -> None:
    one = estimate.add_argument_group("one request")
    one.add_argument("--model", help="a built-in name or a config.json")
    one.add_argument("--gpu", help="of data/gpus.toml (default: the assumed one of the settings)")
    one.add_argument("--num-gpus", type=int, default=1, help="tensor parallel (default: 1)")
    one.add_argument("--dtype", default="", help="number format (default: as the model's config)")
    one.add_argument("--engine", default="vllm", help="default: vllm")
    one.add_argument("--engine-version", default="")
    one.add_argument(
        "--concurrency", type=float, default=1.0, help="such requests at once (default: 1)"
    )
    one.add_argument("--prompt-tokens", type=int)
    one.add_argument("--output-tokens", type=int)
    one.add_argument("--compare", action="store_true", help="the same on all other GPUs")
    many = estimate.add_argument_group("a table of requests")
    many.add_argument("--input", type=Path, help="CSV: " + ", ".join(INPUT_COLUMNS))
    many.add_argument("--output", type=Path, help="CSV: the same rows with their energy")
    estimate.add_argument(
        "--method", choices=list(ENERGY_MODELS), help="default: as the settings say"
    )
    estimate.set_defaults(run=_estimate, usage_error=estimate.error)


def _estimate(options: argparse.Namespace) -> int:
    config, _ = Config.from_environment()
    model = energy_model(options.method or _default_method(config))
    one = {"--model": options.model, "--prompt-tokens": options.prompt_tokens,
           "--output-tokens": options.output_tokens}  # fmt: skip
    if options.input or options.output:
        given = [name for name, value in one.items() if value is not None]
        if given or not (options.input and options.output):
            options.usage_error(
                "--input and --output belong together, and to no " + ", ".join(given or one)
            )
        return _estimate_file(model, options)
    missing = [name for name, value in one.items() if value is None]
    if missing:
        options.usage_error(f"give {', '.join(missing)}, or --input and --output")
    return _estimate_one(model, options, config)


def _default_method(config: Config) -> str:
    """The server's, also where that is switched off."""
    return Config().estimator if config.estimator == "none" else config.estimator


def _estimate_file(model: EnergyModel, options: argparse.Namespace) -> int:
    bad = estimate_file(model, options.input, options.output)
    if bad:
        print(
            f"llm-carbon-meter: {bad} rows have no estimate; the column error says why",
            file=sys.stderr,
        )
    return 1 if bad else 0


def _estimate_one(model: EnergyModel, options: argparse.Namespace, config: Config) -> int:
    deployment = make_deployment(
        options.model,
        options.gpu or config.assume_gpu,
        options.num_gpus,
        options.dtype,
        options.engine,
        options.engine_version,
    )
    query = EstimateQuery(
        options.prompt_tokens,
        None,
        concurrency=options.concurrency,
        output_tokens=options.output_tokens,
    )
    grid = open_grid(config, Faults()).asked()
    estimate = OfflineEstimate(model, deployment, query, grid, config.pue)
    print(estimate.table())
    if options.compare:
        print(f"\n{estimate.comparison()}")
    return 0


def _replay(options: argparse.Namespace) -> int:
    print(ledger_table(read(options.log)))
    return 0


# Training is imported when it is asked for: it needs packages that serving does not.


def _train(options: argparse.Namespace) -> int:
    from llm_carbon_meter.training.fit.ship import train

    print(train(data_folder(options.data), options.output, options.seed, options.campaign))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from llm_carbon_meter.training.study.evaluate.evaluation import evaluate

    print(evaluate(data_folder(options.data), options.output, options.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
