"""Publishers and subscribers on real sockets in a private directory."""

import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError, MeterError, RequestEnergy
from llm_carbon_meter.servers.shared import channel
from llm_carbon_meter.servers.shared.channel import (
    MAX_SOCKET_PATH,
    Message,
    Publisher,
    SharedRecord,
    Subscriber,
    choose_directory,
    engine_name,
    frontend_name,
)
from tests.support.made.records import RECORD
from tests.support.servers.messages import ENERGY, SHARED, TOTALS


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

    def _hear(self, messages: Sequence[Message]) -> None:
        with self._changed:
            self.heard.extend(messages)
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

    def never(_messages: Sequence[Message]) -> None:
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
    """A message that cannot be read is one lost message; what a receiver raises is counted."""
    heard: list[Message] = []
    faults, done = Faults(), threading.Event()

    def receive(messages: Sequence[Message]) -> None:
        if SHARED in messages:
            raise RuntimeError("receiver")
        heard.extend(messages)
        done.set()

    publisher = Publisher(directory, engine_name(0), Faults())
    subscriber = Subscriber(directory, [engine_name(0)], receive, faults)
    try:
        for _ in range(100):
            publisher._socket.send(b"rubbish")
            publisher.publish([SHARED])
            publisher.publish([TOTALS])
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
    bad = SharedRecord(0, replace(RECORD, deployment={"no text": object()}))  # type: ignore[dict-item]
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


def test_a_link_in_the_place_of_the_directory_is_refused(directory: str) -> None:
    """Its owner could lead the sockets elsewhere; a slash at the end changes nothing."""
    target = Path(directory).with_name("target")
    target.mkdir(mode=0o700)
    Path(directory).symlink_to(target)
    for given in (directory, directory + "/"):
        with pytest.raises(MeterError, match=r"is a symbolic link.*LLM_CARBON_METER_CHANNEL_DIR"):
            Publisher(given, engine_name(0), Faults())
    assert not list(target.iterdir())


def test_a_living_servers_socket_is_not_taken(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second server with the same setting is refused, and the first one is heard on."""
    monkeypatch.setattr(channel, "STOP_S", 0.3)
    first, ear = Publisher(directory, engine_name(0), Faults()), Ear(directory, engine_name(0))
    try:
        assert ear.hear(first, TOTALS)
        with pytest.raises(MeterError, match=r"in use by another living server.*engine-0.ipc"):
            Publisher(directory, engine_name(0), Faults())
        assert ear.hear(first, SHARED)
    finally:
        ear.subscriber.close()
        first.close()


def test_a_stopping_servers_socket_is_waited_for(directory: str) -> None:
    """A server that is started again at once comes before the old meter has settled."""
    first = Publisher(directory, engine_name(0), Faults())
    threading.Timer(0.5, first.close).start()
    Publisher(directory, engine_name(0), Faults()).close()


def test_the_socket_of_a_killed_server_is_taken(directory: str) -> None:
    """The kernel closed it, and its file is still there."""
    os.makedirs(directory, mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(os.path.join(directory, engine_name(0) + ".ipc"))
        killed.listen()
    Publisher(directory, engine_name(0), Faults()).close()


def test_without_a_temporary_folder_there_is_one_clear_line(no_temporary_folder: None) -> None:
    """It says what to set."""
    with pytest.raises(ConfigError, match=r"No usable temporary directory.*set TMPDIR"):
        choose_directory()


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
