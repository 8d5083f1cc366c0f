"""The training table: gross joules per request, every trap handled, every refusal counted."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.physics.model_list import built_in_model
from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.training.data.dataset import read_table, summary
from llm_carbon_meter.training.data.files import Refused
from llm_carbon_meter.training.data.rows import Flag, Row, Table, architecture_group
from llm_carbon_meter.training.data.withheld import why_withheld
from tests.support.made.synthetic import (
    JOULEBENCH,
    PRIOR_RUNS,
    RELEASED,
    SPLITWISE,
    V1,
    V2,
    V3,
    tables,
    written,
)


def table_with(folder: Path, path: str, *rows: dict[str, Any], **options: float) -> Table:
    """The synthetic folder with the first row of one set changed in turn by each of ``rows``."""
    content = tables()
    content[path] = [{**content[path][0], **changes} for changes in rows]
    return read_table(folder, accepted=written(folder, content), **options)


def only_row(folder: Path, path: str, source: str, **changes: Any) -> Row:
    """The one row that a changed set gives."""
    (row,) = (r for r in table_with(folder, path, changes).rows if r.source == source)
    return row


def test_every_set_gives_its_rows(tmp_path: Path) -> None:
    """Nothing of the synthetic folder is refused; repeats of Splitwise become one row."""
    table = read_table(tmp_path, accepted=written(tmp_path, tables()))
    assert Counter(row.source for row in table.rows) == {
        "joulebench": 1,
        "energy_bench_prior_runs": 2,
        "mlenergy_v1": 1,
        "mlenergy_v2": 2,
        "mlenergy_v3": 1,
        "splitwise": 1,
    }
    assert not table.refused


def test_joulebench_energy_is_gross_and_per_request(tmp_path: Path) -> None:
    """800 J gross of a batch of 4 are 200 J, whatever is left above idle."""
    row = only_row(tmp_path, JOULEBENCH, "joulebench")
    assert (row.energy_joules, row.concurrency, row.gpu) == (200.0, 4, "A100-PCIe")
    assert row.noise == pytest.approx(0.02)
    assert (row.dtype, row.quantisation, row.engine_version) == ("float16", "none", "5.2.0")
    assert not row.prompt_tokens_assumed


def test_joulebench_validation_runs_are_a_set_of_their_own(tmp_path: Path) -> None:
    """They were measured under another version and never mix with the main set."""
    assert only_row(tmp_path, JOULEBENCH, "joulebench_validation", validation_run=True)


def test_rows_that_their_author_excluded_are_refused(tmp_path: Path) -> None:
    """Unoptimised and offloaded paths are counted, not used."""
    table = table_with(tmp_path, JOULEBENCH, {"author_excluded": True})
    assert table.refused == [Refused("joulebench", "excluded by its author", 1)]


def test_prior_runs_share_the_weight_of_their_configuration(tmp_path: Path) -> None:
    """Two runs weigh a half each and carry their spread; prompts of a batch were padded."""
    table = table_with(
        tmp_path, PRIOR_RUNS, {"energy_joules_batch": 990}, {"energy_joules_batch": 1010}
    )
    first, second = (row for row in table.rows if row.source == "energy_bench_prior_runs")
    assert first.weight == second.weight == 0.5
    assert first.noise == second.noise == pytest.approx(math.sqrt(200) / 1000)
    assert first.energy_joules == 495.0
    assert first.flags == {Flag.PADDED}
    assert first.engine_version == "4.57.6"


def test_prior_runs_with_too_little_energy_are_refused(tmp_path: Path) -> None:
    """Below 0.93 of power times time (here 1000 J) the run lost samples."""
    table = table_with(
        tmp_path, PRIOR_RUNS, {"energy_joules_batch": 929}, {"energy_joules_batch": 931}
    )
    assert [each.count for each in table.refused] == [1]
    assert "0.93" in table.refused[0].reason


def test_quantised_prior_runs_train_and_are_never_held_out(tmp_path: Path) -> None:
    """int8 and nf4 were measured on one model: held out, nothing could be known of them."""
    table = table_with(tmp_path, PRIOR_RUNS, {"quantization_mode": "nf4"})
    (row,) = (r for r in table.rows if r.source == "energy_bench_prior_runs")
    assert Flag.QUANTISED in row.flags
    assert row in table.for_training()
    assert row not in table.for_evaluation()


@pytest.mark.parametrize(("scale", "tokens"), [(1 / 3, 50.0), (1.0, 150.0), (3.0, 450.0)])
def test_assumed_prompt_lengths_are_marked_and_scaled(
    tmp_path: Path, scale: float, tokens: float
) -> None:
    """The sensitivity factor reaches assumed lengths and no others."""
    table = table_with(tmp_path, V2, {}, prompt_scale=scale)
    rows = {row.source: row for row in table.rows}
    assert rows["mlenergy_v2"].prompt_tokens == pytest.approx(tokens)
    assert rows["mlenergy_v2"].prompt_tokens_assumed
    assert rows["joulebench"].prompt_tokens == 25.0
    assert rows["splitwise"].prompt_tokens == 512.0


def test_multimodal_rows_are_kept_without_a_prompt_length(tmp_path: Path) -> None:
    """Image tokens are unknown: nan, flagged, and out of training."""
    table = table_with(tmp_path, V3, {"task": "image-chat", "model": "Qwen/Qwen3-VL-8B-Instruct"})
    (row,) = (r for r in table.rows if r.source == "mlenergy_v3")
    assert math.isnan(row.prompt_tokens)
    assert row.flags == {Flag.MULTIMODAL}
    assert row not in table.for_training()


def test_ml_energy_v3_keeps_the_number_of_gpus_and_the_engine_of_its_source(tmp_path: Path) -> None:
    """Tensor parallelism 1 on two GPUs stays as stated; the version is not in the file."""
    row = only_row(tmp_path, V3, "mlenergy_v3")
    assert (row.num_gpus, row.tensor_parallel, row.expert_parallel) == (2, 1, 2)
    assert (row.engine, row.engine_version) == ("vllm", "0.11.1")
    assert row.family == "qwen3_moe"
    assert row.time_per_output_token_s == pytest.approx(0.015)


def test_low_precision_and_queueing_are_flagged(tmp_path: Path) -> None:
    """FP8 weights compute in 16 bits at the edges; a second between tokens is a queue."""
    row = only_row(tmp_path, V3, "mlenergy_v3", dtype="fp8", p99_itl_ms=1500)
    assert row.flags == {Flag.LOW_PRECISION, Flag.QUEUEING}
    assert (row.dtype, row.quantisation) == ("bfloat16", "fp8")


def test_unstated_gpu_variants_are_flagged(tmp_path: Path) -> None:
    """The first leaderboard says A100 or V100 and no more."""
    assert only_row(tmp_path, V1, "mlenergy_v1", gpu="V100").flags == {Flag.GPU_VARIANT_UNSTATED}
    assert not only_row(tmp_path, V1, "mlenergy_v1", gpu="A40").flags


def test_splitwise_repeats_become_one_row_on_assumed_watts(tmp_path: Path) -> None:
    """One power figure for the repeats: 960 W x 5.1 s for 2 requests, and the flag says so."""
    table = read_table(tmp_path, accepted=written(tmp_path, tables()))
    (row,) = (r for r in table.rows if r.source == "splitwise")
    assert row.energy_joules == pytest.approx(960 * 5.1 / 2)
    assert row.power_watts == 960.0
    assert row.flags == {Flag.ASSUMED_WATTS}
    assert row.engine == "unknown"


@pytest.mark.parametrize(
    ("model", "flag", "reason"),
    [
        ("llama2-70b", "suspect_near_idle_power", "power near idle under load"),
        ("bloom-176b", "early_stop_e2e_shorter_than_expected", "the output ended early"),
        ("bloom-176b", "suspect_near_idle_power", None),
    ],
)
def test_suspect_splitwise_rows_are_refused_except_plausible_bloom(
    tmp_path: Path, model: str, flag: str, reason: str | None
) -> None:
    """Bloom at 8192 tokens follows the trend of its shorter prompts."""
    table = table_with(tmp_path, SPLITWISE, {"model": model, "quality_flag": flag})
    assert [each.reason for each in table.refused] == ([reason] if reason else [])


def test_released_rows_belong_to_the_set_that_they_are_from(tmp_path: Path) -> None:
    """Wh of one request, in the columns of a batch estimate; assumed prompts are scaled."""
    table = table_with(tmp_path, RELEASED, {}, {"prompt_assumed": 0}, prompt_scale=3.0)
    assumed, stated = (row for row in table.rows if row.spec.name == "Gemma-2b")
    assert (assumed.source, assumed.gpu, assumed.num_gpus) == ("mlenergy_v2", "H100", 2)
    assert assumed.energy_joules == pytest.approx(72.0)
    assert (assumed.prompt_tokens, stated.prompt_tokens) == (450.0, 150.0)
    assert assumed.prompt_tokens_assumed
    assert assumed.power_watts is None
    assert assumed.output_tokens_per_s is None


def test_exact_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    """The same row twice is one measurement."""
    table = table_with(tmp_path, V2, {}, {}, {})
    assert table.refused == [Refused("mlenergy_v2", "exact duplicate", 2)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "NVIDIA B200"}, "B200"),
        ({"gpu": "GB200"}, "B200"),
        ({"gpu": "NVIDIA GH200 480GB"}, "GH200"),
        ({"gpu": "gh-200"}, "GH200"),
        ({"gpu": "NVIDIA A2"}, "A2"),
        ({"gpu": "NVIDIA A800-SXM4-80GB"}, "A800"),
        ({"gpu": "NVIDIA GeForce RTX 4090 D"}, "RTX 4090D"),
        ({"gpu": "RTX4090D"}, "RTX 4090D"),
        ({"gpu": "NVIDIA GeForce RTX 5090"}, "RTX 5090"),
        ({"source_path": "watt_counts/h100.csv"}, "Watt Counts"),
        ({"source_path": "WattCounts"}, "Watt Counts"),
        ({"source_path": "argonne-lcf/LLM-Inference-Bench"}, "Argonne's LLM-Inference-Bench"),
        ({"task": "llm_inference_bench"}, "Argonne's LLM-Inference-Bench"),
    ],
)
def test_withheld_rows_are_refused_even_in_an_accepted_file(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    """What the predictor is judged on never reaches training, whichever way it came in."""
    table = table_with(tmp_path, V3, {}, changes)
    assert [(each.source, each.count) for each in table.refused] == [("mlenergy_v3", 1)]
    assert table.refused[0].reason == f"withheld: {reason}"
    assert sum(row.source == "mlenergy_v3" for row in table.rows) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "google/gemma-2-9b-it"},
        {"model": "mistralai/Mixtral-8x7B-Instruct-v0.1"},
        {"engine_version": "0.5.4"},
        {"gpu": "H200"},
        {"gpu": "A100-PCIe"},
        {"gpu": "RTX4090"},
    ],
)
def test_what_was_released_is_not_withheld(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Gemma, Mixtral and old vLLM on H100 were kept apart once; their rows may teach."""
    assert not table_with(tmp_path, V3, changes).refused


