"""Posts JSON to an address of the operator's choice, from a thread of its own.

Such addresses are secrets themselves: nothing but scheme, host and port is ever logged. That is why
it is not httpx that posts, which logs every address in full.
"""

import http.client
import json
import threading
import urllib.error
from collections.abc import Mapping
from typing import Any, Final

from llm_carbon_meter.addresses import open_url, shown_url
from llm_carbon_meter.faults import Faults

TIMEOUT_S: Final = 10.0


class Webhook:
    """One address.

    Args:
        url: http or https, well formed.
        faults: counts what could not be delivered.
    """

    def __init__(self, url: str, faults: Faults) -> None:
        self._url = url
        self._faults = faults

    def post(self, body: Mapping[str, Any]) -> None:
        """Send and forget: returns at once, and a failure is counted."""
        arguments = (json.dumps(body).encode(),)
        threading.Thread(target=self._send, args=arguments, name="webhook", daemon=True).start()

    def _send(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            open_url(self._url, body, headers, timeout_s=TIMEOUT_S).close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            # The error's own text may have the address.
            where = shown_url(self._url)
            self._faults.note("webhook", f"posting to {where} failed: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return f"it answered {error.code}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return type(reason).__name__
