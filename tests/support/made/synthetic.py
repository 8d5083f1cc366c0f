"""A data folder with a few rows of every set, and its manifest."""

import csv
import gzip
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Tables = dict[str, list[dict[str, Any]]]

JOULEBENCH = "joulebench/joulebench.csv.gz"
PRIOR_RUNS = "joulebench/energy_bench_prior_runs.csv.gz"
V1 = "mlenergy_v1_legacy/mlenergy_v1.csv.gz"
V2 = "mlenergy_v2_a100/mlenergy_v2_a100.csv.gz"
V3 = "mlenergy_v3_h100/mlenergy_v3_h100.csv.gz"
SPLITWISE = "splitwise_sim/splitwise_a100_power.csv.gz"
RELEASED = "released/rows.csv"


def tables() -> Tables:
    """One row of every set, path -> rows."""
    return {
        JOULEBENCH: [
            {
                "model": "meta-llama/Llama-3.1-8B-Instruct",
                "dtype": "fp16",
                "gpu": "NVIDIA A100 80GB PCIe",
                "num_gpus": 1,
                "engine": "hf_transformers",
                "engine_version": "5.2.0",
                "batch_size": 4,
                "prompt_tokens_per_request": 25.0,
                "output_tokens_per_request": 200.0,
                "gross_energy_joules_batch_derived": 800.0,
                "net_energy_joules_batch_derived": 500.0,
                "net_energy_joules_per_output_token_mean": 0.5,
                "net_energy_joules_per_output_token_std": 0.01,
                "gross_power_watts_mean": 165.0,
                "output_throughput_tokens_per_sec_mean": 160.0,
                "author_excluded": False,
                "validation_run": False,
            }
        ],
        PRIOR_RUNS: [
            {
                "model": "mistralai/Mistral-7B-v0.1",
                "dtype": "float16",
                "quantization_mode": "none",
                "gpu": "NVIDIA A100 80GB PCIe",
                "num_gpus": 1,
                "engine": "hf_transformers",
                "transformers_version": "4.57.6",
                "batch_size": 2,
                "prompt_tokens_per_request": 87.0,
                "output_tokens_per_request": 128.0,
                "context_len": 256,
                "prompt_id": "1,2",
                "run_id": run,
                "energy_joules_batch": joules,
                "avg_power_watts": 250.0,
                "latency_s": 4.0,
                "tokens_per_s": 64.0,
            }
            for run, joules in enumerate([990.0, 1010.0])
        ],
        V1: [
            {
                "task": "chat",
                "model": "lmsys/vicuna-7B",
                "gpu": "A40",
                "num_gpus": 1,
                "dtype": "float16",
                "engine": "hf_transformers_fastchat",
                "batch_size": 1,
                "output_tokens_mean": 250.0,
                "energy_joules_per_request": 1900.0,
                "latency_s_mean": 10.0,
                "avg_power_watts_derived": 190.0,
            }
        ],
        V2: [
            {
                "task": "llm_text_generation/code",
                "model": "codellama/CodeLlama-7b-hf",
                "gpu": "NVIDIA A100-SXM4-40GB",
                "num_gpus": 2,
                "tensor_parallel": 2,
                "engine": "vllm",
                "batch_size_mean": 63.5,
                "output_tokens_mean": 109.0,
                "energy_joules_per_request": 30.0,
                "tpot_mean_s": 0.05,
                "output_throughput_tokens_per_sec": 1300.0,
                "total_gpu_power_watts_derived": 400.0,
            }
        ],
        V3: [
            {
                "task": "lm-arena-chat",
                "model": "Qwen/Qwen3-30B-A3B-Instruct-2507",
                "gpu": "H100",
                "num_gpus": 2,
                "tensor_parallel": 1,
                "expert_parallel": 2,
                "data_parallel": 1,
                "dtype": "bfloat16",
                "engine": "vllm",
                "batch_size_mean": 128.0,
                "output_tokens_mean": 800.0,
                "energy_joules_per_request": 90.0,
                "avg_power_watts": 900.0,
                "output_throughput_tokens_per_sec": 8000.0,
                "median_itl_ms": 15.0,
                "p99_itl_ms": 60.0,
            }
        ],
        SPLITWISE: [
            {
                "model": "llama2-70b",
                "gpu": "a100-80gb",
                "num_gpus": 4,
                "tensor_parallel": 4,
                "batch_size": 2,
                "prompt_tokens": 512,
                "output_tokens": 128,
                "decode_step_latency_ms": 40.0,
                "e2e_latency_ms": latency_ms,
                "avg_power_watts_per_gpu_derived": 240.0,
                "energy_joules_batch_derived": 4 * 240.0 * latency_ms / 1000,
                "quality_flag": "ok",
            }
            for latency_ms in (5000.0, 5200.0)
        ],
        RELEASED: [
            {
                "source": "mlenergy_v2",
                "arch": "gemma-2b",
                "family": "gemma",
                "model": "google/codegemma-1.1-2b",
                "model_config": "configs/gemma-2b.json",
                "gpu": "NVIDIA H100 80GB HBM3",
                "num_gpus": 2,
                "dtype": "bfloat16",
                "engine": "vllm",
                "engine_version": "0.5.4",
                "concurrency": 64.0,
                "prompt_tokens": 150,
                "output_tokens": 240,
                "energy_wh": 0.02,
                "kv_over": False,
                "fp8": False,
                "prompt_assumed": 1,
            }
        ],
    }


def written(folder: Path, content: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Write the tables and return their manifest."""
    accepted = {}
    for path, rows in content.items():
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, fieldnames=list(dict.fromkeys(n for row in rows for n in row)))
        table.writeheader()
        table.writerows(rows)
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        content_bytes = text.getvalue().encode()
        packed = gzip.compress(content_bytes, mtime=0) if path.endswith(".gz") else content_bytes
        file.write_bytes(packed)
        accepted[path] = hashlib.sha256(file.read_bytes()).hexdigest()
    return accepted