@pytest.mark.parametrize("gpu", ["NVIDIA A2000", "NVIDIA A20", "A16", "NVIDIA GeForce RTX 4090"])
def test_gpus_of_like_names_are_not_withheld(gpu: str) -> None:
    """Only the names that are listed."""
    assert why_withheld({}, gpu) is None


@pytest.mark.parametrize("path", list(tables()))
def test_a_file_with_one_changed_byte_is_refused_whole(tmp_path: Path, path: str) -> None:
    """The other sets are read; the reason shows both sums."""
    accepted = written(tmp_path, tables())
    content = bytearray((tmp_path / path).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / path).write_bytes(content)
    table = read_table(tmp_path, accepted=accepted)
    assert [(each.source, each.count) for each in table.refused] == [(path, 1)]
    assert accepted[path][:12] in table.refused[0].reason
    assert len({row.source for row in table.rows}) == (6 if path in (V2, RELEASED) else 5)


def test_synthetic_files_are_not_in_the_package_manifest(tmp_path: Path) -> None:
    """Without a manifest of their own nothing of them is accepted."""
    written(tmp_path, tables())
    table = read_table(tmp_path)
    assert not table.rows
    assert len(table.refused) == 7


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    """One error says what is missing and what to do."""
    accepted = written(tmp_path, tables())
    for path in (V1, SPLITWISE):
        (tmp_path / path).unlink()
    with pytest.raises(ConfigError, match=rf"lacks {V1}, {SPLITWISE}; fetch them .*--data"):
        read_table(tmp_path, accepted=accepted)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("RWKV/rwkv-raven-7b", "RWKV/rwkv-raven-7b is a recurrent network without attention"),
        ("lmsys/fastchat-t5-3b-v1.0", "lmsys/fastchat-t5-3b-v1.0 is an encoder and a decoder"),
        ("nobody/knows", "nobody/knows: model 'nobody/knows' is not in data/models.json"),
    ],
)
def test_models_without_a_shape_are_refused_by_name(
    tmp_path: Path, model: str, reason: str
) -> None:
    """Each is counted with what is wrong with it."""
    table = table_with(tmp_path, V1, {"model": model}, {"model": model, "gpu": "A100"})
    assert table.refused == [Refused("mlenergy_v1", reason, 2)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Llama-3-8B", "Llama-3.1-8B", True),
        ("Mistral-7B", "Llama-3.1-8B", True),
        ("CodeLlama-70B", "Llama-3.1-70B", True),
        ("Llama-2-70B", "Llama-3.3-70B", True),
        ("BAIR/koala-7b", "tatsu-lab/alpaca-7B", True),
        ("CodeLlama-7B", "lmsys/vicuna-7B", True),
        ("LLaMA-7B", "Llama-3.1-8B", False),
        ("Mixtral-8x7B", "Mistral-7B", False),
        ("Qwen3-8B", "Llama-3.1-8B", False),
        ("Qwen3-30B-A3B", "Qwen3-235B-A22B", False),
    ],
)
def test_near_twins_are_one_architecture(one: str, other: str, same: bool) -> None:
    """Width, depth, KV cache and experts decide, not names."""
    groups = [architecture_group(built_in_model(name)) for name in (one, other)]
    assert (groups[0] == groups[1]) == same


