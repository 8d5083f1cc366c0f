"""The verb ``evaluate``: its options, and the packages that it needs."""

import argparse

from llm_carbon_meter.config import data_folder
from llm_carbon_meter.extras import require
from llm_carbon_meter.training.fit.command import add_folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    add_folders(parser, "folder of results.json and the plots")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, without the baselines that take long"
    )


def run(options: argparse.Namespace) -> int:
    """Fit, judge, and write the results.

    Raises:
        MeterError: the extra ``train`` is not installed, a file is missing, or a split leaks.
    """
    require("evaluate", "train", "torch", "torch_geometric", "sklearn", "matplotlib")
    from llm_carbon_meter.training.study.evaluate.evaluation import evaluate

    print(evaluate(data_folder(options.data), options.output, options.quick))
    return 0
