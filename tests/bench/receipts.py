"""What signing a record costs: canonical form and Ed25519 signature, on one core."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Final

from llm_carbon_meter.exporters.headers import record_json
from llm_carbon_meter.exporters.receipts import private_key, signer
from tests.support.made.records import RECORD
from tests.support.signing_keys import make_keys

ROUNDS: Final = 2_000


def measure(_model: Path) -> Mapping[str, float]:
    """Microseconds for a record."""
    with tempfile.TemporaryDirectory() as folder:
        sign = signer(private_key(make_keys(Path(folder)).private))
    body, took_s = record_json(RECORD), []
    for _ in range(ROUNDS):
        begun_s = time.perf_counter()
        sign(body)
        took_s.append(time.perf_counter() - begun_s)
    return {"sign_us": 1e6 * median(took_s)}
