"""Completions by a real server, and their final records."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llm_carbon_meter.testing.servers import MODEL_NAME
from tests.support.servers.metered import Metered


def complete(metered: Metered, prompt: Any, tokens: int, **more: Any) -> dict[str, Any]:
    """The final record of a completion."""
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    status, _, answer = metered.http("/v1/completions", body | more)
    assert status == 200, answer
    return metered.record(json.loads(answer)["id"])


def complete_together(metered: Metered, count: int, prompt: Any, tokens: int) -> list[Any]:
    """Records of completions that run at the same time."""
    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(complete, metered, prompt, tokens) for _ in range(count)]
        return [call.result() for call in calls]
