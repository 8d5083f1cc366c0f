"""Which files an address means: nothing that belongs to a log is left out in silence."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_carbon_meter.cli import main
from llm_carbon_meter.records import MeterError
from llm_carbon_meter.report.files import files_of
from tests.support.reports import line, made, new_line, write

ROTATED = "20260301T000000.000000Z"


def names(folder: Path, address: str) -> Sequence[str]:
    """Of the files, as paths from a folder."""
    files = files_of(str(folder / address))
    return [os.path.relpath(file, folder) for file in (*files.json, *files.parquet)]


def touch(folder: Path, *files: str) -> None:
    """Make empty files."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def test_a_log_is_read_with_its_rotated_files_and_those_of_its_siblings(tmp_path: Path) -> None:
    """Oldest first, also past nine; of the other API servers too, one that is rotated away too."""
    own = [f"log.{name}" for name in ("10", "2", "1", f"{ROTATED}.gz")]
    others = ["log-1.1", "log-1", f"log-2.{ROTATED}", "log-10"]
    touch(tmp_path, *own, "log", *others, "log.gz", "other", "log-x", "log-1x", "log-2.part")
    assert names(tmp_path, "log") == [*own, "log", *others]
    (tmp_path / "log").unlink()
    assert names(tmp_path, "log") == [*own, *others]
    assert names(tmp_path, "log-1") == ["log-1.1", "log-1"]


def test_requests_of_two_servers_are_all_in_the_report(tmp_path: Path) -> None:
    """Packed, rotated, old and new lines together."""
    log = write(tmp_path / "requests.jsonl", line(), new_line())
    write(tmp_path / "requests.jsonl-1", new_line())
    packed = tmp_path / f"requests.jsonl-1.{ROTATED}.gz"
    packed.write_bytes(gzip.compress(json.dumps(new_line()).encode()))
    report = made(log)
    (group,) = report.groups
    assert group.requests == 4
    assert group.joules == pytest.approx(4 * 3600.0)
    assert packed.name in str(report.files)


def test_a_file_that_is_being_packed_is_read_once(tmp_path: Path) -> None:
    """Whatever stands beside it, also in a folder."""
    half = f"requests.jsonl.{ROTATED}"
    touch(tmp_path, half, f"{half}.gz", f"{half}.part", "requests.jsonl")
    assert names(tmp_path, "requests.jsonl") == [half, "requests.jsonl"]
    assert sorted(names(tmp_path, ".")) == sorted([half, "requests.jsonl"])


def test_a_folder_has_logs_and_parquet_at_any_depth(tmp_path: Path) -> None:
    """And other files, which are not read."""
    ours = ["a.jsonl", "b/x.ndjson", f"b/x.jsonl-2.{ROTATED}.gz", "c/day=2026-03-01/x.parquet"]
    touch(tmp_path, *ours, "readme.md", "b/x.jsonl.part", "c/picture.png", "server.log", "sci.json")
    assert sorted(names(tmp_path, ".")) == sorted(ours)


def test_a_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    """With the files that match it and no others."""
    touch(tmp_path, "a/log.gz", "b/log.gz", "b/log")
    assert names(tmp_path, "*/log.gz") == ["a/log.gz", "b/log.gz"]
    assert names(tmp_path, "**/log") == ["b/log"]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    """Of a file and of its folder; quotes are part of it, too."""
    for folder in (tmp_path / "plain", tmp_path / "f[x]'*"):
        for number, name in enumerate(("log[1].jsonl", "log*.jsonl", "it's.jsonl", 'a"b?.jsonl')):
            log = write(folder / name, *[line()] * (number + 1))
            assert made(log).requests == number + 1
        assert made(folder).requests == 10


@pytest.mark.parametrize("address", ["nothing", "no/folder/log", "*.jsonl", "empty"])
def test_nothing_is_an_error(tmp_path: Path, address: str) -> None:
    """Nothing is not 0 Wh."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(MeterError, match=r"there is no request log .*give the file"):
        files_of(str(tmp_path / address))


@pytest.mark.parametrize(
    ("address", "json_files", "parquet"),
    [
        ("s3://bucket/logs", [], ["s3://bucket/logs/**/*.parquet"]),
        ("s3://bucket/logs/", [], ["s3://bucket/logs/**/*.parquet"]),
        ("s3://bucket/day=*/x.parquet", [], ["s3://bucket/day=*/x.parquet"]),
        ("gs://bucket/requests.jsonl.gz", ["gs://bucket/requests.jsonl.gz"], []),
    ],
)
def test_object_stores_are_named_by_address(
    address: str, json_files: list[str], parquet: list[str]
) -> None:
    """A folder there has Parquet."""
    files = files_of(address)
    assert files.are_remote
    assert (files.json, files.parquet) == (tuple(json_files), tuple(parquet))


def test_an_object_store_without_its_extension_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it can neither be loaded nor fetched."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "llm_carbon_meter.report.database.EXTENSIONS", ("no_such_extension_of_duckdb",)
    )
    assert main(["report", "s3://bucket/x.parquet"]) == 1
    text = capsys.readouterr().err
    assert "object stores need DuckDB's extensions" in text
    assert len(text.splitlines()) == 1
