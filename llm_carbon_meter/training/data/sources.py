"""How each public data set is read: its columns, its traps, and the rows that it may not give."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from llm_carbon_meter.physics.model_list import built_in_config, built_in_model
from llm_carbon_meter.physics.model_specs import ModelSpec, model_spec
from llm_carbon_meter.training.data.rows import Flag, Row, architecture_group
from llm_carbon_meter.units import JOULES_PER_WATT_HOUR

Raw = Mapping[str, str]
Rows = Callable[["DataSet", Sequence[Raw], float], Iterator[Row]]

GPU_NAMES = {
    "NVIDIA A100 80GB PCIe": "A100-PCIe",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA H100 80GB HBM3": "H100",
    "a100-80gb": "A100",
}

# Mean prompt lengths where a source states none: they roughly fit the KV cache that each needed
# (v3, v2); v1 took its prompts from the same conversations as v2's chat.
ASSUMED_PROMPT_TOKENS = {
    "chat": 100.0,
    "chat-concise": 100.0,
    "instruct": 100.0,
    "instruct-concise": 100.0,
    "llm_text_generation/chat": 100.0,
    "llm_text_generation/code": 150.0,
    "lm-arena-chat": 300.0,
    "gpqa": 280.0,
    "sourcegraph-fim": 2000.0,
}
MULTIMODAL_TASKS = {"mllm_text_generation/chat", "image-chat", "video-chat"}

# What a config.json would say of weights that were quantised by the server or in another
# repository; MXFP4 models say it in their own.
QUANTISATION_CONFIGS = {
    "fp8": {"quant_method": "fp8"},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}
QWEN_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
"""Of Qwen's own FP8 checkpoints; those of Llama have a scale for a channel or a tensor."""
QUANTISATION_FLAGS = {
    "fp8": Flag.LOW_PRECISION,
    "mxfp4": Flag.LOW_PRECISION,
    "int8": Flag.QUANTISED,
    "nf4": Flag.QUANTISED,
}
FAMILY_FLAGS = {"nemotron_h": Flag.MAMBA, "llama4": Flag.CHUNKED_ATTENTION}
LEAST_ENERGY_FRACTION = 0.93
"""Of power times time; below it a short run lost samples at its edges."""
QUEUEING_MS = 1000.0


@dataclass(frozen=True, slots=True)
class DataSet:
    """One file. Engine and version stand for columns that the file lacks."""

    name: str
    path: str
    rows: Rows
    why_not: Callable[[Raw], str | None] = lambda raw: None
    engine: str = ""
    engine_version: str = ""

    def engine_of(self, raw: Raw) -> tuple[str, str]:
        """Engine and its version."""
        version = raw.get("engine_version") or raw.get("transformers_version")
        return raw.get("engine") or self.engine, version or self.engine_version


def _row(
    dataset: DataSet,
    raw: Raw,
    *,
    concurrency: float,
    output_tokens: float,
    energy_joules: float,
    prompt_tokens: float,
    prompt_tokens_assumed: bool = False,
    power_watts: float | None = None,
    output_tokens_per_s: float | None = None,
    time_per_output_token_s: float | None = None,
    noise: float | None = None,
    weight: float = 1.0,
    flags: frozenset[Flag] = frozenset(),
) -> Row:
    """A row from what is particular to one file and the columns that all files share."""
    dtype, quantisation = _element_types(raw)
    spec = _spec_as_served(raw["model"], quantisation)
    engine, engine_version = dataset.engine_of(raw)
    return Row(
        source=dataset.name,
        model=raw["model"],
        spec=spec,
        architecture=architecture_group(spec),
        family=_family(raw["model"]),
        task=raw.get("task", ""),
        gpu=GPU_NAMES.get(raw["gpu"], raw["gpu"]),
        num_gpus=int(raw["num_gpus"]),
        tensor_parallel=int(raw.get("tensor_parallel", "1")),
        expert_parallel=int(raw.get("expert_parallel", "1")),
        data_parallel=int(raw.get("data_parallel", "1")),
        dtype=dtype,
        quantisation=quantisation,
        engine=engine,
        engine_version=engine_version,
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        prompt_tokens_assumed=prompt_tokens_assumed,
        output_tokens=output_tokens,
        energy_joules=energy_joules,
        power_watts=power_watts,
        output_tokens_per_s=output_tokens_per_s,
        time_per_output_token_s=time_per_output_token_s,
        noise=noise,
        weight=weight,
        flags=flags | _shared_flags(raw, quantisation),
    )


def _family(model: str) -> str:
    return str(built_in_config(model)["model_type"])


def _element_types(raw: Raw) -> tuple[str, str]:
    """Type of the computation and quantisation of the weights."""
    stated = raw.get("dtype", "unstated").replace("fp16", "float16")
    if stated in QUANTISATION_FLAGS:
        return "bfloat16", stated
    return stated, raw.get("quantization_mode", "none")


