"""Requests whose final figure never comes, ids that clients choose, and look-ups meanwhile."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_carbon_meter.exporters.log_line import REQUEST, Line, request_line
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend import exchanges as registry_module
from llm_carbon_meter.frontend import losses
from llm_carbon_meter.frontend.exchanges import LONGEST_ID, Exchange, bounded_id
from llm_carbon_meter.frontend.frontend_meter import MOST_FOUND, FrontendMeter
from llm_carbon_meter.frontend.losses import LOST_AFTER_S, REPLACED_AFTER_S
from llm_carbon_meter.predictor.served import Prompt
from llm_carbon_meter.records import RequestRecord, Status
from tests.support.made.energies import energy_of
from tests.support.made.records import TOTALS
from tests.support.servers.front_ends import front_end


class Clock:
    """A time that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of exchanges and of what looks for the lost ones."""
    made = Clock()
    monkeypatch.setattr(registry_module, "time", made)
    monkeypatch.setattr(losses, "time", made)
    return made


def begun(meter: FrontendMeter, name: str, *client_ids: str) -> Exchange:
    """An exchange with one engine request."""
    exchange = Exchange(client_ids)
    meter.begin(exchange, name, f"chatcmpl-{name}", Prompt(10), 5)
    return exchange


def found(meter: FrontendMeter, name: str) -> list[Mapping[str, Any]]:
    """What a look-up shows."""
    return [json.loads(text) for text in meter.find(name).values()]


def statuses(meter: FrontendMeter, *names: str) -> list[tuple[str, str]]:
    """Status and quality of records."""
    return [(one["status"], one.get("quality", "")) for name in names for one in found(meter, name)]


def test_a_new_session_ends_what_the_old_one_left_open(clock: Clock, tmp_path: Path) -> None:
    """Answered with a provisional figure, or with none: both have a record, which says reset."""
    log, faults = tmp_path / "log", Faults()
    meter = front_end(request_log=str(log), faults=faults)
    meter.receive_totals(TOTALS)
    told, untold, streaming = (begun(meter, name) for name in ("told", "untold", "streaming"))
    meter.receive_energies([energy_of("told", Status.PROVISIONAL)])
    for exchange in (told, untold):
        meter.end(exchange, answered=True)
    clock.now_s += LOST_AFTER_S - 1
    meter.receive_totals(replace(TOTALS, session="another"))
    assert statuses(meter, "told", "untold") == [("provisional", "counter"), ("provisional", "")]
    clock.now_s += REPLACED_AFTER_S + 0.1
    later = begun(meter, "later")
    meter.end(later, answered=True)
    meter.receive_totals(replace(TOTALS, session="another"))
    assert statuses(meter, "told", "untold") == [("final", "reset")] * 2
    assert statuses(meter, "streaming", "later") == [("provisional", "")] * 2
    assert not streaming.finished
    joules = [one["energy_joules"] for name in ("told", "untold") for one in found(meter, name)]
    assert joules == [pytest.approx(10.8), 0.0]
    assert faults.counts == {"requests_lost": 2}
    meter.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["id"] for line in lines if line["kind"] == REQUEST][:2] == ["told", "untold"]


def test_a_new_session_of_one_engine_ends_nothing_of_another(clock: Clock) -> None:
    """As far as is known whose a request is."""
    meter = front_end()
    meter.receive_totals(TOTALS)
    for engine, name in enumerate(("ours", "others")):
        meter.end(begun(meter, name), answered=True)
        meter.receive_energies([energy_of(name, Status.PROVISIONAL, engine=engine)])
    clock.now_s += 1
    meter.receive_totals(replace(TOTALS, session="another"))
    clock.now_s += REPLACED_AFTER_S + 1
    meter.receive_totals(replace(TOTALS, session="another"))
    assert statuses(meter, "ours", "others") == [("final", "reset"), ("provisional", "counter")]


def test_a_final_figure_that_was_lost_is_not_waited_for(clock: Clock) -> None:
    """Also while nothing else happened; without any figure an answer may still be made."""
    meter = front_end()
    for name in ("told", "background"):
        meter.end(begun(meter, name), answered=True)
    meter.receive_energies([energy_of("told", Status.PROVISIONAL)])
    clock.now_s += LOST_AFTER_S + 0.1
    meter.receive_totals(TOTALS)
    assert statuses(meter, "told", "background") == [("final", "reset"), ("provisional", "")]
    meter.receive_energies([energy_of("told", joules={"decode": 99.0})])  # too late
    assert found(meter, "told")[0]["energy_joules"] == pytest.approx(10.8)


def test_the_end_of_a_server_loses_no_record(tmp_path: Path) -> None:
    """Final, provisional or nothing heard: each has its line."""
    log = tmp_path / "log"
    meter = front_end(request_log=str(log))
    for name in "abc":
        begun(meter, name)
    meter.receive_energies([energy_of("a"), energy_of("b", Status.PROVISIONAL)])
    meter.stop()
    lines = map(json.loads, log.read_text().splitlines())
    assert {line["id"]: line["quality"] for line in lines} == {
        "a": "counter",
        "b": "reset",
        "c": "reset",
    }


def test_one_bad_record_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fault is counted; the others are logged, and the log is closed."""

    def choosy(record: RequestRecord) -> Line:
        if record.id == "b":
            raise KeyError("b")
        return request_line(record)

    monkeypatch.setattr("llm_carbon_meter.frontend.frontend_meter.request_line", choosy)
    log, faults = tmp_path / "log", Faults()
    meter = front_end(request_log=str(log), faults=faults)
    for name in "abc":
        meter.end(begun(meter, name), answered=True)
    meter.receive_energies([energy_of(name) for name in "abc"])
    meter.stop()
    assert [json.loads(line)["id"] for line in log.read_text().splitlines()] == ["a", "c"]
    assert faults.counts == {"request_log": 1}