def test_the_summary_names_sets_and_refusals(tmp_path: Path) -> None:
    """Rows, groups, GPUs, engines, and every reason with its count."""
    text = summary(table_with(tmp_path, V2, {}, {"model": "nobody/knows"}))
    assert "hf_transformers 5.2.0" in text
    assert "A100-40GB, H100; vllm 0.5.4" in text
    assert "nobody/knows" in text
    (total,) = (line for line in text.splitlines() if line.startswith("all "))
    assert total.split()[1:3] == ["8", "8"]


def test_the_public_files_are_those_of_the_manifest(public_data: Path) -> None:
    """Nothing is refused whole, and the documented traps are counted as documented."""
    table = read_table(public_data)
    refused = {(each.source, each.reason): each.count for each in table.refused}
    assert not any("whole file" in reason for _, reason in refused)
    assert not any(reason.startswith("withheld") for _, reason in refused)
    assert refused["joulebench", "excluded by its author"] == 70
    assert sum(n for (_, reason), n in refused.items() if "0.93" in reason) == 48
    assert refused["splitwise", "exact duplicate"] == 40
    assert refused["splitwise", "power near idle under load"] == 15
    assert refused["splitwise", "the output ended early"] == 3
    assert refused["mlenergy_v1", "RWKV/rwkv-raven-7b is a recurrent network without attention"]


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("joulebench", 316 + 60),
        ("energy_bench_prior_runs", 500),
        ("mlenergy_v1", 260),
        ("mlenergy_v2", 125 + 222),
        ("mlenergy_v3", 373 + 16),
    ],
)
def test_every_public_row_is_used_or_refused(public_data: Path, source: str, rows: int) -> None:
    """None is lost on the way."""
    table = read_table(public_data)
    used = sum(row.source.removesuffix("_validation") == source for row in table.rows)
    assert used + sum(each.count for each in table.refused if each.source == source) == rows


def test_public_rows_are_plausible(public_data: Path) -> None:
    """Energy is power times time; single runs lose up to 7 % of it at their edges."""
    table = read_table(public_data)
    assert sum(row.source == "splitwise" for row in table.rows) == 41
    for row in table.rows:
        assert row.energy_joules > 0
        assert row.weight > 0
        if row.power_watts is None:  # released without
            continue
        assert row.output_tokens_per_s
        joules = row.power_watts * row.output_tokens / row.output_tokens_per_s
        assert row.energy_joules == pytest.approx(joules, rel=0.075), row
