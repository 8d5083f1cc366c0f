"""Receipts: openssl verifies them, no record is changed unseen, bad keys explain themselves."""

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.exporters.headers import record_text
from llm_carbon_meter.exporters.log_line import request_line
from llm_carbon_meter.exporters.receipts import (
    key_id,
    open_signer,
    private_key,
    public_key,
    signed_bytes,
    signer,
    unsigned,
    verify,
)
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.request_log import read, text_of
from llm_carbon_meter.records import METHOD, MeterError, Status
from tests.support.made.records import ENERGY, RECORD
from tests.support.signing_keys import Keys, make_keys, run


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """A pair made by openssl."""
    return make_keys(tmp_path_factory.mktemp("keys"))


def test_the_signed_bytes_are_the_documented_ones() -> None:
    """Sorted names, no white space, numbers as ECMAScript writes them, no signature."""
    receipt = {"signature": "AAAA", "method": 1, "key": "0123"}
    body = {"id": "é", "energy_joules": 12.0, "receipt": receipt, "b": [1e-7, None], "a": 1e21}
    assert signed_bytes(body).decode() == (
        '{"a":1e+21,"b":[1e-7,null],"energy_joules":12,"id":"é",'
        '"receipt":{"key":"0123","method":1}}'
    )


def test_openssl_verifies_a_record(keys: Keys, tmp_path: Path) -> None:
    """Signature, key id and bytes are as the document says; our code signs, another checks."""
    body = json.loads(record_text(RECORD, signer(private_key(keys.private))))
    receipt = body["receipt"]
    assert set(receipt) == {"key", "method", "signature"}
    assert receipt["method"] == METHOD
    der = run("pkey", "-pubin", "-in", keys.public, "-outform", "DER")
    assert receipt["key"] == hashlib.sha256(der).hexdigest()[:16]
    told, signature = tmp_path / "told", tmp_path / "signature"
    signature.write_bytes(base64.b64decode(receipt["signature"]))
    told.write_bytes(signed_bytes(body))
    answer = run(
        *("pkeyutl", "-verify", "-pubin", "-inkey", keys.public, "-rawin"),
        *("-in", told, "-sigfile", signature),
    )
    assert b"Verified Successfully" in answer


def test_a_record_and_its_line_verify_as_they_are_read(keys: Keys, tmp_path: Path) -> None:
    """Whatever the order of the names and the form of the numbers; the reader takes the line."""
    sign, key = signer(private_key(keys.private)), public_key(keys.public)
    line = text_of(sign(request_line(RECORD)))
    for text in (record_text(RECORD, sign), line):
        verify(json.loads(text), key)
        verify(json.loads(json.dumps(json.loads(text), sort_keys=True, indent=4)), key)
    path = tmp_path / "log"
    path.write_text(line + "\n")
    (record,) = read(path)
    assert record["receipt"]["key"] == key_id(key)


@pytest.mark.parametrize(
    "changes",
    [
        {"energy_joules": 1.0},
        {"pue": 1.0},
        {"new": None},
        {"receipt.method": 99},
        {"receipt.signature": "AAAA"},
        {"receipt.signature": "no base64"},
        {"receipt.signature": None},
    ],
    ids=str,
)
def test_a_changed_record_does_not_verify(keys: Keys, changes: dict[str, Any]) -> None:
    """Figures, the method's version, what was added, and the signature itself."""
    body = json.loads(record_text(RECORD, signer(private_key(keys.private))))
    for name, value in changes.items():
        inner = body["receipt"] if name.startswith("receipt.") else body
        inner[name.removeprefix("receipt.")] = value
    with pytest.raises(MeterError, match="the signature does not fit"):
        verify(body, public_key(keys.public))


def test_another_key_and_no_receipt_are_told(keys: Keys, tmp_path: Path) -> None:
    """Both key ids are named."""
    other = public_key(make_keys(tmp_path).public)
    body = json.loads(record_text(RECORD, signer(private_key(keys.private))))
    theirs, ours = body["receipt"]["key"], key_id(other)
    with pytest.raises(MeterError, match=f"names the key '{theirs}', given is {ours}"):
        verify(body, other)
    with pytest.raises(MeterError, match="there is no receipt"):
        verify(json.loads(record_text(RECORD)), other)


def test_only_final_records_are_signed(keys: Keys) -> None:
    """A provisional figure is replaced by another one."""
    provisional = replace(RECORD, energy=replace(ENERGY, status=Status.PROVISIONAL))
    text = record_text(provisional, signer(private_key(keys.private)))
    assert "receipt" not in json.loads(text)


def test_a_key_that_others_can_read_is_refused(keys: Keys, tmp_path: Path) -> None:
    """With the command that mends it; records are then unsigned, and the fault is counted."""
    open_key = tmp_path / "open.pem"
    open_key.write_bytes(keys.private.read_bytes())
    open_key.chmod(0o640)
    with pytest.raises(MeterError, match=r"read by others \(mode 0640\): chmod 600 .*open.pem"):
        private_key(open_key)
    faults = Faults()
    assert open_signer(Config(receipt_key=str(open_key)), faults) is unsigned
    assert faults.counts == {"receipts": 1}
    assert open_signer(Config(), faults) is unsigned


def test_without_the_extra_it_is_named(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving needs neither package."""
    monkeypatch.setattr("llm_carbon_meter.extras.find_spec", lambda _: None)
    told = r"cryptography, rfc8785, not installed here: pip install 'llm-carbon-meter\[receipts\]'"
    with pytest.raises(MeterError, match=told):
        private_key(keys.private)


def test_files_that_hold_no_key_of_ours_say_what_they_hold(keys: Keys, tmp_path: Path) -> None:
    """Missing, of another algorithm, public for private, private for public, with a passphrase."""
    of_other = make_keys(tmp_path, algorithm="x25519")
    locked = tmp_path / "locked.pem"
    run("pkey", "-in", keys.private, "-aes256", "-passout", "pass:x", "-out", locked)
    locked.chmod(0o600)
    with pytest.raises(MeterError, match=r"cannot be read: No such file.*openssl genpkey"):
        private_key(tmp_path / "none.pem")
    with pytest.raises(MeterError, match=r"no private Ed25519 key \(X25519PrivateKey\)"):
        private_key(of_other.private)
    with pytest.raises(MeterError, match=r"no public Ed25519 key \(X25519PublicKey\).*-pubout"):
        public_key(of_other.public)
    with pytest.raises(MeterError, match="has a passphrase"):
        private_key(locked)
    with pytest.raises(MeterError, match="holds no public Ed25519 key"):
        public_key(keys.private)
    keys.public.chmod(0o600)
    with pytest.raises(MeterError, match="holds no private Ed25519 key"):
        private_key(keys.public)