def _spec_as_served(model: str, quantisation: str) -> ModelSpec:
    config = dict(built_in_config(model))
    if quantisation in QUANTISATION_CONFIGS:
        config["quantization_config"] = QUANTISATION_CONFIGS[quantisation]
        if quantisation == "fp8" and model.startswith("Qwen/"):
            config["quantization_config"] = QWEN_FP8
    return model_spec(config, built_in_model(model).name)


def _shared_flags(raw: Raw, quantisation: str) -> frozenset[Flag]:
    flags = [QUANTISATION_FLAGS.get(quantisation), FAMILY_FLAGS.get(_family(raw["model"]))]
    if raw.get("task") in MULTIMODAL_TASKS:
        flags.append(Flag.MULTIMODAL)
    return frozenset(flag for flag in flags if flag)


def _assumed_prompt(raw: Raw, prompt_scale: float) -> float:
    return ASSUMED_PROMPT_TOKENS.get(raw["task"], math.nan) * prompt_scale


def _joulebench(dataset: DataSet, raws: Sequence[Raw], prompt_scale: float) -> Iterator[Row]:
    """Gross joules of a batch of copies of one prompt, means of 10 runs."""
    for raw in raws:
        batch = int(raw["batch_size"])
        net_per_token = float(raw["net_energy_joules_per_output_token_mean"])
        row = _row(
            dataset,
            raw,
            concurrency=batch,
            prompt_tokens=float(raw["prompt_tokens_per_request"]),
            output_tokens=float(raw["output_tokens_per_request"]),
            energy_joules=float(raw["gross_energy_joules_batch_derived"]) / batch,
            power_watts=float(raw["gross_power_watts_mean"]),
            output_tokens_per_s=float(raw["output_throughput_tokens_per_sec_mean"]),
            noise=float(raw["net_energy_joules_per_output_token_std"]) / net_per_token,
        )
        validation = raw["validation_run"] == "True"
        yield replace(row, source="joulebench_validation") if validation else row


def _why_not_joulebench(raw: Raw) -> str | None:
    return "excluded by its author" if raw["author_excluded"] == "True" else None


def _prior_runs(dataset: DataSet, raws: Sequence[Raw], prompt_scale: float) -> Iterator[Row]:
    """Single runs of a batch of different prompts; repeats of a configuration share its weight.

    Every prompt was padded to ``context_len``: energy and latency grow with it as a prefill of
    that length and its cache would, and hardly at all with the prompt.
    """
    repeats = defaultdict(list)
    for raw in raws:
        repeats[_configuration(raw)].append(float(raw["energy_joules_batch"]))
    for raw in raws:
        batch, joules = int(raw["batch_size"]), repeats[_configuration(raw)]
        yield _row(
            dataset,
            raw,
            concurrency=batch,
            prompt_tokens=float(raw["context_len"]),
            output_tokens=float(raw["output_tokens_per_request"]),
            energy_joules=float(raw["energy_joules_batch"]) / batch,
            power_watts=float(raw["avg_power_watts"]),
            output_tokens_per_s=float(raw["tokens_per_s"]),
            noise=stdev(joules) / fmean(joules) if len(joules) > 1 else None,
            weight=1.0 / len(joules),
            flags=frozenset({Flag.PADDED}),
        )


def _configuration(raw: Raw) -> tuple[str, ...]:
    names = ("model", "quantization_mode", "batch_size", "prompt_id", "context_len")
    return tuple(raw[name] for name in names)


def _why_not_prior_run(raw: Raw) -> str | None:
    expected = float(raw["avg_power_watts"]) * float(raw["latency_s"])
    if float(raw["energy_joules_batch"]) < LEAST_ENERGY_FRACTION * expected:
        return f"energy below {LEAST_ENERGY_FRACTION} of power times time"
    return None


def _ml_energy_v1(dataset: DataSet, raws: Sequence[Raw], prompt_scale: float) -> Iterator[Row]:
    """One request at a time; the variant of A100 and V100 is not stated."""
    for raw in raws:
        variants, output_tokens = raw["gpu"] in ("A100", "V100"), float(raw["output_tokens_mean"])
        yield _row(
            dataset,
            raw,
            concurrency=int(raw["batch_size"]),
            prompt_tokens=_assumed_prompt(raw, prompt_scale),
            prompt_tokens_assumed=True,
            output_tokens=output_tokens,
            energy_joules=float(raw["energy_joules_per_request"]),
            power_watts=float(raw["avg_power_watts_derived"]),
            # The source's own throughput is a mean of ratios, up to 40 % from this.
            output_tokens_per_s=output_tokens / float(raw["latency_s_mean"]),
            flags=frozenset({Flag.GPU_VARIANT_UNSTATED}) if variants else frozenset(),
        )