def test_the_oldest_is_given_up_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests whose figures never come do not pile up; each has a record that says so."""
    monkeypatch.setattr(registry_module, "MAX_OPEN", 3)
    meter = front_end()
    for number in range(5):
        begun(meter, f"r{number}")
    given_up = [("final", "reset")] * 2
    assert statuses(meter, "r0", "r1", "r2") == [*given_up, ("provisional", "")]
    assert len(meter.exchanges.unfinished()) == 3


def test_what_an_answer_in_the_background_goes_on_with_is_recorded_by_itself(
    tmp_path: Path,
) -> None:
    """Its exchange was over and recorded: no joule is told twice."""
    log = tmp_path / "log"
    meter = front_end(request_log=str(log))
    exchange = begun(meter, "first", "mine")
    meter.end(exchange, answered=True)
    meter.receive_energies([energy_of("first")])
    for name in ("second", "third"):
        meter.begin(exchange, name, "resp-1", Prompt(10), 5)
        meter.receive_energies([energy_of(name)])
    assert len(found(meter, "mine")) == 3
    meter.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["internal_ids"] for line in lines] == [["first"], ["second"], ["third"]]
    assert [line["energy_joules"] for line in lines] == [pytest.approx(10.8)] * 3


def test_a_request_is_found_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its record is made and goes from one place to the other, too."""
    seen: list[tuple[str, str]] = []

    def looking(record: RequestRecord) -> Line:
        seen.extend(statuses(meter, "a"))
        return request_line(record)

    monkeypatch.setattr("llm_carbon_meter.frontend.frontend_meter.request_line", looking)
    meter = front_end(
        request_log=str(tmp_path / "log"), share=lambda _: seen.extend(statuses(meter, "a"))
    )
    exchange = begun(meter, "a")
    meter.receive_energies([energy_of("a", Status.PROVISIONAL)])
    meter.end(exchange, answered=True)
    meter.receive_energies([energy_of("a")])
    meter.stop()
    assert seen == [("provisional", "counter"), *[("final", "counter")] * 2]


