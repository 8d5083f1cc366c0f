"""Records between processes: the codec under fuzzing, and real sockets in a private directory."""

import contextlib
import json
import math
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import (
    Account,
    CarbonIntensity,
    EngineTotals,
    GpuTotals,
    MeterError,
    Outcome,
    Quality,
    RequestEnergy,
    Source,
    Status,
)
from llm_carbon_meter.servers.shared.channel import (
    KINDS,
    MAX_SOCKET_PATH,
    VERSION,
    Message,
    Publisher,
    SharedRecord,
    Subscriber,
    choose_directory,
    decode,
    encode,
    engine_name,
    frontend_name,
)
from tests.support.energies import energy_of

ENERGY = energy_of(
    "chatcmpl-1-8f",
    engine=1,
    source=Source.MODELLED,
    quality=Quality.MODELLED,
    outcome=Outcome.STOPPED,
    waste_joules=0.1,
)
TOTALS = EngineTotals(
    session="s",
    engine=0,
    source=Source.MEASURED,
    gpus=(GpuTotals("GPU-1", 7.0, (1.0,) * 7, (2.0,) * 7, None),),
    account_grams=(0.5,) * len(Account),
    embodied_grams=(0.1,) * len(Account),
    intensity=CarbonIntensity(302.0, "DE", "electricitymaps", 12.5, is_estimated=True),
    steps={"prefill": 3},
    tokens={"prefill": 30},
    errors={"power": 1},
    sampler_gap_s=0.04,
    open_requests=2,
)
SHARED = SharedRecord(1, "key", ("a", "b"), {"energy_joules": 1.0, "features": {"n": [1, None]}})
MESSAGES: list[Message] = [ENERGY, TOTALS, SHARED]

joules = st.floats(allow_nan=False)
counts = st.integers(0, 2**63)
some_text = st.text(max_size=20)
counters = st.dictionaries(some_text, counts, max_size=3)
a_json = st.recursive(
    st.none() | st.booleans() | st.integers() | joules | some_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(some_text, inner, max_size=3),
    max_leaves=8,
)
energies = st.builds(
    RequestEnergy,
    **dict.fromkeys(
        ["prefill_joules", "decode_joules", "recompute_joules", "waste_joules", "idle_joules"],
        joules,
    ),
    **dict.fromkeys(["operational_grams", "mean_running", "first_step_s", "last_step_s"], joules),
    gpu_seconds=joules,
    embodied_grams=st.none() | joules,
    request_id=some_text,
)
totals = st.builds(
    EngineTotals,
    session=some_text,
    gpus=st.lists(
        st.builds(
            GpuTotals,
            gpu=some_text,
            counter_joules=joules,
            account_joules=st.tuples(*[joules] * len(Account)),
            account_seconds=st.tuples(*[joules] * len(Account)),
            watts=st.none() | joules,
        ),
        max_size=3,
    ).map(tuple),
    account_grams=st.tuples(*[joules] * len(Account)),
    embodied_grams=st.just(()) | st.tuples(*[joules] * len(Account)),
    intensity=st.builds(CarbonIntensity, joules, some_text, some_text, st.none() | joules),
    steps=counters,
    tokens=counters,
    errors=counters,
    sampler_gap_s=joules,
)
shared = st.builds(
    SharedRecord,
    frontend=counts,
    key=some_text,
    ids=st.lists(some_text, max_size=3).map(tuple),
    record=st.dictionaries(some_text, a_json, max_size=3),
)


@given(energies | totals | shared)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    """Encoding and decoding is the identity for all kinds, types included."""
    again = decode(encode(message))
    assert again == message
    assert type(again) is type(message)


def test_enums_and_tuples_come_back_as_such() -> None:
    """Not as the strings and lists that JSON has."""
    energy, engine = decode(encode(ENERGY)), decode(encode(TOTALS))
    assert isinstance(energy, RequestEnergy)
    assert isinstance(engine, EngineTotals)
    assert energy.quality is Quality.MODELLED
    assert energy.status is Status.FINAL
    assert isinstance(engine.gpus, tuple)
    assert isinstance(engine.gpus[0], GpuTotals)


