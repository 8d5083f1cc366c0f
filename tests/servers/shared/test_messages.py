"""The codec of messages between processes, under fuzzing."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.records import (
    Account,
    AccountJoules,
    CarbonIntensity,
    EngineTotals,
    GpuTotals,
    MeterError,
    Quality,
    RequestEnergy,
    Status,
)
from llm_carbon_meter.servers.shared.channel import (
    KINDS,
    VERSION,
    Message,
    SharedRecord,
    decode,
    encode,
)
from tests.support.messages import ENERGY, MESSAGES, TOTALS

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
    accounts=st.builds(
        AccountJoules,
        **dict.fromkeys(["prefill", "decode", "recompute", "waste", "idle"], joules),
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


def _altered(name: str, value: object) -> bytes:
    """A message with another value of a field, or of an account."""
    outer = json.loads(encode(ENERGY))
    body = outer["body"]
    place = body if name in body else body["accounts"]
    assert name in place
    place[name] = value
    return json.dumps(outer).encode()


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
        ("decode", "2"),
        ("decode", True),
        ("decode", None),
        ("num_steps", 1.5),
        ("num_steps", True),
        ("request_id", 3),
        ("quality", "excellent"),
        ("status", []),
    ],
)
def test_values_of_the_wrong_type_are_refused(name: str, value: object) -> None:
    """A number must be a number: a record that was accepted can be added up."""
    with pytest.raises(MeterError, match="cannot be read"):
        decode(_altered(name, value))


def test_deep_nesting_is_refused() -> None:
    """A message that would exhaust the stack is one lost message."""
    with pytest.raises(MeterError):
        decode(b"[" * 100_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decode", 10**400),
        ("num_steps", False),
        ("num_steps", 1.5),
        ("status", "almost"),
        ("request_id", 7),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(name: str, value: Any) -> None:
    """What is not of the annotated type never reaches the registry."""
    with pytest.raises(MeterError, match="cannot be read"):
        decode(_altered(name, value))