def test_an_unknown_id_is_not_looked_for_in_every_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many are open."""
    meter = front_end()
    for number in range(10):
        begun(meter, f"r{number}")
    monkeypatch.setattr(Exchange, "external_ids", lambda _: pytest.fail("looked through"))
    assert meter.find("unknown") == {}


def test_an_internal_id_leads_to_its_own_record_whatever_clients_call_theirs() -> None:
    """In flight and on record."""
    meter = front_end()
    victim = begun(meter, "victim")
    thief = begun(meter, "thief", "victim", "chatcmpl-thief")
    assert list(meter.find("victim")) == ["victim"]
    for exchange in (victim, thief):
        meter.end(exchange, answered=True)
    meter.receive_energies([energy_of("victim"), energy_of("thief")])
    assert list(meter.find("victim")) == ["victim"]
    assert list(meter.find("chatcmpl-thief")) == ["thief"]


def test_of_an_id_that_clients_repeat_some_records_are_told() -> None:
    """A look-up costs as little as any."""
    meter = front_end()
    for number in range(3 * MOST_FOUND):
        meter.end(begun(meter, f"r{number}", "mine"), answered=True)
        meter.receive_energies([energy_of(f"r{number}")])
    assert len(meter.find("mine")) == MOST_FOUND


def test_long_ids_are_kept_short_and_lead_to_their_records() -> None:
    """Two that differ only at their end stay two; the engine's own contain the client's."""
    meter = front_end()
    names = ["x" * 1_000_000 + end for end in "ab"]
    for name in names:
        exchange = begun(meter, f"chatcmpl-{name}-0", name)
        assert meter.knows(f"chatcmpl-{name}-0")
        assert meter.member(f"chatcmpl-{name}-0") in exchange.members.values()
        meter.receive_energies([energy_of(f"chatcmpl-{name}-0", Status.PROVISIONAL)])
        meter.end(exchange, answered=True)
        meter.receive_energies([energy_of(f"chatcmpl-{name}-0")])
    for name in names:
        (record,) = found(meter, name)
        assert len(json.dumps(record)) < 5_000
        assert record["internal_ids"] == [bounded_id(f"chatcmpl-{name}-0")]
        assert [record] == found(meter, f"chatcmpl-{name}-0")
    assert max(map(len, meter.records._index)) == LONGEST_ID
    kept = [meter.records.find(name) for name in meter.records._index]
    figures = [figure for found_ in kept for one in found_.values() for figure in [one.energy]]
    assert all(figure is not None and len(figure.request_id) <= LONGEST_ID for figure in figures)


def test_other_api_servers_know_an_answer_before_its_last_tick() -> None:
    """A provisional record that comes late takes the place of no final one."""
    shared: list[RequestRecord] = []
    meter, other = front_end(share=shared.append), front_end(index=1)
    exchange = begun(meter, "a", "mine")
    meter.receive_energies([energy_of("a", Status.PROVISIONAL)])
    meter.end(exchange, answered=True)
    meter.receive_energies([energy_of("a")])
    provisional, final = shared
    other.receive_record(provisional)
    assert statuses(other, "mine") == [("provisional", "counter")]
    for record in (final, provisional):
        other.receive_record(record)
        assert statuses(other, "mine") == [("final", "counter")]


def test_what_cannot_be_written_takes_no_other_along(tmp_path: Path) -> None:
    """A name that is no UTF-8: the records beside it are logged, kept and forgotten in flight."""
    log, faults = tmp_path / "log", Faults()
    meter = front_end(request_log=str(log), faults=faults)
    for name in "abc":
        exchange = Exchange()
        exchange.model = "\ud800" if name == "b" else ""
        meter.begin(exchange, name, name, Prompt(10), 5)
        meter.end(exchange, answered=True)
    meter.receive_energies([energy_of(name, Status.FINAL) for name in "abc"])
    assert [json.loads(line)["id"] for line in log.read_text().splitlines()] == ["a", "c"]
    assert faults.counts["request_log"] == 1
    assert not meter.exchanges.unfinished()
    assert all(meter.records.get(name) for name in "abc")
    meter.stop()
