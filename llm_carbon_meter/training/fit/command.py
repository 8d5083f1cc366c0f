"""The verb ``train``: its options, and the packages that it needs."""

import argparse
from pathlib import Path

from llm_carbon_meter.config import DATA_VARIABLE, data_folder
from llm_carbon_meter.extras import require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    add_folders(parser, "folder of the weights and their card")
    parser.add_argument(
        "--campaign",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE.csv",
        help="your own measurements, by the verb campaign, to fit to as well",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the network (default: 0)")


def add_folders(parser: argparse.ArgumentParser, output: str) -> None:
    """Add the options of the data and of the results.

    Args:
        parser: of a verb that learns from the data sets.
        output: what the folder of the results will hold.
    """
    parser.add_argument(
        "--data", default="", help=f"folder of the data sets (default: {DATA_VARIABLE})"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help=output)


def run(options: argparse.Namespace) -> int:
    """Fit, and write the weights.

    Raises:
        MeterError: the extra ``train`` is not installed, or a file is missing.
    """
    require("train", "train", "torch", "torch_geometric")
    from llm_carbon_meter.training.fit.ship import train

    print(train(data_folder(options.data), options.output, options.seed, options.campaign))
    return 0
