"""A report of a million requests, and of ten million: processor time and memory, JSON and Parquet.

The log is made up: lines of a cluster's usual length, with figures that differ in every line.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from llm_carbon_meter.frontend.request_log import text_of

from ..support.made.usual import a_usual_line

MILLION: Final = 1_000_000
BATCH: Final = 10_000
COPIES: Final = 10
MODELS: Final = ("Llama-3.1-8B", "Llama-3.1-70B-Instruct", "Qwen3-32B")
TENANTS: Final = 40
BEGUN_UNIX_S: Final = 1_772_323_200.0
MONTH_S: Final = 31 * 86_400.0


def measure(_model: Path) -> Mapping[str, float]:
    """Of each form of the log."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "requests.jsonl"
        write(log, MILLION)
        figures = {"report_json": spent("report", str(log))}
        day = str(folder / "parquet")
        figures["export"] = spent("export", str(log), "--parquet", day)
        figures["report_parquet"] = spent("report", day)
        copied = folder / "ten"
        for number in range(COPIES):
            for file in [log, *Path(day).rglob("*.parquet")]:
                target = copied / file.suffix / str(number) / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, target)
        figures["ten_parquet"] = spent("report", str(copied / ".parquet"))
        figures["ten_json"] = spent("report", str(copied / ".jsonl"))
    return {
        f"{name}_{unit}": value
        for name, pair in figures.items()
        for unit, value in zip(("s", "mb"), pair, strict=True)
    }


def spent(*arguments: str) -> tuple[float, float]:
    """Processor seconds and peak megabytes of a verb in a process of its own."""
    watched = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=subprocess.DEVNULL); used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)"
    )
    verb = [sys.executable, "-m", "llm_carbon_meter.cli", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", watched, *verb], check=True, capture_output=True, text=True
    )
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def write(path: Path, requests: int) -> None:
    """A log of so many requests over a month."""
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, requests, BATCH):
            file.writelines(lines(first, min(BATCH, requests - first), requests))


def lines(first: int, count: int, of: int) -> Iterator[str]:
    """Some of them."""
    random = np.random.default_rng(first)
    form, number = template(), np.arange(first, first + count)
    prompt, output = (random.lognormal(5.5, 1.0, count).astype(int) + 1 for _ in range(2))
    prefill = prompt * random.lognormal(-2.5, 0.2, count)
    decode = output * random.lognormal(-0.5, 0.3, count)
    estimate = (prefill + decode) * random.lognormal(0.0, 0.2, count)
    columns = (
        random.integers(0, len(MODELS), count).tolist(),
        random.integers(0, TENANTS, count).tolist(),
        (BEGUN_UNIX_S + MONTH_S * number / of).tolist(),
        *(prompt.tolist(), output.tolist(), prefill.tolist(), decode.tolist(), estimate.tolist()),
    )
    for place, values in enumerate(zip(*columns, strict=True), first):
        model, tenant, arrived, prompts, outputs, prefills, decodes, estimated = values
        joules = prefills + decodes
        yield form % (
            *(place, place, place, MODELS[model], tenant, arrived, prompts, outputs),
            *(joules, prefills, decodes, joules * 1.4e-4, joules * 3e-5, joules / 600.0),
            *(estimated, estimated, estimated * 0.7, estimated * 1.5, estimated),
        )


def template() -> str:
    """A usual line with places for what differs, in the order of `lines`."""
    differing = {
        "id": '"chatcmpl-%032x"',
        "external_ids": '["chatcmpl-%032x"]',
        "internal_ids": '["chatcmpl-%032x"]',
        "model": '"%s"',
        "tenant": '"tenant-%d"',
        "arrived_unix_s": "%.6f",
        "prompt_tokens": "%d",
        "output_tokens": "%d",
        "energy_joules": "%r",
        "prefill_joules": "%r",
        "decode_joules": "%r",
        "operational_grams": "%r",
        "embodied_grams": "%r",
        "gpu_seconds": "%r",
        "estimate_joules": "%r",
        "estimate_calibrated_joules": "%r",
        "estimate_low_joules": "%r",
        "estimate_high_joules": "%r",
        "conditional_joules": "%r",
    }
    fixed = {**a_usual_line(), "estimate_facility": False, "uncertainty": 0.031}
    fixed |= {"recompute_joules": 0.0, "waste_joules": 0.0, "idle_joules": 0.0}
    texts = {name: text_of({name: value})[1:-1] for name, value in fixed.items()}
    texts |= {name: f'"{name}":{form}' for name, form in differing.items()}
    rest = [texts[name] for name in texts if name not in differing]
    return "{" + ",".join([*rest, *(texts[name] for name in differing)]) + "}\n"
