"""Whose a request is: what a gateway's header, a key, an adapter or baggage says of it.

A label of a metric comes from a closed list, or is one of the first that came; records and spans
have every tenant's own name.
"""

import hashlib
import hmac
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import msgspec

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.records import ConfigError

RawHeaders = Iterable[tuple[bytes, bytes]]
"""Names in lower case, and values: as ASGI has them."""

UNKNOWN: Final = "unknown"
"""Label of requests that name no tenant."""
OTHER: Final = "other"
"""Label of all names beyond the list."""
BYTES: Final = "surrogateescape"
"""So that names that are no UTF-8 stay different."""
LONGEST: Final = 64
"""Characters of a name."""
DIGITS: Final = 12
"""Of the SHA-256 of a key that has no name."""
HASHED: Final = "sha256:"
"""Stands before the SHA-256 of a key in the file of keys."""
MOST_BODY: Final = 1_000_000
"""Bytes of a body that are looked through for its user."""
GUARDED: Final = ("header", "api_key", "baggage")
"""Ways by which a look-up says whose it is, as a request does."""


class _Body(msgspec.Struct):
    safety_identifier: str | None = None
    user: str | None = None


def claim_of(body: bytes) -> str:
    """Who a client says that it is asking for; empty where it does not."""
    try:
        told = msgspec.json.decode(body, type=_Body)
    except (ValueError, RecursionError):
        return ""
    return told.safety_identifier or told.user or ""


class Labels:
    """Values of one label: a closed list, or the first that come.

    Args:
        names: the list; empty for the first that come.
        most: of these.
    """

    def __init__(self, names: Iterable[str], most: int) -> None:
        self._names = set(names)
        self._most = 0 if self._names else most

    def of(self, name: str, *, new: bool = True) -> str:
        """The value for a name.

        Args:
            name: to be shown; in quotation marks where it is a word of ours.
            new: whether it may become one of the first.
        """
        if name not in self._names:
            if not new or len(self._names) >= self._most:
                return OTHER
            self._names.add(name)
        return f'"{name}"' if name in (UNKNOWN, OTHER) else name


class Tenants:
    """Says whose requests are, and who may read their records.

    Args:
        config: settings.
        faults: hears of a file of keys that cannot be used.
    """

    def __init__(self, config: Config, faults: Faults) -> None:
        way, _, name = config.tenant_from.partition(":")
        self.are_told = bool(way)
        """Whether requests have tenants at all."""
        self.are_claimed = way == "claimed_user"
        """Whether a client's own word, in its body, is enough."""
        keys = _keys(config, faults) if way == "api_key" else {}
        self.named = config.tenants or tuple(dict.fromkeys(keys.values()))
        """The closed list: of the settings, else of the file of keys."""
        self._guards = way in GUARDED
        self._admin_key = config.admin_key.encode()
        self._labels = Labels(self.named, config.tenant_limit)
        readers: Mapping[str, Callable[[RawHeaders], str]] = {
            "header": lambda headers: _only(headers, name.lower().encode()),
            "api_key": lambda headers: _key_name(bearer(headers), keys),
            "baggage": lambda headers: _baggage(headers, name),
        }
        self._read = readers.get(way)
        self._is_adapter = way == "adapter"

    def of(self, headers: RawHeaders, adapter: str = "", claim: str = "") -> str | None:
        """The tenant of a request; None where nothing names one.

        Args:
            headers: of the request.
            adapter: that it asks for; empty for none.
            claim: of its body; empty for none.
        """
        if self._read is not None:
            told = self._read(headers)
        else:
            told = adapter if self._is_adapter else claim if self.are_claimed else ""
        return _shown(told) if told else None

    def label(self, tenant: str | None, *, new: bool = True) -> str:
        """Of metrics; arguments as of `Labels.of`."""
        return UNKNOWN if tenant is None else self._labels.of(tenant, new=new)

    def reader(self, headers: RawHeaders) -> Callable[[str | None], bool]:
        """Whether who asks may see a tenant's records: the tenant itself and an admin may.

        Records of nobody are the admin's alone.
        """
        if not self._guards:
            return lambda tenant: True
        if self._admin_key and hmac.compare_digest(bearer(headers), self._admin_key):
            return lambda tenant: True
        own = self.of(headers)
        return lambda tenant: tenant is not None and tenant == own


def bearer(headers: RawHeaders) -> bytes:
    """The key that a server checks; empty where there is none.

    OpenAI's and vLLM's is in ``Authorization``, Anthropic's in ``x-api-key``.
    """
    other = b""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
        if name == b"x-api-key":
            other = other or value.strip()
    return other


def _only(headers: RawHeaders, wanted: bytes) -> str:
    """A header's value; empty where there are several: a client's may be among them."""
    values = {value for name, value in headers if name == wanted}
    return values.pop().decode("utf-8", BYTES).strip() if len(values) == 1 else ""


def _baggage(headers: RawHeaders, wanted: str) -> str:
    """A value of W3C baggage; empty where there are several.

    OpenTelemetry's reader takes one of them, and leaves the properties in it.
    """
    values = set()
    for member in _only(headers, b"baggage").split(","):
        name, _, value = member.partition("=")
        if name.strip() == wanted:
            values.add(value.partition(";")[0].strip())
    return unquote(values.pop(), errors=BYTES) if len(values) == 1 else ""


@lru_cache(maxsize=1024)
def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _key_name(key: bytes, keys: Mapping[str, str]) -> str:
    if not key:
        return ""
    digest = _digest(key)
    return keys.get(digest, digest[:DIGITS])


def _keys(config: Config, faults: Faults) -> Mapping[str, str]:
    """Tenants by the SHA-256 of their keys; empty where there is no such file."""
    try:
        return read_keys(Path(config.tenant_keys_file)) if config.tenant_keys_file else {}
    except ConfigError as error:
        faults.note("tenants", error, f"Tenants are {DIGITS} digits of their keys' SHA-256.")
        return {}


def read_keys(path: Path) -> Mapping[str, str]:
    """Read a TOML file of keys, or ``sha256:`` and their digests, and their tenants.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        entries = msgspec.convert(tomllib.loads(path.read_text("utf-8")), dict[str, str])
    except OSError as error:
        raise ConfigError(
            f"the file of keys {str(path)!r} cannot be read: {error.strerror}"
        ) from error
    except ValueError:  # its text may show a key
        raise ConfigError(
            f"the file of keys {str(path)!r} cannot be used; "
            'expected lines such as "KEY" = "TENANT", or "sha256:DIGEST" = "TENANT"'
        ) from None
    tenants = {_hash_of(key): tenant for key, tenant in entries.items()}
    if len(tenants) < len(entries):
        raise ConfigError(
            f"the file of keys {str(path)!r} cannot be used: a key and its digest stand in it"
        )
    return tenants


def _hash_of(key: str) -> str:
    return key.removeprefix(HASHED).lower() if key.startswith(HASHED) else _digest(key.encode())


def _shown(name: str) -> str:
    """A name as it is kept: of a bounded length, and of characters that can be printed.

    One that had to be changed ends with digits of its SHA-256: tenants are told apart by it.
    """
    if len(name) <= LONGEST and name.isprintable():
        return name
    digits = hashlib.sha256(name.encode("utf-8", BYTES)).hexdigest()[:DIGITS]
    cut = name[: LONGEST - DIGITS - 1]
    return "".join(one if one.isprintable() else "\ufffd" for one in cut) + f"-{digits}"
