"""OTLP logs through the real SDK and exporter to a real receiver."""

import time
from collections.abc import Iterator

import pytest

from llm_carbon_meter.exporters import otlp_logs
from llm_carbon_meter.exporters.log_line import request_line
from llm_carbon_meter.exporters.otlp_logs import OtlpLogs, attributes, open_otlp_logs
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.exchanges import Exchange
from llm_carbon_meter.frontend.frontend_meter import FrontendMeter
from llm_carbon_meter.predictor.served import Prompt
from tests.support.made.energies import energy_of
from tests.support.made.records import RECORD, TOTALS
from tests.support.servers.front_ends import front_end
from tests.support.servers.metered import OtlpReceiver
from tests.support.servers.metered import attributes as received
from tests.support.waiting import eventually

LINE = request_line(RECORD)


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    """On a free port."""
    receiver = OtlpReceiver()
    yield receiver
    receiver.close()


def address(receiver: OtlpReceiver) -> str:
    """As the setting has it."""
    return f"http://127.0.0.1:{receiver.port}"


def test_each_line_is_one_log_record(receiver: OtlpReceiver) -> None:
    """None is sampled away; numbers stay numbers, and the time is when the request came."""
    faults = Faults()
    sender = OtlpLogs(address(receiver), faults)
    for _ in range(1_000):
        sender.send([LINE])
    sender.stop()
    logs = receiver.logs
    assert len(logs) == 1_000
    assert not faults.counts
    values = received(logs[0])
    assert values["llm_carbon_meter.energy_joules"] == LINE["energy_joules"]
    assert values["llm_carbon_meter.output_tokens"] == LINE["output_tokens"]
    assert values["llm_carbon_meter.deployment.engine"] == "vllm"
    assert logs[0].time_unix_nano == int(RECORD.features.arrived_unix_s * 1e9)
    assert logs[0].event_name == "llm_carbon_meter.request"


def test_attributes_are_the_line_s_columns() -> None:
    """All of them, the deployment's each by its own name."""
    names = {name.removeprefix("llm_carbon_meter.") for name in attributes(LINE)}
    assert names == LINE.keys() - {"deployment"} | {"deployment.engine"}


def test_a_server_sends_requests_and_accounts(receiver: OtlpReceiver) -> None:
    """With no log file, too; what waits is delivered at the end."""
    meter = front_end(otlp_logs=address(receiver))
    meter.receive_totals(TOTALS)
    finish(meter, "a")
    meter.stop()
    kinds = [received(log)["llm_carbon_meter.kind"] for log in receiver.logs]
    assert kinds == ["request", "accounts"]


def finish(meter: FrontendMeter, name: str) -> None:
    """Serve a request."""
    exchange = Exchange()
    meter.begin(exchange, name, f"chatcmpl-{name}", Prompt(10), 5)
    meter.end(exchange, answered=True)
    meter.receive_energies([energy_of(name)])


def test_a_receiver_that_is_away_costs_records_but_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are counted, and the address is shown without its login."""
    monkeypatch.setattr(otlp_logs, "TIMEOUT_S", 0.5)
    faults = Faults()
    sender = OtlpLogs("http://user:SECRET@127.0.0.1:9", faults)
    begun_s = time.monotonic()
    sender.send([LINE] * 3)
    assert time.monotonic() - begun_s < 0.2
    sender.stop()
    eventually(lambda: faults.counts == {"otlp_logs": 3}, "three records counted as lost")


def test_too_many_waiting_records_are_counted(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded; those that wait are delivered."""
    monkeypatch.setattr(otlp_logs, "MOST_WAITING", 2)
    faults = Faults()
    sender = OtlpLogs(address(receiver), faults)
    sender.send([LINE] * 5)
    sender.stop()
    assert len(receiver.logs) + faults.counts["otlp_logs"] == 5
    assert faults.counts["otlp_logs"] >= 1


def test_without_the_packages_the_server_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault names the extra; no setting, no sender."""
    monkeypatch.setattr("llm_carbon_meter.extras.find_spec", lambda _: None)
    faults = Faults()
    assert open_otlp_logs("http://127.0.0.1:4317", faults) is None
    assert faults.counts == {"otlp_logs": 1}
    assert open_otlp_logs("", faults) is None
