"""Headers of an answer that is no stream: estimate, measurement, and the wait for them."""

import asyncio
import json
import time
from typing import Any

import pytest

from llm_carbon_meter.records import Quality, Source, Status
from llm_carbon_meter.servers.shared.middleware import CarbonHeadersMiddleware
from tests.support.servers.front_ends import front_end
from tests.support.servers.middleware_calls import (
    ESTIMATED,
    Send,
    begin,
    call,
    carbon_headers,
    chunk,
    energy_of,
    headers_of,
    start,
)

EXPOSE_HEADER = b"access-control-expose-headers"


async def test_an_answer_carries_estimate_and_measurement() -> None:
    """All headers of the contract beside the server's own; the body is as it was."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energies([energy_of("engine-1")])
        await send(start(server="vllm"))
        await send(chunk(b'{"id": "chatcmpl-1"}'))

    first, body = await call(CarbonHeadersMiddleware(app), meter)
    headers = headers_of(first)
    assert headers["content-type"] == "application/json"
    assert headers["server"] == "vllm"
    assert list(carbon_headers(first)) == [
        *ESTIMATED,
        "llm-carbon-measured-wh",
        "llm-carbon-measured-gco2eq",
        "llm-carbon-quality",
        "llm-carbon-status",
    ]
    assert headers["llm-carbon-measured-wh"] == "0.001"
    assert headers["llm-carbon-measured-gco2eq"] == "0.000475"
    assert (headers["llm-carbon-quality"], headers["llm-carbon-status"]) == (
        "counter",
        "provisional",
    )
    assert body == chunk(b'{"id": "chatcmpl-1"}')


async def test_a_page_of_another_origin_may_read_the_headers() -> None:
    """Browsers show a page those alone that the answer names; others need no such header."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energies([energy_of("engine-1")])
        await send(start(**{"access-control-expose-headers": "X-Own"}))
        await send(chunk(b"{}"))

    for origin in ([], [(b"origin", b"https://page.example")]):
        first, _ = await call(CarbonHeadersMiddleware(app), meter, headers=origin)
        exposed = [value for name, value in first["headers"] if name == EXPOSE_HEADER]
        told = ", ".join(carbon_headers(first))
        ours = [value.decode().lower() for value in exposed if value != b"X-Own"]
        assert ours == [told][: len(origin)]
        assert b"X-Own" in exposed


async def test_modelled_joules_are_never_called_measured() -> None:
    """A modelled figure has the modelled names, and the measured ones are absent."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        modelled = {"source": Source.MODELLED, "quality": Quality.MODELLED}
        meter.receive_energies([energy_of("engine-1", **modelled)])
        await send(start())
        await send(chunk(b"{}"))

    headers = carbon_headers((await call(CarbonHeadersMiddleware(app), meter))[0])
    assert headers["llm-carbon-modelled-wh"] == "0.001"
    assert headers["llm-carbon-quality"] == "modelled"
    assert not any("measured" in name for name in headers)


async def test_children_are_summed_in_the_headers() -> None:
    """With n = 2 the client sees what both cost."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter, "0_x")
        begin(meter, "1_x")
        meter.receive_energies([energy_of("0_x")])
        meter.receive_energies([energy_of("1_x")])
        await send(start())
        await send(chunk(b"{}"))

    first, _ = await call(CarbonHeadersMiddleware(app), meter)
    assert headers_of(first)["llm-carbon-measured-wh"] == "0.002"


async def test_the_answer_waits_for_its_figure() -> None:
    """A figure that comes a moment later is still in the headers."""
    meter = front_end(provisional_wait_s=5.0)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        asyncio.get_running_loop().call_later(0.05, meter.receive_energies, [energy_of("engine-1")])
        await send(start())
        await send(chunk(b"{}"))

    began_s = time.monotonic()
    first, _ = await call(CarbonHeadersMiddleware(app), meter)
    assert headers_of(first)["llm-carbon-status"] == "provisional"
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
async def test_the_wait_is_bounded(wait_s: float) -> None:
    """Where no figure comes, the answer leaves with the estimate alone."""
    meter = front_end(provisional_wait_s=wait_s)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        await send(start())
        await send(chunk(b"{}"))

    began_s = time.monotonic()
    first, body = await call(CarbonHeadersMiddleware(app), meter)
    assert wait_s <= time.monotonic() - began_s < 2
    assert list(carbon_headers(first)) == ESTIMATED
    assert body == chunk(b"{}")


async def test_a_setting_makes_the_answer_wait_for_the_final_figure() -> None:
    """With final_wait_s the header says final."""
    meter = front_end(final_wait_s=5.0)

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energies([energy_of("engine-1")])
        final = energy_of("engine-1", Status.FINAL, joules={"decode": 6.6})
        asyncio.get_running_loop().call_later(0.05, meter.receive_energies, [final])
        await send(start())
        await send(chunk(b"{}"))

    first, _ = await call(CarbonHeadersMiddleware(app), meter)
    headers = headers_of(first)
    assert (headers["llm-carbon-status"], headers["llm-carbon-measured-wh"]) == ("final", "0.002")


async def test_the_record_keeps_what_the_header_said() -> None:
    """The header's figure is the record's provisional one, the final one stands beside it."""
    meter = front_end()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        begin(meter)
        meter.receive_energies([energy_of("engine-1")])
        await send(start())
        await send(chunk(b"{}"))

    first, _ = await call(CarbonHeadersMiddleware(app), meter)
    meter.receive_energies([energy_of("engine-1", Status.FINAL, joules={"decode": 6.6})])
    (text,) = meter.find("chatcmpl-1").values()
    record = json.loads(text)
    assert record["status"] == "final"
    assert record["energy_wh"] == pytest.approx(0.002)
    header = float(headers_of(first)["llm-carbon-measured-wh"])
    assert record["provisional"]["energy_wh"] == pytest.approx(header)
    assert record["provisional"]["status"] == "provisional"


def test_nobody_waits_for_an_engine_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unmetered engine must not delay every answer by the time that is allowed for waiting."""
    meter = front_end(provisional_wait_s=0.2, final_wait_s=0.3)
    assert (meter.provisional_wait_s, meter.final_wait_s) == (0.2, 0.3)
    later_s = time.monotonic() + 60
    monkeypatch.setattr("llm_carbon_meter.frontend.frontend_meter.time.monotonic", lambda: later_s)
    assert (meter.provisional_wait_s, meter.final_wait_s) == (0.0, 0.0)
