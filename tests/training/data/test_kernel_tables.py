"""Kernel tables: latency of every row, power only where the reading is the kernel's own."""

import gzip
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llm_carbon_meter.records import ConfigError
from llm_carbon_meter.training.data.files import Refused
from llm_carbon_meter.training.data.kernel_tables import (
    FOLDER,
    KernelTable,
    kernel_tables,
    num_readings,
    read_kernel_table,
)

PATH = FOLDER + "gemm.csv.gz"
HEADER = (
    "gpu,engine,engine_version,op,kernel_source,dtype,m,n,k,latency_ms,avg_power_watts,"
    "power_limit_watts,energy_joules,source_path"
)


def gemm(m: int, n: int, latency_ms: float, watts: float) -> str:
    """A line of the table."""
    start = f"NVIDIA H200,VLLM,0.22.0,gemm,vllm_default,bfloat16,{m},{n},4096"
    return f"{start},{latency_ms},{watts},700.0,0.1,h200_sxm/gemm.parquet"


def written(folder: Path, *lines: str) -> dict[str, str]:
    """Write the table and return its manifest."""
    file = folder / PATH
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))
    return {PATH: hashlib.sha256(file.read_bytes()).hexdigest()}


def table_of(folder: Path, *lines: str) -> KernelTable:
    """The table that these lines make."""
    table = read_kernel_table(folder, PATH, written(folder, *lines))
    assert isinstance(table, KernelTable)
    return table


def test_power_needs_a_long_kernel_and_five_readings(tmp_path: Path) -> None:
    """A mean of 7 readings has sevenths of a milliwatt; one reading has whole ones."""
    sevenths, whole = 500.0 + 1 / 7000, 500.0
    table = table_of(
        tmp_path,
        HEADER,
        gemm(1, 8, 0.25, round(sevenths, 7)),
        gemm(2, 8, 0.15, round(sevenths, 7)),
        gemm(3, 8, 0.25, whole),
    )
    assert np.isfinite(table.power_watts).tolist() == [True, False, False]
    assert table.power_readings.tolist() == [7, 7, 1]
    assert table.latency_s == pytest.approx([0.25e-3, 0.15e-3, 0.25e-3])
    assert (table.gpu, table.engine_version, table.op) == ("H200", "0.22.0", "gemm")


@pytest.mark.parametrize("readings", range(1, 31))
def test_the_number_of_readings_is_told_from_the_digits(readings: int) -> None:
    """The mean of n whole milliwatts, rounded to 1e-7 W, gives n back."""
    watts = np.round(np.array([300.0 + (1 / readings) / 1000]), 7)
    assert num_readings(watts).tolist() == [readings]


def test_more_readings_than_can_be_told_count_as_more() -> None:
    """No number up to 30 fits 1/97 of a milliwatt."""
    assert num_readings(np.array([300 + 1 / 97000])).tolist() == [31]


def test_rows_of_one_matrix_are_one_shape_family(tmp_path: Path) -> None:
    """Neighbouring m are near-copies and are held out together."""
    lines = [gemm(m, n, 1.0, 500.0) for m, n in ((1, 8), (2, 8), (1, 16))]
    assert table_of(tmp_path, HEADER, *lines).shape_family.tolist() == [0, 0, 1]


def test_exact_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    """Some tables hold copies."""
    table = table_of(tmp_path, HEADER, *[gemm(1, 8, 1.0, 500.0)] * 3)
    assert (len(table.latency_s), table.num_duplicates) == (1, 2)


def test_tables_without_power_have_none(tmp_path: Path) -> None:
    """Energy is never made from latency alone; an empty window is no error."""
    header = (
        "gpu,engine,engine_version,op,kernel_source,dtype,kv_cache_dtype,batch_size,"
        "input_tokens_per_sequence,num_heads,num_key_value_heads,head_dim,context_step_tokens,"
        "window_size,latency_ms,source_path"
    )
    line = (
        "NVIDIA L40S,VLLM,0.24.0,context_attention,fa2,bfloat16,bfloat16,2,16384,64,8,64,0,,26.7,x"
    )
    table = table_of(tmp_path, header, line)
    assert np.isnan(table.power_watts).all()
    assert table.power_readings.tolist() == [0]
    assert table.columns["num_heads"].tolist() == [64.0]


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    """One more line and the sum is another."""
    accepted = written(tmp_path, HEADER, gemm(1, 8, 1.0, 500.0))
    written(tmp_path, HEADER, gemm(1, 8, 1.0, 501.0))
    (refused,) = kernel_tables(tmp_path, accepted)
    assert isinstance(refused, Refused)
    assert "sha256" in refused.reason


def test_missing_tables_are_named(tmp_path: Path) -> None:
    """The error comes before anything is read."""
    with pytest.raises(ConfigError, match=r"gemm\.csv\.gz"):
        kernel_tables(tmp_path, {PATH: ""})


def test_the_public_tables_give_the_documented_numbers(public_data: Path) -> None:
    """Rows, duplicates, and rows with trusted power."""
    latency: Counter[str] = Counter()
    power: Counter[str] = Counter()
    duplicates = 0
    for table in kernel_tables(public_data):
        assert isinstance(table, KernelTable)
        assert (table.latency_s > 0).all()
        latency[table.gpu] += len(table.latency_s)
        power[table.gpu] += int(np.isfinite(table.power_watts).sum())
        duplicates += table.num_duplicates
    assert sum(latency.values()) == 599_687 + 606_474 - 185
    assert duplicates == 185
    assert +power == {"H200": 41_783, "B200": 32_749, "GB200": 22_557}