def _ml_energy_v2(dataset: DataSet, raws: Sequence[Raw], prompt_scale: float) -> Iterator[Row]:
    """Steady state of a server."""
    for raw in raws:
        yield _row(
            dataset,
            raw,
            concurrency=float(raw["batch_size_mean"]),
            prompt_tokens=_assumed_prompt(raw, prompt_scale),
            prompt_tokens_assumed=True,
            output_tokens=float(raw["output_tokens_mean"]),
            energy_joules=float(raw["energy_joules_per_request"]),
            power_watts=float(raw["total_gpu_power_watts_derived"]),
            output_tokens_per_s=float(raw["output_throughput_tokens_per_sec"]),
            time_per_output_token_s=float(raw["tpot_mean_s"]),
        )


def _ml_energy_v3(dataset: DataSet, raws: Sequence[Raw], prompt_scale: float) -> Iterator[Row]:
    """Steady state of a server; tensor parallelism 1 on several GPUs is not unsharded."""
    for raw in raws:
        queueing = float(raw["p99_itl_ms"]) > QUEUEING_MS
        yield _row(
            dataset,
            raw,
            concurrency=float(raw["batch_size_mean"]),
            prompt_tokens=_assumed_prompt(raw, prompt_scale),
            prompt_tokens_assumed=True,
            output_tokens=float(raw["output_tokens_mean"]),
            energy_joules=float(raw["energy_joules_per_request"]),
            power_watts=float(raw["avg_power_watts"]),
            output_tokens_per_s=float(raw["output_throughput_tokens_per_sec"]),
            time_per_output_token_s=float(raw["median_itl_ms"]) / 1000,
            flags=frozenset({Flag.QUEUEING}) if queueing else frozenset(),
        )


def _splitwise(dataset: DataSet, raws: Sequence[Raw], prompt_scale: float) -> Iterator[Row]:
    """The repeats of a configuration share one power figure: they become one row."""
    repeats = defaultdict(list)
    for raw in raws:
        key = (raw["model"], raw["num_gpus"], raw["batch_size"], raw["prompt_tokens"])
        repeats[key].append(raw)
    for same in repeats.values():
        raw, batch = same[0], int(same[0]["batch_size"])
        e2e_s = fmean(float(repetition["e2e_latency_ms"]) for repetition in same) / 1000
        output_tokens = float(raw["output_tokens"])
        yield _row(
            dataset,
            raw,
            concurrency=batch,
            prompt_tokens=float(raw["prompt_tokens"]),
            output_tokens=output_tokens,
            energy_joules=fmean(
                float(repetition["energy_joules_batch_derived"]) for repetition in same
            )
            / batch,
            power_watts=float(raw["avg_power_watts_per_gpu_derived"]) * int(raw["num_gpus"]),
            output_tokens_per_s=batch * output_tokens / e2e_s,
            time_per_output_token_s=fmean(
                float(repetition["decode_step_latency_ms"]) for repetition in same
            )
            / 1000,
            flags=frozenset({Flag.ASSUMED_WATTS}),
        )


def _why_not_splitwise(raw: Raw) -> str | None:
    # The flag marks every prompt of 8192 tokens; Bloom's follow the trend of the shorter ones.
    if raw["quality_flag"] == "suspect_near_idle_power" and "bloom" not in raw["model"]:
        return "power near idle under load"
    if raw["quality_flag"].startswith("early_stop"):
        return "the output ended early"
    return None


def _released(dataset: DataSet, raws: Sequence[Raw], prompt_scale: float) -> Iterator[Row]:
    """Rows of three of the other sets, in the columns of a batch estimate; neither power nor time.

    They keep the name of the set that they are from: one laboratory, one rig.
    """
    for raw in raws:
        assumed = raw["prompt_assumed"] == "1"
        scale = prompt_scale if assumed else 1.0
        row = _row(
            dataset,
            raw,
            concurrency=float(raw["concurrency"]),
            prompt_tokens=float(raw["prompt_tokens"]) * scale,
            prompt_tokens_assumed=assumed,
            output_tokens=float(raw["output_tokens"]),
            energy_joules=float(raw["energy_wh"]) * JOULES_PER_WATT_HOUR,
        )
        yield replace(row, source=raw["source"])


DATA_SETS = (
    DataSet("joulebench", "joulebench/joulebench.csv.gz", _joulebench, _why_not_joulebench),
    DataSet(
        "energy_bench_prior_runs",
        "joulebench/energy_bench_prior_runs.csv.gz",
        _prior_runs,
        _why_not_prior_run,
    ),
    DataSet("mlenergy_v1", "mlenergy_v1_legacy/mlenergy_v1.csv.gz", _ml_energy_v1),
    DataSet(
        "mlenergy_v2",
        "mlenergy_v2_a100/mlenergy_v2_a100.csv.gz",
        _ml_energy_v2,
        engine_version="0.5.4",
    ),
    DataSet(
        "mlenergy_v3",
        "mlenergy_v3_h100/mlenergy_v3_h100.csv.gz",
        _ml_energy_v3,
        engine_version="0.11.1",
    ),
    DataSet(
        "splitwise",
        "splitwise_sim/splitwise_a100_power.csv.gz",
        _splitwise,
        _why_not_splitwise,
        engine="unknown",
    ),
    DataSet("released", "released/rows.csv", _released),
)
