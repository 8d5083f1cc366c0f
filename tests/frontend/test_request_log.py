"""The request log: rotation, reading back, and the ledger that is printed from it."""

import errno
import gzip
import json
import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_carbon_meter.exporters.headers import record_text
from llm_carbon_meter.exporters.log_line import request_line
from llm_carbon_meter.frontend import request_log
from llm_carbon_meter.frontend.request_log import (
    RequestLog,
    ledger_table,
    opened,
    read,
    rotated_files,
    text_of,
)
from llm_carbon_meter.records import MeterError, Place
from tests.support.made.records import RECORD
from tests.support.made.usual import LINE_BYTES, PACKED, a_usual_record


def record_of(number: int, **changes: Any) -> dict[str, Any]:
    """The fields that the log's readers use."""
    record = {
        "id": f"engine-{number}",
        "source": "measured",
        "energy_joules": 10.0,
        "prefill_joules": 1.0,
        "decode_joules": 6.0,
        "recompute_joules": 2.0,
        "waste_joules": 1.0,
        "operational_grams": 0.5,
    }
    return {**record, **changes}


def write(
    path: Path,
    *records: dict[str, Any],
    max_bytes: int = 10**6,
    max_age_s: float = 1e9,
    files: int = 3,
) -> None:
    """Log some records."""
    log = RequestLog(str(path), max_bytes, max_age_s, files)
    for record in records:
        log.write(json.dumps(record))
    log.close()


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """One line per record, in order, also over a restart."""
    path = tmp_path / "requests.jsonl"
    records = [record_of(number, zone="Zürich % {}") for number in range(5)]
    write(path, *records[:2])
    write(path, *records[2:])
    assert list(read(path)) == records
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5


PLACE = Place("instance", "host", "pod", "node", "namespace")


def test_a_record_s_line_begins_with_its_version_and_is_read_back(tmp_path: Path) -> None:
    """Every field of a line is one that the reader knows."""
    line = request_line(replace(RECORD, place=PLACE))
    text = text_of(line)
    assert text.startswith('{"version":2,"kind":"request",')
    path = tmp_path / "requests.jsonl"
    path.write_text(text + "\n", "utf-8")
    assert list(read(path)) == [line]
    assert (line["instance"], line["pod"], line["namespace"]) == ("instance", "pod", "namespace")


def test_a_line_holds_no_figure_twice() -> None:
    """Neither provisional figures nor watt-hours; of estimates what a report needs."""
    line = request_line(RECORD)
    assert not [name for name in line if name.endswith("_wh") or name == "provisional"]
    assert line["conditional_joules"] == pytest.approx(149.754431488 * 0.5)
    assert (line["estimate_low_joules"], line["estimate_high_joules"]) == (100.0, 200.0)
    assert line["arrived_unix_s"] == RECORD.features.arrived_unix_s
    assert "host" not in line  # not known here


def test_a_line_is_no_longer_than_the_documents_say() -> None:
    """With long names, and figures of all digits; less than half of the whole record."""
    record = a_usual_record()
    digits = 120  # that the figures of a made-up record have not
    length = len(text_of(request_line(record))) + 1 + digits
    assert 0.9 * LINE_BYTES < length < LINE_BYTES < 0.5 * len(record_text(record))


def test_packed_lines_take_no_more_than_the_documents_say(tmp_path: Path) -> None:
    """As the table of retention has it, of lines whose ids and figures differ."""
    path, digits = tmp_path / "log", random.Random(1)
    usual = request_line(a_usual_record())
    lines = [
        {
            name: value * digits.random() if isinstance(value, float) else value
            for name, value in usual.items()
        }
        | {"id": f"chatcmpl-{digits.getrandbits(128):032x}"}
        for _ in range(2_000)
    ]
    write(path, *lines, record_of(0), max_bytes=2_000 * LINE_BYTES)
    plain = sum(len(text_of(one)) + 1 for one in lines)
    packed = sum(file.stat().st_size for file in rotated_files(path)) + path.stat().st_size
    assert len(rotated_files(path)) == 1
    assert PACKED < plain / packed < 2 * PACKED


