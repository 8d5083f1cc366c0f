"""Receipts: an Ed25519 signature in a final record, so that nobody changes it unseen.

Signed are the bytes of RFC 8785 (JSON Canonicalization Scheme: sorted names, no white space,
numbers as ECMAScript writes them) of the whole record with its ``receipt``, less
``receipt.signature``. Any language with a library of RFC 8785 and Ed25519 verifies them. Needs the
extra ``receipts``.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_carbon_meter.config import Config
from llm_carbon_meter.extras import require
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import METHOD, MeterError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

RECEIPT: Final = "receipt"
SIGNATURE: Final = "signature"
MAKE_KEY: Final = "openssl genpkey -algorithm ed25519 -out KEY.pem"
KEY_ID_DIGITS: Final = 16

Body = dict[str, Any]
Sign = Callable[[Body], Body]
"""Gives the JSON of a record back, signed where there is a key."""


def unsigned(body: Body) -> Body:
    """The record as it is: the settings name no key."""
    return body


def open_signer(config: Config, faults: Faults) -> Sign:
    """What signs the records of these settings; `unsigned` where they name no usable key."""
    if not config.receipt_key:
        return unsigned
    try:
        return signer(private_key(Path(config.receipt_key)))
    except MeterError as error:
        faults.note("receipts", error, "Records are not signed.")
        return unsigned


def signer(key: "Ed25519PrivateKey") -> Sign:
    """Signs with a key: the same record always gets the same signature."""
    receipt = {"key": key_id(key.public_key()), "method": METHOD}

    def signed(body: Body) -> Body:
        signature = key.sign(signed_bytes({**body, RECEIPT: receipt}))
        told = {**receipt, SIGNATURE: base64.b64encode(signature).decode()}
        return {**body, RECEIPT: told}

    return signed


def signed_bytes(body: Mapping[str, Any]) -> bytes:
    """The bytes that are signed: of a record with its receipt, less the signature.

    Raises:
        MeterError: a number or text has no form in RFC 8785.
    """
    import rfc8785

    receipt = {name: value for name, value in body[RECEIPT].items() if name != SIGNATURE}
    try:
        return rfc8785.dumps({**body, RECEIPT: receipt})
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise MeterError(f"the record has no canonical form: {error}") from error


def verify(body: Mapping[str, Any], key: "Ed25519PublicKey") -> None:
    """Check that the holder of a key signed a record, and that nobody changed it since.

    Raises:
        MeterError: it has no receipt, one of another key, or its signature does not fit.
    """
    from cryptography.exceptions import InvalidSignature

    receipt = body.get(RECEIPT)
    if not isinstance(receipt, Mapping):
        raise MeterError("there is no receipt")
    if receipt.get("key") != key_id(key):
        raise MeterError(f"it names the key {receipt.get('key')!r}, given is {key_id(key)}")
    try:
        signature = base64.b64decode(str(receipt.get(SIGNATURE)), validate=True)
        key.verify(signature, signed_bytes(body))
    except (ValueError, InvalidSignature):
        raise MeterError("the signature does not fit: the record was changed") from None


def key_id(key: "Ed25519PublicKey") -> str:
    """The first digits of the SHA-256 of a public key in DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:KEY_ID_DIGITS]


def private_key(path: Path) -> "Ed25519PrivateKey":
    """The key that signs.

    Raises:
        MeterError: the extra is missing, or the file cannot be read, is readable by others, or
            holds no private Ed25519 key without a passphrase.
    """
    _require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read(path, private=True)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise MeterError(
            f"the key {path} has a passphrase, and nobody is there to give it; write it without: "
            f"openssl pkey -in {path} -out KEY.pem"
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "private", str(error)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private", type(key).__name__)
    return key


def public_key(path: Path) -> "Ed25519PublicKey":
    """The key that verifies.

    Raises:
        MeterError: the extra is missing, or the file cannot be read or holds no such key.
    """
    _require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path, private=False))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public", str(error)) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public", type(key).__name__)
    return key


def _require() -> None:
    require("a receipt", "receipts", "cryptography", "rfc8785")


def _read(path: Path, *, private: bool) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if private and mode & 0o077:
                raise MeterError(
                    f"the key {path} can be read by others (mode {mode:04o}): chmod 600 {path}"
                )
            return file.read()
    except OSError as error:
        raise MeterError(
            f"the key {path} cannot be read: {error.strerror}; make one with: {MAKE_KEY}"
        ) from None


def _no_key(path: Path, kind: str, found: str) -> MeterError:
    make = MAKE_KEY if kind == "private" else "openssl pkey -in KEY.pem -pubout -out PUBLIC.pem"
    return MeterError(f"{path} holds no {kind} Ed25519 key ({found}); make one with: {make}")
