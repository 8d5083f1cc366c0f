"""Records between processes: MessagePack over zmq PUB/SUB, sockets in a private directory.

Engines publish records and totals, API servers publish their finished exchanges to each other;
every API server hears everybody. A publisher never waits: what nobody reads is dropped, and
cumulative totals make that harmless.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from llm_carbon_meter.config import temporary_folder
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.formats import versioned
from llm_carbon_meter.private_folder import make_private
from llm_carbon_meter.records import (
    Account,
    EngineLoad,
    EngineTotals,
    MeterError,
    RequestEnergy,
    RequestRecord,
)
from llm_carbon_meter.service import Service

VERSION: Final = 1
HIGH_WATER_MARK: Final = 10_000
"""Messages kept for a slow subscriber before new ones are dropped."""
POLL_MS: Final = 200
"""A subscriber looks this often whether it shall stop."""
STOP_S: Final = 5.0
"""How long a stopping subscriber is waited for, and a stopping server's socket."""
MAX_SOCKET_PATH: Final = 107
"""Of a Unix domain socket (sys/un.h)."""


@dataclass(frozen=True, slots=True)
class SharedRecord:
    """An exchange that another API server answered, for look-ups here."""

    frontend: int
    record: RequestRecord


Message = RequestEnergy | EngineTotals | EngineLoad | SharedRecord
KINDS: Final[Mapping[str, type[Message]]] = {
    "request": RequestEnergy,
    "totals": EngineTotals,
    "load": EngineLoad,
    "record": SharedRecord,
}
NAMES: Final = {kind: name for name, kind in KINDS.items()}


def encode(message: Message) -> bytes:
    """A record in MessagePack, with the version of the form and its kind in front.

    Raises:
        TypeError, OverflowError: a value has no such form.
    """
    return msgspec.msgpack.encode((VERSION, NAMES[type(message)], message))


def decode(data: bytes, say: versioned.Say) -> Message:
    """The inverse of `encode`.

    Args:
        data: of one message.
        say: hears that it is of another version.

    Raises:
        MeterError: no MessagePack, an unknown kind, or fields that do not fit.
    """
    try:
        version, kind, body = msgspec.msgpack.decode(data, type=tuple[int, str, Any])
        if kind not in KINDS:
            raise MeterError(f"there is no kind {kind!r}; known: {', '.join(KINDS)}")
        message = versioned.read(body, KINDS[kind], version=version, ours=VERSION, say=say)
        if isinstance(message, EngineTotals):
            _check_accounts(message)
        return message
    except (msgspec.MsgspecError, UnicodeDecodeError, MeterError, RecursionError) as error:
        raise MeterError(f"a message of {len(data)} bytes cannot be read: {error}") from error


def _check_accounts(totals: EngineTotals) -> None:
    """Every list of accounts has one entry for each."""
    of_gpus = (
        accounts_of
        for gpu in totals.gpus
        for accounts_of in (gpu.account_joules, gpu.account_seconds)
    )
    optional = filter(None, (totals.embodied_grams, totals.account_litres))
    of_host = (domain.account_joules for domain in totals.host)
    for accounts in (totals.account_grams, *optional, *of_gpus, *of_host):
        if len(accounts) != len(Account):
            raise MeterError(f"{len(accounts)} accounts, expected {len(Account)}")


def choose_directory() -> str:
    """A name for a private directory; it is made when the first socket is bound.

    Raises:
        ConfigError: no folder for temporary files can be written.
    """
    name = f"llm-carbon-meter-{os.getpid()}-{os.urandom(4).hex()}"
    return str(temporary_folder() / name)


def _address(directory: str, name: str) -> str:
    path = os.path.join(directory, name + ".ipc")
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise MeterError(
            f"socket path {path!r} is longer than {MAX_SOCKET_PATH} bytes; "
            "set LLM_CARBON_METER_CHANNEL_DIR to a shorter directory"
        )
    return "ipc://" + path


def _private(directory: Path) -> None:
    """Make the directory, readable by this user alone.

    Raises:
        MeterError: it cannot be made, or others have a say in it.
    """
    try:
        make_private(directory)
    except MeterError as error:
        raise MeterError(
            f"{error}; or set LLM_CARBON_METER_CHANNEL_DIR to another directory"
        ) from None


