"""The verb ``verify``: one record or a log, plain or compressed; bad lines are named."""

import gzip
import json
from pathlib import Path

import pytest

from llm_carbon_meter import cli
from llm_carbon_meter.exporters.headers import record_text
from llm_carbon_meter.exporters.log_line import request_line
from llm_carbon_meter.exporters.receipts import private_key, signer
from llm_carbon_meter.frontend.request_log import text_of
from tests.support.made.records import RECORD
from tests.support.signing_keys import Keys, make_keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """A pair."""
    return make_keys(tmp_path)


def verified(file: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and lines of a run."""
    code = cli.main(["verify", str(file), "--key", str(keys.public)])
    return code, capsys.readouterr().out.splitlines()


def test_a_log_verifies_line_by_line(
    tmp_path: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain and compressed; a line that was changed, one unsigned and one torn are named."""
    sign = signer(private_key(keys.private))
    good = text_of(sign(request_line(RECORD)))
    log, packed = tmp_path / "log.jsonl", tmp_path / "log.jsonl.1.gz"
    log.write_text(f"{good}\n{good}\n")
    assert verified(log, keys, capsys) == (0, [f"2 verified, 0 failed, key {_key(good)}"])
    changed = good.replace('"pue":1.2', '"pue":1.0')
    assert changed != good
    lines = [good, changed, "", text_of(request_line(RECORD)), good[:100]]
    packed.write_bytes(gzip.compress("\n".join(lines).encode()))
    code, said = verified(packed, keys, capsys)
    assert code == 1
    assert said[-1].startswith("1 verified, 3 failed")
    assert [line.split(": ")[0] for line in said[:-1]] == [
        f"{packed}, line {number}" for number in (2, 4, 5)
    ]
    assert "was changed" in said[0]
    assert "no receipt" in said[1]


def test_one_record_verifies_however_it_is_laid_out(
    tmp_path: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the look-up gives it, and as ``jq .`` shows it."""
    text, file = record_text(RECORD, signer(private_key(keys.private))), tmp_path / "record.json"
    for written in (text, json.dumps(json.loads(text), indent=2)):
        file.write_text(written)
        assert verified(file, keys, capsys)[0] == 0


def test_no_file_and_no_record_are_errors(
    tmp_path: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that verifies is not success."""
    empty, torn = tmp_path / "empty", tmp_path / "torn.gz"
    empty.write_text("")
    torn.write_bytes(gzip.compress(b"{}" * 1000)[:20])
    for file, reason in ((empty, "has no record"), (torn, "cannot"), (tmp_path / "no", "cannot")):
        assert cli.main(["verify", str(file), "--key", str(keys.public)]) == 1
        assert reason in capsys.readouterr().err


def _key(line: str) -> str:
    return str(json.loads(line)["receipt"]["key"])


def test_a_name_that_stands_twice_is_no_record(
    tmp_path: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two, one reader takes the first and another the last."""
    good, log = text_of(signer(private_key(keys.private))(request_line(RECORD))), tmp_path / "log"
    log.write_text('{"energy_joules":0.001,' + good[1:] + "\n")
    code, said = verified(log, keys, capsys)
    assert code == 1
    assert "a name stands twice" in said[0]
