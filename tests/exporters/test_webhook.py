"""The webhook: what arrives, that nobody waits for it, and that its address stays secret."""

import http.server
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llm_carbon_meter.exporters.webhook import Webhook
from llm_carbon_meter.faults import Faults
from tests.support.receiver import Receiver
from tests.support.waiting import eventually


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A local server that remembers what is posted to it."""
    with Receiver() as receiver:
        yield receiver


def test_what_is_posted_arrives_as_json(receiver: Receiver) -> None:
    """With its content type, and nothing counted."""
    faults = Faults()
    Webhook(f"{receiver.url}/hook", faults).post({"event": "drift_began", "drift_ratio": 0.5})
    assert receiver.next() == ("/hook", {"event": "drift_began", "drift_ratio": 0.5})
    assert not faults.counts


def noted(faults: Faults) -> None:
    """Wait for the first fault."""
    eventually(lambda: faults.counts, "a fault")
    assert faults.counts == {"webhook": 1}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/T0/key", "ConnectionRefusedError"),
        ("http://127.0.0.1:9/T0 key", "InvalidURL"),
        ("http://T0:key@127.0.0.1:9/?token=key", "ConnectionRefusedError"),
    ],
)
def test_a_failure_names_the_host_alone(
    url: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted, logged, and no part of the path in it."""
    faults = Faults()
    with caplog.at_level(logging.DEBUG):
        Webhook(url, faults).post({})
        noted(faults)
        time.sleep(0.05)
    assert "T0" not in caplog.text
    assert "key" not in caplog.text
    assert reason in caplog.text


def test_a_refusal_is_counted(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """The status is named."""
    receiver.status, faults = 403, Faults()
    Webhook(f"{receiver.url}/T0/key", faults).post({})
    noted(faults)
    time.sleep(0.05)
    assert f"posting to {receiver.url} failed: it answered 403" in caplog.text
    assert "T0" not in caplog.text


def test_posting_does_not_wait() -> None:
    """A server that takes a second costs the caller nothing."""
    release = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            release.wait(5)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start_s = time.monotonic()
        Webhook(f"http://127.0.0.1:{server.server_port}/", Faults()).post({})
        assert time.monotonic() - start_s < 0.5
        release.set()
        server.shutdown()
