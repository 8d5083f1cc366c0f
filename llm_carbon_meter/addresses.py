"""Addresses of HTTP services: which are taken, what of them is shown, and how they are asked."""

import base64
import ipaddress
from collections.abc import Mapping
from typing import IO, Final
from urllib.parse import unquote, urlsplit, urlunsplit

NOT_SHOWN: Final = "(not shown)"

Login = tuple[str, str]
"""User and password."""


def check_url(url: str, *, query: bool) -> str:
    """Give an address back that can be used.

    Args:
        url: the address.
        query: whether it may end with ``?…``; where a path is put behind an address, it may not.

    Raises:
        ValueError: it cannot be used; the text has nothing of it, since it may hold a password.
    """
    if not _is_url(url):
        raise ValueError("expected a URL such as http://127.0.0.1:8000")
    if not query and ("?" in url or "#" in url):
        raise ValueError("expected a URL such as http://127.0.0.1:8000, with nothing behind a ?")
    return url


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, or a port that is none
        return False


def shown_url(url: str) -> str:
    """An address as logs, errors, clients and terminals may have it: scheme, host and port.

    A user, a password, a path or a query may be a secret. An ``@`` behind the host may belong to a
    password with a ``/`` in it; then nothing is shown.
    """
    if not _is_url(url):
        return NOT_SHOWN
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:
        return NOT_SHOWN
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def split_login(url: str) -> tuple[str, Login | None]:
    """An address without its user and password, and these."""
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    if not login:
        return url, None
    user, _, password = login.partition(":")
    return urlunsplit(parts._replace(netloc=place)), (unquote(user), unquote(password))


def is_loopback(url: str) -> bool:
    """Whether an address is on this host, where no proxy has anything to do."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def open_url(
    url: str,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float,
) -> IO[bytes]:
    """Ask an address; on this host without the proxy that the environment names.

    Args:
        url: well formed.
        data: to be posted.
        headers: of the request.
        timeout_s: of the connection and of each read.

    Raises:
        OSError, ValueError, http.client.HTTPException: as `urllib.request.urlopen`; their texts may
            have the address.
    """
    import urllib.request  # takes a while, and the command line rarely asks

    address, login = split_login(url)
    request = urllib.request.Request(address, data, dict(headers or {}))  # noqa: S310 - http: check_url
    if login:
        token = base64.b64encode(":".join(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    proxies = [urllib.request.ProxyHandler({})] if is_loopback(address) else []
    answer: IO[bytes] = urllib.request.build_opener(*proxies).open(request, timeout=timeout_s)
    return answer
