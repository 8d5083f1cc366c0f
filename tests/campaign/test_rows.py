"""The file of a campaign survives whatever happens to its writer."""

import csv
from pathlib import Path

import pytest

from llm_carbon_meter.campaign.rows import COLUMNS, Measurements, Status, occasion, write_parquet
from llm_carbon_meter.records import ConfigError

ROW = {
    "model": "toy",
    "batch": 4,
    "phase": "prefill",
    "status": Status.OK,
    "joules": 12.5,
    "note": 'says "no", twice',
}


def written(path: Path, *rows: dict[str, object]) -> Measurements:
    """A file with some rows, closed."""
    file = Measurements(path)
    for row in rows:
        file.append(row)
    file.close()
    return file


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Numbers, words and nothing at all; the heading once."""
    path = tmp_path / "new folder" / "m.csv"
    written(path, ROW)
    written(path, ROW)
    with path.open(newline="") as lines:
        found = list(csv.DictReader(lines))
    assert [each["joules"] for each in found] == ["12.5", "12.5"]
    assert found[0]["note"] == ROW["note"]
    assert found[0]["driver"] == ""
    assert tuple(found[0]) == COLUMNS


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_half_a_line_is_cut_off_and_the_rest_stays(tmp_path: Path, kept: float) -> None:
    """Somebody was killed while writing the third row."""
    path = tmp_path / "m.csv"
    written(path, ROW, ROW)
    before = path.read_bytes()
    written(path, ROW)
    last = path.read_bytes()[len(before) :]
    path.write_bytes(before + last[: int(kept * len(last))])
    assert len(written(path, ROW).rows) == 3
    assert path.read_bytes() == before + last


def test_repetitions_are_counted_by_what_they_repeat(tmp_path: Path) -> None:
    """Only good ones; a row that never fits is not tried again."""
    path = tmp_path / "m.csv"
    other = {**ROW, "batch": 8}
    written(
        path,
        ROW,
        {**ROW, "status": Status.THROTTLED},
        {**ROW, "status": Status.FAILED},
        ROW,
        {**other, "status": Status.OUT_OF_MEMORY},
    )
    file = written(path)
    assert dict(file.good()) == {occasion(ROW): 2}
    assert file.hopeless() == {occasion(other)}


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """Nothing of it is lost."""
    path = tmp_path / "m.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"has other columns .* choose another file"):
        Measurements(path)
    assert path.read_text() == "a,b\n1,2\n"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Before anything is measured."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*m\.csv: .*; choose another file"):
        Measurements(tmp_path / "file" / "m.csv")


def test_parquet_has_the_same_rows(tmp_path: Path) -> None:
    """And numbers as numbers."""
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "m.csv"
    written(path, ROW, ROW)
    target = write_parquet(path)
    assert target is not None
    table = parquet.read_table(target)
    assert table.column("joules").to_pylist() == [12.5, 12.5]
    assert tuple(table.column_names) == COLUMNS