def test_a_line_of_version_1_is_read_in_this_form(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With its version or none; nobody is warned of what is known in full."""
    assert RECORD.estimate is not None
    estimated = replace(RECORD, estimate=replace(RECORD.estimate, calibration=0.5))
    path, body = tmp_path / "requests.jsonl", json.loads(record_text(estimated))
    path.write_text("".join(json.dumps(one) + "\n" for one in ({"version": 1, **body}, body)))
    expected = request_line(estimated)
    assert expected["estimate_low_joules"] == 50.0
    assert expected["estimate_calibrated_joules"] == 0.5 * expected["estimate_joules"]
    del expected["version"], expected["kind"]
    first, second = read(path)
    assert first == {"version": 1, **expected}
    assert second == expected
    assert not caplog.messages


@pytest.mark.parametrize("odd", [{"features": 3}, {"estimate": [1]}, {"conditional": "x"}])
def test_features_and_estimates_are_objects(tmp_path: Path, odd: dict[str, Any]) -> None:
    """Else the line is named."""
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(record_of(0, **odd)) + "\n")
    with pytest.raises(MeterError, match="line 1: not a record"):
        list(read(path))


def test_within_one_version_an_unknown_field_is_refused(tmp_path: Path) -> None:
    """Somebody made the line who does not know the form."""
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(record_of(0, version=2, colour=2.0)) + "\n", "utf-8")
    with pytest.raises(MeterError, match=r"line 1.*version 2 has no fields colour"):
        list(read(path))


def test_another_version_is_read_as_far_as_it_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for all lines of a file."""
    path = tmp_path / "requests.jsonl"
    lines = [json.dumps(record_of(number, version=3, colour=2.0)) for number in range(3)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert [record["id"] for record in read(path)] == ["engine-0", "engine-1", "engine-2"]
    (warning,) = caplog.messages
    assert f"{path}: it has version 3, expected 2" in warning


def test_the_log_is_rotated_by_size(tmp_path: Path) -> None:
    """No file grows beyond its limit, older ones are packed, and the oldest go."""
    path = tmp_path / "requests.jsonl"
    records = [record_of(number) for number in range(100)]
    write(path, *records, max_bytes=1000, files=2)
    files = [*rotated_files(path), path]
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".gz", ".gz", ".jsonl"]
    assert all(len(unpacked(file)) <= 1000 for file in files)
    kept = [record for file in files for record in read(file)]
    assert kept == records[-len(kept) :]
    assert len(kept) > 10


def unpacked(file: Path) -> bytes:
    """What a file holds."""
    data = file.read_bytes()
    return gzip.decompress(data) if file.suffix == ".gz" else data


def test_the_log_is_rotated_at_midnight(tmp_path: Path) -> None:
    """Also where the server was down then; its name says when the file ended."""
    path = tmp_path / "requests.jsonl"
    write(path, record_of(0))
    yesterday = time.time() // 86_400 * 86_400 - 1
    os.utime(path, (yesterday, yesterday))
    write(path, record_of(1), record_of(2), max_age_s=86_400)
    (old,) = rotated_files(path)
    assert time.strftime("requests.jsonl.%Y%m%dT235959.", time.gmtime(yesterday)) in old.name
    assert [record["id"] for record in read(old)] == ["engine-0"]
    assert [record["id"] for record in read(path)] == ["engine-1", "engine-2"]


def test_rotated_files_are_found_oldest_first(tmp_path: Path) -> None:
    """Those of an older version, with numbers, come before those with times; of a file that is
    being packed there is one; neighbours are none."""
    path = tmp_path / "log"
    times = [f"log.2026030{day}T000000.000000Z" for day in (1, 2)]
    names = ["log.10", "log.2", "log.1", times[0] + ".gz", times[1]]
    others = ["log", "log.gz", "log-1", "log.1x", "other.1", times[1] + ".gz", times[1] + ".part"]
    for name in names + others:
        (tmp_path / name).touch()
    assert [file.name for file in rotated_files(path)] == names


def test_what_a_killed_server_left_unpacked_is_packed(tmp_path: Path) -> None:
    """At the next start, and half a line does not spoil the next one."""
    path = tmp_path / "log"
    left = tmp_path / "log.20260301T000000.000000Z"
    left.write_text(json.dumps(record_of(0)) + "\n")
    left.with_name(left.name + ".part").write_bytes(b"half")
    path.write_text('{"source": "meas')
    write(path, record_of(1))
    assert [file.name for file in rotated_files(path)] == [left.name + ".gz"]
    assert sorted(tmp_path.iterdir()) == [path, left.with_name(left.name + ".gz")]
    assert list(read(rotated_files(path)[0])) == [record_of(0)]
    assert json.loads(path.read_text().splitlines()[1]) == record_of(1)


def test_writing_never_waits_for_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does the event loop behind it; what was not packed meanwhile is packed at the end."""
    going, path = threading.Event(), tmp_path / "log"
    pack = request_log._pack
    monkeypatch.setattr(request_log, "_pack", lambda file: (going.wait(20), pack(file)))
    log = RequestLog(str(path), 1_000, 1e9, 100)
    begun_s = time.monotonic()
    for number in range(50):
        log.write(json.dumps(record_of(number)))
    assert time.monotonic() - begun_s < 2.0
    going.set()
    log.close()
    files = [*rotated_files(path), path]
    assert {file.suffix for file in files[:-1]} == {".gz"}
    assert [record["id"] for file in files for record in read(file)] == [
        f"engine-{number}" for number in range(50)
    ]


def test_what_cannot_be_packed_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk: nothing half done is left, and the log goes on."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(request_log.shutil, "copyfileobj", fail)
    path = tmp_path / "log"
    write(path, *(record_of(number) for number in range(20)), max_bytes=2_000, files=100)
    assert all(file.suffix not in (".gz", ".part") for file in tmp_path.iterdir())
    files = [*rotated_files(path), path]
    assert len([record for file in files for record in read(file)]) == 20
    assert "stay as they are: [Errno 28] No space left on device" in caplog.text


def test_a_damaged_packed_file_is_named(tmp_path: Path) -> None:
    """Cut, or no packed file at all."""
    whole = gzip.compress(json.dumps(record_of(0)).encode())
    for data in (whole[:-9], b"no gzip"):
        path = tmp_path / "log.gz"
        path.write_bytes(data)
        with pytest.raises(MeterError, match="cannot be read"):
            list(read(path))


def test_a_log_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    """At the start, with the setting to change."""
    with pytest.raises(MeterError, match=r"cannot be opened.*LLM_CARBON_METER_REQUEST_LOG"):
        RequestLog(str(tmp_path / "missing" / "requests.jsonl"), 1000, 1e9, 1)


def test_a_full_disk_raises_to_the_caller() -> None:
    """Nothing is printed to stderr by logging; the front end counts the error."""
    log = RequestLog("/dev/full", 10**6, 1e9, 1)
    with pytest.raises(OSError, match="No space"):
        log.write("{}")
    log.close()


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b"{}",
        b'{"energy_joules": 1}',
        b'{"energy_joules": null, "source": "measured"}',
        b'{"energy_joules": "much", "source": "measured"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda line: line[:20].decode("latin-1"),
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    """File and number of the line, and what to do; the records before it are still read."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(json.dumps(record_of(0)).encode() + b"\n" + line + b"\n")
    lines = iter(read(path))
    assert next(lines) == record_of(0)
    with pytest.raises(MeterError, match=r"requests\.jsonl, line 2: not a record"):
        next(lines)


def test_a_log_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A wrong path on the command line is an error of ours."""
    with pytest.raises(MeterError, match="cannot be read"):
        list(read(tmp_path / "nothing"))
    with pytest.raises(MeterError, match="cannot be read"):
        list(read(tmp_path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=100))
def test_any_file_is_a_log_or_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    """Only a file without a line passes."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(data)
    if data:
        with pytest.raises(MeterError, match="line 1: not a record"):
            list(read(path))
    else:
        assert list(read(path)) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_logs_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes replaced anywhere give records or a MeterError."""
    lines = [json.dumps(record_of(number)) for number in range(3)]
    whole = bytearray("\n".join(lines).encode())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at : data.draw(st.integers(at, len(whole)))] = data.draw(st.binary(max_size=6))
    path = tmp_path / "requests.jsonl"
    path.write_bytes(whole)
    try:
        records = list(read(path))
    except MeterError:
        return
    assert all("energy_joules" in record for record in records)


def cells(table: str, name: str) -> list[str]:
    """The line of an account, split."""
    (line,) = (line for line in table.splitlines() if line.startswith(name))
    return line.split()


def test_the_ledger_adds_up() -> None:
    """Accounts, their shares, the total and the grams of all records."""
    table = ledger_table([record_of(0), record_of(1), record_of(2, energy_joules=16.0)])
    assert table.splitlines()[0] == "3 requests, measured"
    assert cells(table, "prefill") == ["prefill", "3", "J", "0.000833", "Wh", "8.33%"]
    assert cells(table, "decode") == ["decode", "18", "J", "0.005", "Wh", "50%"]
    assert cells(table, "recompute")[1] == "6"
    assert cells(table, "waste")[1] == "3"
    assert cells(table, "total") == ["total", "36", "J", "0.01", "Wh"]
    assert cells(table, "emissions") == ["emissions", "1.5", "gCO2eq"]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_the_total_is_the_sum_of_the_records(joules: list[float]) -> None:
    """Whatever the figures, to the three digits that are printed."""
    table = ledger_table(record_of(0, energy_joules=value) for value in joules)
    assert float(cells(table, "total")[1]) == pytest.approx(sum(joules), rel=5e-3)


def test_measured_and_modelled_are_never_added() -> None:
    """Each source has its own book."""
    table = ledger_table([record_of(0), record_of(1, source="modelled", energy_joules=1.0)])
    first, second = table.split("\n\n")
    assert first.startswith("1 requests, measured")
    assert second.startswith("1 requests, modelled")
    assert cells(first, "total")[1] == "10"
    assert cells(second, "total")[1] == "1"


def test_an_empty_log_has_no_ledger() -> None:
    """Nothing is not 0 J."""
    assert ledger_table([]) == "no finished requests"
    nothing = record_of(0, energy_joules=0.0, prefill_joules=0.0, decode_joules=0.0)
    assert cells(ledger_table([nothing]), "prefill")[-1] == "0%"


def test_two_threads_write_while_the_log_is_rotated(tmp_path: Path) -> None:
    """No line is lost or torn."""
    path, lines = tmp_path / "log", 4_000
    log = RequestLog(str(path), max_bytes=20_000, max_age_s=1e9, files=100)

    def write_half(half: int) -> None:
        for number in range(half, lines, 2):
            log.write(json.dumps(record_of(number)))

    threads = [threading.Thread(target=write_half, args=[half]) for half in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    ids = [record["id"] for file in tmp_path.iterdir() for record in read(file)]
    assert sorted(ids) == sorted(f"engine-{number}" for number in range(lines))


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that is full for a while; the next line stands alone."""
    log = RequestLog(str(tmp_path / "log"), 10_000, 86_400.0, 3)
    log.write('{"a":1}')

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, text: memoryview) -> int:
            if len(text) < 8:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self.file.write(text[:5]))

        def fileno(self) -> int:
            return int(self.file.fileno())

    real = log._file
    log._file = Full(real)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space"):
        log.write('{"b":22}')
    log._file = real
    log.write('{"c":3}')
    log.close()
    assert (tmp_path / "log").read_text() == '{"a":1}\n{"c":3}\n'


def test_a_rotation_that_fails_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a server has no file descriptors left for a moment."""
    log = RequestLog(str(tmp_path / "log"), 10, 86_400.0, 3)
    log.write("1" * 9)
    open_path = Path.open

    def none_left(path: Path, *given: Any, **named: Any) -> Any:
        if path.name == "log":
            raise OSError(errno.EMFILE, "Too many open files")
        return open_path(path, *given, **named)

    monkeypatch.setattr(Path, "open", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        log.write("2" * 9)
    monkeypatch.undo()
    log.write("3" * 9)
    log.close()
    assert (tmp_path / "log").read_text() == "3" * 9 + "\n"
    (rotated,) = rotated_files(tmp_path / "log")
    with opened(rotated) as file:
        assert file.read() == b"1" * 9 + b"\n"