def test_infinite_times_survive() -> None:
    """JSON has no word for infinity, ours has."""
    message = decode(encode(TOTALS.__class__(**{**_fields(TOTALS), "sampler_gap_s": math.inf})))
    assert isinstance(message, EngineTotals)
    assert message.sampler_gap_s == math.inf


def _fields(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__dataclass_fields__}


def test_a_message_is_one_line_with_version_and_kind() -> None:
    """So that a later version can refuse it, and a person can read it."""
    for kind, message in zip(KINDS, MESSAGES, strict=True):
        data = encode(message)
        assert b"\n" not in data
        outer = json.loads(data)
        assert (outer["v"], outer["kind"]) == (VERSION, kind)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error_of_ours(data: bytes) -> None:
    """Nothing that comes over a socket raises anything but MeterError."""
    with pytest.raises(MeterError):
        decode(data)


@given(a_json)
def test_any_json_is_refused(value: Any) -> None:
    """Also lists, numbers and objects without our fields."""
    with pytest.raises(MeterError):
        decode(json.dumps(value).encode())


@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_damaged_messages_are_read_or_refused(message: Message, data: st.DataObject) -> None:
    """Bytes cut out, doubled or replaced give a message or a MeterError, nothing else."""
    whole = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        until = data.draw(st.integers(at, min(at + 8, len(whole))))
        whole[at:until] = data.draw(st.binary(max_size=4) | st.sampled_from([b"[", b'"', b"1e9"]))
        if not whole:
            break
    try:
        again = decode(bytes(whole))
    except MeterError:
        return
    assert isinstance(again, tuple(KINDS.values()))


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000,
        b'{"v":' * 100_000,
        b"1" * 100_000,
        b'{"v":1,"kind":"totals","body":' + b"[" * 100_000,
        encode(TOTALS).replace(b"0.04", b"1e999999999"),
        encode(TOTALS).replace(b'"open_requests":2', b'"open_requests":' + b"9" * 100_000),
    ],
    ids=["lists", "objects", "digits", "inside", "exponent", "count"],
)
def test_messages_made_to_exhaust_us_end_soon(data: bytes) -> None:
    """Depth and length are an error of ours or a number, and take no time."""
    began_s = time.monotonic()
    with contextlib.suppress(MeterError):
        assert isinstance(decode(data), EngineTotals)
    assert time.monotonic() - began_s < 5


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside some JSON."""
    yield path
    items: Any = []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from _places(inner, (*path, key))


@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_messages_with_foreign_values_are_read_or_refused(
    message: Message, data: st.DataObject
) -> None:
    """Any JSON in the place of any value gives a message or a MeterError."""
    outer = {"root": json.loads(encode(message))}
    *parents, last = data.draw(st.sampled_from(list(_places(outer))[1:]))
    target: Any = outer
    for key in parents:
        target = target[key]
    target[last] = data.draw(a_json)
    try:
        again = decode(json.dumps(outer["root"]).encode())
    except MeterError:
        return
    assert isinstance(again, tuple(KINDS.values()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": 2}, "version 2, expected 1"),
        ({"kind": "greeting"}, "greeting"),
        ({"body": {}}, "fields .* do not fit"),
        ({"body": None}, "cannot be read"),
    ],
)
def test_refusals_say_why(change: dict[str, Any], reason: str) -> None:
    """Another version, an unknown kind and wrong fields are told apart."""
    with pytest.raises(MeterError, match=reason):
        decode(json.dumps({**json.loads(encode(ENERGY)), **change}).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decode_joules", "2"),
        ("decode_joules", True),
        ("decode_joules", None),
        ("num_steps", 1.5),
        ("num_steps", True),
        ("request_id", 3),
        ("quality", "excellent"),
        ("status", []),
    ],
)
def test_values_of_the_wrong_type_are_refused(name: str, value: object) -> None:
    """A number must be a number: a record that was accepted can be added up."""
    outer = json.loads(encode(ENERGY))
    outer["body"][name] = value
    with pytest.raises(MeterError, match="cannot be read"):
        decode(json.dumps(outer).encode())


def test_deep_nesting_is_refused() -> None:
    """A message that would exhaust the stack is one lost message."""
    with pytest.raises(MeterError):
        decode(b"[" * 100_000)


# Real sockets


@pytest.fixture
def directory() -> Iterator[str]:
    """A short path for sockets, which does not exist yet."""
    parent = tempfile.mkdtemp(prefix="lcm", dir="/tmp")
    yield os.path.join(parent, "ch")
    shutil.rmtree(parent)


class Ear:
    """A subscriber that remembers, and can be waited for."""

    def __init__(self, directory: str, *names: str) -> None:
        self.heard: list[Message] = []
        self.faults = Faults()
        self._changed = threading.Condition()
        self.subscriber = Subscriber(directory, names, self._hear, self.faults)

    def _hear(self, message: Message) -> None:
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()

    def wait(self, ready: Callable[[list[Message]], bool], timeout_s: float = 5.0) -> bool:
        """Wait until something holds for what was heard."""
        with self._changed:
            return self._changed.wait_for(lambda: ready(self.heard), timeout_s)

    def hear(self, publisher: Publisher, message: Message) -> bool:
        """Publish until it is heard: a subscriber that has just connected misses the first."""
        for _ in range(100):
            publisher.publish([message])
            if self.wait(lambda heard: message in heard, timeout_s=0.05):
                return True
        return False


def numbered(number: int) -> RequestEnergy:
    """A message that can be told from others."""
    return replace(ENERGY, num_steps=number)


def test_what_is_published_is_heard_in_order(directory: str) -> None:
    """Every kind arrives, from several publishers, each in its order."""
    engine = Publisher(directory, engine_name(0), Faults())
    frontend = Publisher(directory, frontend_name(1), Faults())
    ear = Ear(directory, engine_name(0), frontend_name(1))
    try:
        assert ear.hear(engine, TOTALS)
        assert ear.hear(frontend, SHARED)
        for number in range(1000):
            engine.publish([numbered(number)])
        assert ear.wait(lambda heard: numbered(999) in heard)
        steps = [message.num_steps for message in ear.heard if isinstance(message, RequestEnergy)]
        assert steps == list(range(1000))
        assert ear.faults.counts == {}
    finally:
        ear.subscriber.close()
        engine.close()
        frontend.close()


def test_a_subscriber_may_come_first(directory: str) -> None:
    """API servers start before engines: sockets that do not exist yet are waited for."""
    ear = Ear(directory, engine_name(0))
    publisher = Publisher(directory, engine_name(0), Faults())
    try:
        assert ear.hear(publisher, TOTALS)
    finally:
        ear.subscriber.close()
        publisher.close()


def test_a_restarted_publisher_is_heard_again(directory: str) -> None:
    """An engine that comes back under its name finds its old listeners."""
    ear = Ear(directory, engine_name(0))
    try:
        for number in range(3):
            publisher = Publisher(directory, engine_name(0), Faults())
            assert ear.hear(publisher, numbered(number))
            publisher.close()
    finally:
        ear.subscriber.close()


def test_a_publisher_takes_over_the_socket_of_a_killed_one(directory: str) -> None:
    """What a killed engine left behind in the directory does not stop the next."""
    os.makedirs(directory, mode=0o700)
    Path(directory, engine_name(0) + ".ipc").touch()
    publisher = Publisher(directory, engine_name(0), Faults())
    ear = Ear(directory, engine_name(0))
    try:
        assert ear.hear(publisher, TOTALS)
    finally:
        ear.subscriber.close()
        publisher.close()


def test_nobody_listening_costs_nothing(directory: str) -> None:
    """Publishing to nobody does not block, does not pile up and counts no error."""
    faults = Faults()
    publisher = Publisher(directory, engine_name(0), faults)
    try:
        began_s = time.monotonic()
        for number in range(5000):
            publisher.publish([numbered(number)])
        assert time.monotonic() - began_s < 5
        assert faults.counts == {}
    finally:
        publisher.close()


def test_a_receiver_that_never_returns_blocks_nobody(directory: str) -> None:
    """A frontend that hangs in a message leaves the engine's thread alone."""
    hang, stuck = threading.Event(), threading.Event()

    def never(_message: Message) -> None:
        stuck.set()
        hang.wait(timeout=30)

    publisher = Publisher(directory, engine_name(0), Faults())
    subscriber = Subscriber(directory, [engine_name(0)], never, Faults())
    try:
        while not stuck.is_set():
            publisher.publish([ENERGY])
            stuck.wait(timeout=0.05)
        began_s = time.monotonic()
        for _ in range(2000):
            publisher.publish([ENERGY])
        assert time.monotonic() - began_s < 5
    finally:
        hang.set()
        subscriber.close()
        publisher.close()


