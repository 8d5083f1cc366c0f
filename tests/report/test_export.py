"""The verb export: Parquet by day, with the published schema, and reports of it."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llm_carbon_meter.cli import main
from llm_carbon_meter.exporters.log_line import COLUMNS
from tests.support.made.usual import a_usual_line
from tests.support.reports import NOON, at, line, made, new_line, write

TYPES = {
    str: "string",
    int: "int64",
    float: "double",
    bool: "bool",
    list: "list<element: string>",
    dict: "string",
}


def exported(folder: Path, *records: dict[str, object] | str) -> Path:
    """The folder of an export of some records."""
    log, target = write(folder / "requests.jsonl", *records), folder / "parquet"
    assert main(["export", str(log), "--parquet", str(target)]) == 0
    return target


def test_parquet_has_the_published_columns_and_types(tmp_path: Path) -> None:
    """Those of the table, in its order, whatever the lines had of them."""
    (file,) = exported(tmp_path, new_line()).rglob("*.parquet")
    schema = pq.read_schema(file)
    found = {field.name: str(field.type) for field in schema if field.name != "day"}
    assert found == {column.name: TYPES[column.kind] for column in COLUMNS}


def test_every_value_of_a_line_is_in_parquet(tmp_path: Path) -> None:
    """Of a usual one; what it has not is null."""
    usual = a_usual_line()
    (file,) = exported(tmp_path, usual).rglob("*.parquet")
    (row,) = pq.ParquetFile(file).read().to_pylist()
    row["deployment"] = json.loads(row["deployment"])
    assert {name: value for name, value in row.items() if value is not None} == usual


def test_days_are_folders_and_both_versions_are_one_form(tmp_path: Path) -> None:
    """Days of UTC; features and estimates of version 1 are in the columns of version 2."""
    folder = exported(tmp_path, line(), new_line(), line(**at(NOON + 86_400)))
    assert sorted(path.name for path in folder.iterdir()) == ["day=2026-03-01", "day=2026-03-02"]
    rows = pq.read_table(folder / "day=2026-03-01").to_pylist()
    only_one = ("version", "estimate_joules", "estimate_facility")
    first, second = ({**row, **dict.fromkeys(only_one)} for row in rows)
    assert first == second
    assert first["arrived_unix_s"] == NOON
    assert first["estimate_calibrated_joules"] == 2880.0


def test_a_report_of_parquet_is_that_of_the_log(tmp_path: Path) -> None:
    """The same groups, from a folder, a pattern or beside a log."""
    records = [new_line(tenant=name, output_tokens=50) for name in "abb"]
    folder = exported(tmp_path, *records)
    of_log = made(tmp_path / "requests.jsonl", by="tenant")
    for address in (folder, folder / "*" / "*.parquet", folder / "day=2026-03-01/lines.parquet"):
        assert made(address, by="tenant").groups == of_log.groups
    assert made(tmp_path, by="tenant").requests == 6


def test_what_is_left_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line that is none."""
    exported(tmp_path, new_line(), "{", new_line(energy_joules=1e300))
    said = capsys.readouterr().out
    assert "1 lines of 1 days" in said
    assert "2 broken lines are left out" in said
    assert "line 2: not a record" in said
    assert "line 3: no use for a report: energy_joules" in said


def test_a_day_is_exchanged_only_when_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file would be gone; other days stay, and nothing half done is left."""
    folder = exported(tmp_path, new_line())
    more = write(tmp_path / "more", new_line(), new_line(), line(**at(NOON + 86_400)))
    assert main(["export", str(more), "--parquet", str(folder)]) == 1
    assert "has day=2026-03-01 already; give --replace" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["day=2026-03-01"]
    assert main(["export", str(more), "--parquet", str(folder), "--replace"]) == 0
    assert made(folder).requests == 3


@pytest.mark.parametrize(
    ("text", "target", "error"),
    [
        ("{", "parquet", "there is no line to export; .*line 1: not a record"),
        ("", "parquet", "there is no line to export; give a log"),
        (json.dumps(new_line()), "log/parquet", "cannot be written: .*give another --parquet"),
    ],
)
def test_what_cannot_be_exported_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, target: str, error: str
) -> None:
    """One line, and no traceback."""
    log = write(tmp_path / "log", text)
    assert main(["export", str(log), "--parquet", str(tmp_path / target)]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert re.search(error, told)


def test_damaged_parquet_is_named_and_left_out(tmp_path: Path) -> None:
    """Cut, damaged inside, or none at all: the other files are in the report."""
    folder = exported(tmp_path, *(new_line(id=str(number)) for number in range(2000)))
    (file,) = folder.rglob("*.parquet")
    whole = file.read_bytes()
    (folder / "cut.parquet").write_bytes(whole[:-20])
    (folder / "none.parquet").write_bytes(b"no parquet")
    middle = len(whole) // 3
    (folder / "hit.parquet").write_bytes(whole[:100] + bytes(middle) + whole[100 + middle :])
    report = made(folder)
    assert report.requests == 2000
    named = sorted(text.split(": ")[0].rpartition("/")[2] for text in report.broken.texts)
    assert named == ["cut.parquet", "hit.parquet", "none.parquet"]


def test_foreign_parquet_is_judged_like_a_line(tmp_path: Path) -> None:
    """A column of another type, figures that cannot be, columns of nobody."""
    import pyarrow as pa

    rows = [{**new_line(colour="red"), "energy_joules": value} for value in ("3600", "x", "1e300")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    report = made(tmp_path)
    assert (report.requests, report.broken.lines) == (1, 2)
    assert (
        "other.parquet, line 2: no use for a report: energy_joules is x" in report.broken.texts[0]
    )
    pq.write_table(pa.table({"a": [1]}), tmp_path / "none.parquet")
    assert made(tmp_path).broken.lines == 3


def test_a_day_that_the_log_has_lost_lines_of_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Retention has removed them; the others of its days are exchanged."""
    day = 86_400
    lines = [new_line(arrived_unix_s=NOON + day * (number // 2)) for number in range(4)]
    exported(tmp_path, *lines)
    write(tmp_path / "requests.jsonl", lines[1], *lines[2:], lines[3])
    capsys.readouterr()
    target = tmp_path / "parquet"
    assert (
        main(["export", str(tmp_path / "requests.jsonl"), "--parquet", str(target), "--replace"])
        == 0
    )
    said = capsys.readouterr().out
    assert "3 lines of 1 days" in said
    assert "day=2026-03-01 stays as it is: it has more lines than the log" in said
    assert main(["report", str(target)]) == 0
    assert "Llama  measured         5" in capsys.readouterr().out.replace("\t", " ")
