"""The codec of messages between processes, under fuzzing."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.records import (
    ACCOUNT_NAMES,
    Account,
    AccountJoules,
    CarbonIntensity,
    EngineLoad,
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
from tests.support.made.records import RECORD
from tests.support.servers.messages import ENERGY, MESSAGES, TOTALS

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
    accounts=st.builds(AccountJoules, *[joules] * len(ACCOUNT_NAMES)),
    **dict.fromkeys(["operational_grams", "mean_running", "first_step_s", "last_step_s"], joules),
    **dict.fromkeys(["engine", "prompt_tokens", "cached_tokens", "output_tokens"], counts),
    num_steps=counts,
    gpu_seconds=joules,
    embodied_grams=st.none() | joules,
    request_id=some_text,
)
totals = st.builds(
    EngineTotals,
    session=some_text,
    engine=counts,
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
    open_requests=counts,
)


loads = st.builds(EngineLoad, engine=counts, requests=st.dictionaries(counts, counts, max_size=3))


shared = st.builds(
    SharedRecord,
    frontend=counts,
    record=st.builds(
        replace,
        st.just(RECORD),
        energy=st.none() | energies,
        external_ids=st.lists(some_text, max_size=3).map(tuple),
        deployment=st.dictionaries(some_text, some_text | counts | joules, max_size=3),
    ),
)


def ignored(_text: str) -> None:
    """Of damaged messages the version may be damaged, too."""


def received(data: bytes) -> Message:
    """A message of our version."""
    return decode(data, pytest.fail)


def packed(value: Any) -> bytes:
    """Any value in MessagePack; a number that it cannot hold becomes text."""
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return msgspec.msgpack.encode(str(value))


def changed(message: Message, place: int, value: Any) -> bytes:
    """A message with another version, kind or body."""
    parts: list[Any] = list(msgspec.msgpack.decode(encode(message)))
    parts[place] = value
    return packed(parts)


@given(energies | totals | loads | shared)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    """Encoding and decoding is the identity for all kinds, types included."""
    again = received(encode(message))
    assert again == message
    assert type(again) is type(message)


def test_numbers_of_a_deployment_keep_their_kind() -> None:
    """A count of GPUs is a whole number, also beside watts."""
    deployment = {"gpu": "H100", "tensor_parallel_size": 2, "power_limit_watts": 500.0}
    again = received(encode(SharedRecord(0, replace(RECORD, deployment=deployment))))
    assert isinstance(again, SharedRecord)
    assert repr(again.record.deployment) == repr(deployment)


def test_enums_and_tuples_come_back_as_such() -> None:
    """Not as the strings and lists that MessagePack has."""
    energy, engine = received(encode(ENERGY)), received(encode(TOTALS))
    assert isinstance(energy, RequestEnergy)
    assert isinstance(engine, EngineTotals)
    assert energy.quality is Quality.MODELLED
    assert energy.status is Status.FINAL
    assert isinstance(engine.gpus, tuple)
    assert isinstance(engine.gpus[0], GpuTotals)


def test_infinite_times_survive() -> None:
    """JSON has no word for infinity, MessagePack has."""
    message = received(encode(TOTALS.__class__(**{**_fields(TOTALS), "sampler_gap_s": math.inf})))
    assert isinstance(message, EngineTotals)
    assert message.sampler_gap_s == math.inf


def _fields(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__dataclass_fields__}


def test_a_message_begins_with_version_and_kind() -> None:
    """So that a later version knows what it reads."""
    for kind, message in zip(KINDS, MESSAGES, strict=True):
        version, name, _ = msgspec.msgpack.decode(encode(message))
        assert (version, name) == (VERSION, kind)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error_of_ours(data: bytes) -> None:
    """Nothing that comes over a socket raises anything but MeterError."""
    with pytest.raises(MeterError):
        decode(data, ignored)


@given(a_json)
def test_any_json_is_refused(value: Any) -> None:
    """Also lists, numbers and objects without our fields."""
    with pytest.raises(MeterError):
        decode(packed(value), ignored)


@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_damaged_messages_are_read_or_refused(message: Message, data: st.DataObject) -> None:
    """Bytes cut out, doubled or replaced give a message or a MeterError, nothing else."""
    whole = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        until = data.draw(st.integers(at, min(at + 8, len(whole))))
        whole[at:until] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\xc0", b"\x93", b"\xcb"])
        )
        if not whole:
            break
    try:
        again = decode(bytes(whole), ignored)
    except MeterError:
        return
    assert isinstance(again, tuple(KINDS.values()))


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 200_000,
        b"\x81\xa1v" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff" + b"a" * 1000,
        b"\x93\x01\xa6totals" + b"\x91" * 100_000,
    ],
    ids=["lists", "objects", "long list", "long text", "inside"],
)
def test_messages_made_to_exhaust_us_end_soon(data: bytes) -> None:
    """Depth and length are an error of ours, and take no time."""
    began_s = time.monotonic()
    with pytest.raises(MeterError):
        decode(data, ignored)
    assert time.monotonic() - began_s < 5


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a message."""
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
    """Anything in the place of any value gives a message or a MeterError."""
    outer = {"root": msgspec.msgpack.decode(encode(message))}
    *parents, last = data.draw(st.sampled_from(list(_places(outer))[1:]))
    target: Any = outer
    for key in parents:
        target = target[key]
    target[last] = data.draw(a_json)
    try:
        again = decode(packed(outer["root"]), ignored)
    except MeterError:
        return
    assert isinstance(again, tuple(KINDS.values()))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (1, "greeting", "there is no kind 'greeting'"),
        (2, {}, "missing required field"),
        (2, None, "Expected `object`"),
    ],
)
def test_refusals_say_why(place: int, value: object, reason: str) -> None:
    """An unknown kind and wrong fields are told apart."""
    with pytest.raises(MeterError, match=reason):
        received(changed(ENERGY, place, value))


def test_another_version_is_read_as_far_as_it_is_known() -> None:
    """And that is said."""
    said: list[str] = []
    body = {**msgspec.msgpack.decode(encode(ENERGY))[2], "noise_decibels": 0.1}
    assert decode(packed([VERSION + 1, "request", body]), said.append) == ENERGY
    assert said == ["it has version 2, expected 1; what is known of it is read"]


def test_a_name_that_is_no_text_is_refused() -> None:
    """MessagePack may have numbers and lists as names."""
    with pytest.raises(MeterError, match=r"no fields \(1, 2\)"):
        received(packed([VERSION, "request", {(1, 2): 3}]))


def test_within_one_version_an_unknown_field_is_refused() -> None:
    """Also deep inside: somebody made it who does not know this form."""
    body = msgspec.msgpack.decode(encode(TOTALS))[2]
    body["gpus"][0]["degrees"] = 70
    with pytest.raises(MeterError, match=r"version 1 has no fields gpus\.degrees"):
        received(packed([VERSION, "totals", body]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("accounts", "decode"), "2"),
        (("accounts", "decode"), True),
        (("accounts", "decode"), None),
        (("num_steps",), 1.5),
        (("num_steps",), True),
        (("request_id",), 3),
        (("quality",), "excellent"),
        (("status",), []),
        (("status",), "almost"),
    ],
)
def test_values_of_the_wrong_type_are_refused(path: tuple[str, ...], value: object) -> None:
    """A number must be a number: a record that was accepted can be added up."""
    body = msgspec.msgpack.decode(encode(ENERGY))[2]
    target: Any = body
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(MeterError, match="cannot be read"):
        received(changed(ENERGY, 2, body))