def test_bad_messages_are_counted_and_the_next_one_is_heard(directory: str) -> None:
    """A message that cannot be read, or a receiver that raises, is one lost message."""
    heard: list[Message] = []
    faults, done = Faults(), threading.Event()

    def receive(message: Message) -> None:
        if message == SHARED:
            raise RuntimeError("receiver")
        heard.append(message)
        done.set()

    publisher = Publisher(directory, engine_name(0), Faults())
    subscriber = Subscriber(directory, [engine_name(0)], receive, faults)
    try:
        for _ in range(100):
            publisher._socket.send(b"rubbish")
            publisher.publish([SHARED, TOTALS])
            if done.wait(timeout=0.05):
                break
        assert heard[0] == TOTALS
        assert faults.counts["channel"] >= 1
    finally:
        subscriber.close()
        publisher.close()


def test_a_record_that_cannot_be_encoded_is_counted(directory: str) -> None:
    """Publishing never raises into the meter's thread, and the records beside it arrive."""
    faults, ear = Faults(), Ear(directory, frontend_name(0))
    publisher = Publisher(directory, frontend_name(0), faults)
    bad = SharedRecord(0, "key", (), {"not json": object()})
    try:
        assert ear.hear(publisher, SHARED)
        publisher.publish([bad, TOTALS])
        assert ear.wait(lambda heard: TOTALS in heard)
        assert faults.counts == {"channel": 1}
    finally:
        ear.subscriber.close()
        publisher.close()


