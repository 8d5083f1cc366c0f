"""Run all benchmarks, or those named on the command line, and print figures beside their goals."""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llm_carbon_meter.testing.tiny_model import make_tiny_model

from . import batching, book, estimate, frontend, hook, latency, receipts, report, throughput


class Goal(NamedTuple):
    """A figure and its bound."""

    text: str
    bound: float
    at_most: bool

    def line(self, value: float) -> str:
        met = value <= self.bound if self.at_most else value >= self.bound
        sign = "<=" if self.at_most else ">="
        return (
            f"{self.text:<58} {value:>10.4g}   {sign} {self.bound:<8g} {'ok' if met else 'MISSED'}"
        )


GOALS: Mapping[str, Goal] = {
    "hook_us": Goal("hook on the engine's thread, 256 requests, median µs", 20, True),
    "hook_us_per_request": Goal("hook, each further request, µs", 0.05, True),
    "batching_hook_us": Goal("hook on transformers' batching thread, 32 requests, µs", 50, True),
    "p99_ratio": Goal("step latency at 256 requests, p99 with / without", 1.05, True),
    "tokens_ratio": Goal("tokens/s of the real server, with / without, median", 0.98, False),
    "transformers_tokens_ratio": Goal("the same of transformers serve", 0.98, False),
    "compare_s": Goal("estimate --compare, the whole command, s", 2, True),
    "plan_s": Goal("plan of 20 GPUs x 5 models x 8 sizes, the whole command, s", 2, True),
    "estimate_us": Goal("estimate of a request before it runs, median µs", 60, True),
    "estimate_p99_us": Goal("the same, p99 µs", 500, True),
    "request_ms": Goal("a request, on the API server's processor, ms", 0.25, True),
    "sign_us": Goal("signing a record, median µs", 500, True),
    "tenant_us": Goal("what a tenant adds to it, µs", 2, True),
    "route_ms": Goal("the estimate route, 400 prompts of 100 token ids, ms", 20, True),
    "route_hold_ms": Goal("longest hold of the event loop by it, ms", 1, True),
    "first_estimate_ms": Goal("first estimate for a new model, ms", 200, True),
    "estimate_rows_per_s": Goal("rows per second of estimate --input", 5_000, False),
    "predictor_load_s": Goal("seconds that loading the predictor adds", 1.0, True),
    "predictor_mb": Goal("resident memory that it adds, MB", 150, True),
    "memory_mb": Goal("resident growth over a million requests, MB", 50, True),
    "report_json_s": Goal("report of a million requests, JSON, processor s", 10, True),
    "report_json_mb": Goal("its memory at most, MB", 400, True),
    "export_s": Goal("export of them to Parquet, processor s", 20, True),
    "export_mb": Goal("its memory at most, MB", 400, True),
    "report_parquet_s": Goal("report of that Parquet, processor s", 1, True),
    "report_parquet_mb": Goal("its memory at most, MB", 400, True),
    "ten_parquet_s": Goal("report of ten million requests, Parquet, processor s", 15, True),
    "ten_parquet_mb": Goal("its memory at most, MB", 400, True),
    "ten_json_s": Goal("the same of JSON, processor s", 100, True),
    "ten_json_mb": Goal("its memory at most, MB", 400, True),
    "mixed_steps_per_s": Goal("the same, of two prompt chunks beside 62 decodes", 20_000, False),
    "steps_per_s": Goal("steps of 64 requests settled per second on one core", 20_000, False),
}

BENCHMARKS: Mapping[str, Callable[[Path], Mapping[str, float]]] = {
    "hook": hook.measure,
    "estimate": estimate.measure,
    "frontend": frontend.measure,
    "receipts": receipts.measure,
    "latency": latency.measure,
    "book": book.measure,
    "memory": book.measure_memory,
    "report": report.measure,
    "throughput": throughput.measure,
    "batching": batching.measure,
    "throughput-transformers": throughput.measure_transformers,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(BENCHMARKS)}")
    names = parser.parse_args(arguments).names
    if not names:  # each in a process of its own: one's memory is not the other's
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        for name in BENCHMARKS:
            subprocess.run([sys.executable, "-m", "tests.bench", name], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder) / "tiny-qwen2")
        for name in names:
            for figure, value in BENCHMARKS[name](model).items():
                print(GOALS[figure].line(value), flush=True)


if __name__ == "__main__":
    main()