def _take_place(path: Path) -> None:
    """Make a socket's directory, and wait a bounded time for a stopping server to leave it.

    Raises:
        MeterError: it cannot be made, is not private, or belongs to a living server.
    """
    until_s = time.monotonic() + STOP_S
    _private(path.parent)
    while _is_heard(path):
        if time.monotonic() > until_s:
            raise MeterError(
                f"the channel directory {str(path.parent)!r} is in use by another living server, "
                f"which listens on {path.name}; stop that server, or set "
                "LLM_CARBON_METER_CHANNEL_DIR to another directory"
            )
        time.sleep(POLL_MS / 1000)
        _private(path.parent)  # its last socket took the directory with it


def _is_heard(path: Path) -> bool:
    """Whether a process listens on a socket; those that were killed leave theirs."""
    with socket.socket(socket.AF_UNIX) as knock:
        knock.settimeout(STOP_S)
        try:
            knock.connect(str(path))
        except OSError as error:
            return isinstance(error, TimeoutError)  # too many wait there to be heard
    return True


def sweep(directory: str, names: Sequence[str]) -> None:
    """Remove sockets that nobody binds any more, and the directory with the last one."""
    with contextlib.suppress(OSError):
        for name in names:
            Path(directory, name + ".ipc").unlink(missing_ok=True)
        Path(directory).rmdir()


class Publisher:
    """A PUB socket under a name; publishing never blocks and never raises."""

    def __init__(self, directory: str, name: str, faults: Faults) -> None:
        self._faults = faults
        self._lock = threading.Lock()
        self._path = Path(directory, name + ".ipc")
        address = _address(directory, name)
        _take_place(self._path)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.LINGER, 2000)  # ms: the last records of a stopping engine
        try:
            self._path.unlink(missing_ok=True)
            self._socket.bind(address)
        except (zmq.ZMQError, OSError) as error:
            self._socket.close(linger=0)
            raise MeterError(
                f"the channel {address} cannot be bound: {error}; "
                "free space there or set LLM_CARBON_METER_CHANNEL_DIR"
            ) from error

    def publish(self, messages: Sequence[Message]) -> None:
        """Send to whoever listens, all at once; safe from any thread."""
        parts = [part for part in map(self._encoded, messages) if part]
        if not parts:
            return
        try:
            with self._lock:
                self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            self._faults.note("channel", error, f"Records not published: {len(parts)}.")

    def _encoded(self, message: Message) -> bytes:
        try:
            return encode(message)
        except (TypeError, ValueError, OverflowError) as error:
            self._faults.note("channel", error, "A record is not published.")
            return b""

    def close(self) -> None:
        """Send what is waiting, remove the socket, and the directory with the last one."""
        self._socket.close()
        sweep(str(self._path.parent), [self._path.stem])


class Subscriber:
    """A thread that hears engines and other API servers.

    Args:
        directory: of the sockets; those that do not exist yet are waited for.
        names: sockets to hear.
        receive: called with the messages that came together, on this thread.
        faults: where messages that cannot be read are counted.
    """

    def __init__(
        self,
        directory: str,
        names: Sequence[str],
        receive: Callable[[Sequence[Message]], None],
        faults: Faults,
    ) -> None:
        addresses = [_address(directory, name) for name in names]
        self._receive = receive
        self._faults = faults
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        for address in addresses:
            self._socket.connect(address)
        self._service = Service("llm-carbon-channel", self._turn, self._failed)
        self._service.start()

    def _turn(self) -> float:
        if self._socket.poll(POLL_MS):
            decoded = map(self._decoded, self._socket.recv_multipart())
            heard = [message for message in decoded if message is not None]
            if heard:
                self._receive(heard)
        return 0.0

    def _decoded(self, part: bytes) -> Message | None:
        """One bad message is one lost message."""
        try:
            return decode(part, self._say)
        except MeterError as error:
            self._faults.note("channel", error)
            return None

    def _say(self, text: str) -> None:
        self._faults.note("channel", f"a message: {text}.")

    def _failed(self, error: Exception) -> float:
        self._faults.note("channel", error)
        return 0.0

    def close(self) -> None:
        """Stop hearing."""
        self._service.stop(STOP_S)
        self._socket.close(linger=0)


def engine_name(index: int) -> str:
    """Socket name of an engine."""
    return f"engine-{index}"


def frontend_name(index: int) -> str:
    """Socket name of an API server."""
    return f"frontend-{index}"
