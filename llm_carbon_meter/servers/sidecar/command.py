"""The verb ``sidecar``: its options."""

import argparse
from pathlib import Path

from llm_carbon_meter.records import MeterError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "--upstream", required=True, metavar="URL", help="the server, as in http://127.0.0.1:8000"
    )
    parser.add_argument(
        "--listen",
        default="127.0.0.1:8010",
        metavar="HOST:PORT",
        help="where clients go instead (default: 127.0.0.1:8010)",
    )
    parser.add_argument(
        "--model",
        default="",
        help="a built-in name or a config.json (default: the name that the server says)",
    )
    parser.add_argument(
        "--models",
        type=Path,
        metavar="TOML",
        help='for a server of several models: lines such as "its-name" = "Llama-3.1-8B"',
    )
    parser.add_argument(
        "--gpus", default="0", help="the server's, as nvidia-smi numbers them (default: 0)"
    )


def run(options: argparse.Namespace) -> int:
    """Serve the proxy until it is stopped.

    Raises:
        MeterError: the extra ``sidecar`` is not installed, or an option cannot be used.
    """
    try:
        from llm_carbon_meter.servers.sidecar.serve import serve
    except ImportError as error:
        raise MeterError(f"{error}: pip install 'llm-carbon-meter[sidecar]'") from error
    return serve(options.upstream, options.listen, options.model, options.gpus, options.models)
