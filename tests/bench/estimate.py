"""The estimate: in the live path, for a model that is new, and for a table of rows."""

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llm_carbon_meter.carbon.grid import constant
from llm_carbon_meter.cli import main
from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.physics.gpu_specs import gpu_spec
from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.predictor.energy_model import Deployment
from llm_carbon_meter.predictor.estimator import DeploymentEstimator
from llm_carbon_meter.predictor.lengths import LengthForecast
from llm_carbon_meter.predictor.models import energy_model
from llm_carbon_meter.records import EstimateQuery

ESTIMATES = 5000
NEW_MODELS = ("Qwen3-8B", "Llama-3.1-70B", "gpt-oss-20b", "Mixtral-8x7B", "Gemma2-9b")
ROWS = 20_000
COLUMNS = (
    *("model_config", "gpu", "num_gpus", "dtype", "engine", "engine_version"),
    *("concurrency", "prompt_tokens", "output_tokens"),
)
REQUEST = ("--prompt-tokens", "1500", "--output-tokens", "300")
CHOICES = (
    *("--model", *NEW_MODELS, "--num-gpus", "1", "2", "4", "8", "16", "32", "64", "128"),
    *("--gpu", "A10", "A10G", "A30", "A40", "RTX-A6000", "A100", "A100-40GB", "A100-PCIe", "L4"),
    *("L40", "L40S", "H100", "H100-PCIe", "H100-NVL", "H200", "H200-NVL", "GH200", "B200"),
    *("GB200", "RTX5090"),
)
"""Of a plan: 5 models, 8 sizes and 20 GPUs."""
LOADING = """
import time, psutil
before, start = psutil.Process().memory_info().rss, time.perf_counter()
from llm_carbon_meter.predictor.gnn import GnnModel
GnnModel()
print(time.perf_counter() - start, (psutil.Process().memory_info().rss - before) / 1e6)
"""


def measure(model: Path) -> Mapping[str, float]:
    """Figures of the shipped predictor."""
    median, p99 = _live_us()
    seconds, megabytes = _loading()
    return {
        "estimate_us": median,
        "estimate_p99_us": p99,
        "first_estimate_ms": _first_ms(),
        "estimate_rows_per_s": _rows_per_s(),
        "compare_s": _command_s("estimate", *REQUEST, "--model", "Llama-3.1-8B", "--compare"),
        "plan_s": _command_s("plan", "--requests", "1e7", *REQUEST, *CHOICES),
        "predictor_load_s": seconds,
        "predictor_mb": megabytes,
    }


def _estimator(model: str) -> DeploymentEstimator:
    deployment = Deployment(built_in_model(model), gpu_spec("H100"), 1, "vllm", "0.11.1")
    return DeploymentEstimator(energy_model("gnn"), deployment, constant(Config(), Faults()))


def _live_us() -> tuple[float, float]:
    """Median and 99 % of single estimates with a warm cache, the length uncertain."""
    estimator, lengths = _estimator("Llama-3.1-8B"), LengthForecast(200.0, 50.0, 400.0)
    times = []
    for number in range(ESTIMATES):
        query = EstimateQuery(100 + number, 500, concurrency=1 + number % 64)
        start = time.perf_counter()
        estimator.estimate(query, lengths)
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times)), 1e6 * float(np.quantile(times, 0.99))


def _first_ms() -> float:
    """The slowest first estimate of some models, from shape to joules."""
    worst = 0.0
    for model in NEW_MODELS:
        start = time.perf_counter()
        _estimator(model).estimate(EstimateQuery(1000, 500), LengthForecast(200.0, 50.0, 400.0))
        worst = max(worst, time.perf_counter() - start)
    return 1e3 * worst


def _rows_per_s() -> float:
    """``estimate --input`` from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        table, output = Path(folder) / "rows.csv", Path(folder) / "out.csv"
        with table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            for number in range(ROWS):
                model = NEW_MODELS[number % len(NEW_MODELS)]
                serving = ("H100", 4, "bfloat16", "vllm", "0.11.1", 1 + number % 64)
                rows.writerow((model, *serving, 100 + number % 900, 50 + number % 400))
        start = time.perf_counter()
        assert main(["estimate", "--input", str(table), "--output", str(output)]) == 0
        return ROWS / (time.perf_counter() - start)


def _command_s(*arguments: str) -> float:
    """A verb from its start to its end, in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "llm_carbon_meter.cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _loading() -> tuple[float, float]:
    """Seconds and megabytes that the predictor adds to a process."""
    printed = subprocess.run(
        [sys.executable, "-c", LOADING], capture_output=True, text=True, check=True
    )
    seconds, megabytes = map(float, printed.stdout.split())
    return seconds, megabytes