def test_the_directory_is_private_and_leaves_with_the_last_socket(directory: str) -> None:
    """Made 0700, kept while one socket is bound, removed with the last."""
    first = Publisher(directory, engine_name(0), Faults())
    second = Publisher(directory, engine_name(1), Faults())
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    first.close()
    assert os.listdir(directory) == ["engine-1.ipc"]
    second.close()
    assert not os.path.exists(directory)


def test_a_directory_that_was_removed_does_not_stop_closing(directory: str) -> None:
    """Somebody cleaned /tmp: closing is quiet."""
    publisher = Publisher(directory, engine_name(0), Faults())
    shutil.rmtree(directory)
    publisher.close()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_an_open_directory_is_refused(directory: str, mode: int) -> None:
    """Others could read the records: the error says what to do."""
    os.mkdir(directory)
    os.chmod(directory, mode)
    with pytest.raises(MeterError, match=r"not private to this user; remove it or make it mode"):
        Publisher(directory, engine_name(0), Faults())


def test_a_file_in_the_place_of_the_directory_is_refused(directory: str) -> None:
    """The error names the path and the setting."""
    Path(directory).touch()
    with pytest.raises(MeterError, match=r"cannot be made.*LLM_CARBON_METER_CHANNEL_DIR"):
        Publisher(directory, engine_name(0), Faults())


def test_a_path_too_long_for_a_socket_is_refused(directory: str) -> None:
    """Before anything is made; the error names the setting."""
    long = os.path.join(directory, "x" * MAX_SOCKET_PATH)
    with pytest.raises(MeterError, match=r"longer than 107 bytes; set LLM_CARBON_METER"):
        Publisher(long, engine_name(0), Faults())
    assert not os.path.exists(directory)


def test_the_chosen_directory_is_new_each_time_and_short() -> None:
    """Two servers on one host do not meet, and the path fits a socket."""
    first, second = choose_directory(), choose_directory()
    assert first != second
    assert not os.path.exists(first)
    assert len(os.path.join(first, "frontend-999.ipc")) < MAX_SOCKET_PATH


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decode_joules", 10**400),
        ("num_steps", False),
        ("num_steps", 1.5),
        ("status", "almost"),
        ("request_id", 7),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(name: str, value: Any) -> None:
    """What is not of the annotated type never reaches the registry."""
    message = json.loads(encode(ENERGY))
    message["body"][name] = value
    with pytest.raises(MeterError, match="cannot be read"):
        decode(json.dumps(message).encode())
