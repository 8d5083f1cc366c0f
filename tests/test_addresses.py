"""Addresses of HTTP services: what of them is shown, and that this host is asked directly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.addresses import (
    NOT_SHOWN,
    check_url,
    is_loopback,
    open_url,
    shown_url,
    split_login,
)
from tests.support.receiver import Receiver

DEAD_PROXY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://user:pass@host:8000/v1?token=key#part", "http://host:8000"),
        ("https://hooks.example/services/T0/key", "https://hooks.example"),
        ("http://user:p%40ss@[::1]:8000/", "http://[::1]:8000"),
        ("http://user:p@ss@host/", "http://host"),
        ("http://user:pa/ss@host", NOT_SHOWN),
        ("http://user:12/34@host", NOT_SHOWN),
        ("http://user:pa?ss@host", NOT_SHOWN),
        ("http://user:pass", NOT_SHOWN),
        ("user:pass@host", NOT_SHOWN),
        ("htps://user:pass@host", NOT_SHOWN),
        ("http://[user:pass@host", NOT_SHOWN),
        ("", NOT_SHOWN),
    ],
)
def test_what_is_shown_of_an_address(url: str, shown: str) -> None:
    """Scheme, host and port, and nothing of what may be a secret."""
    assert shown_url(url) == shown


@given(st.text(min_size=1), st.text(min_size=1))
def test_no_password_is_ever_shown(user: str, password: str) -> None:
    """Whatever characters somebody forgot to escape."""
    shown = shown_url(f"http://{user}:SECRET{password}@host.example/path?token=SECRET")
    assert shown in (NOT_SHOWN, "http://host.example")


@pytest.mark.parametrize(
    "url", ["", "host:80", "ftp://host", "http://", "http://u:SECRET", "http://[SECRET"]
)
def test_an_address_that_cannot_be_used_is_not_in_the_error(url: str) -> None:
    """It says what is expected."""
    with pytest.raises(ValueError, match="expected a URL such as") as error:
        check_url(url, query=True)
    assert "SECRET" not in str(error.value)


def test_a_path_is_put_behind_no_query() -> None:
    """A webhook may have one, the address of a service may not."""
    assert check_url("http://host/?a=1", query=True) == "http://host/?a=1"
    with pytest.raises(ValueError, match="nothing behind"):
        check_url("http://host/?a=1", query=False)


def test_a_login_is_taken_out_of_an_address() -> None:
    """As it is meant, escapes resolved."""
    assert split_login("http://u:p%40s@[::1]:8000/v1") == ("http://[::1]:8000/v1", ("u", "p@s"))
    assert split_login("http://host/a@b") == ("http://host/a@b", None)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://user:pass@127.8.0.1/", True),
        ("http://LOCALHOST:1/", True),
        ("http://[::1]:8000/", True),
        ("http://10.0.0.1/", False),
        ("http://localhost.example/", False),
    ],
)
def test_which_addresses_are_on_this_host(url: str, loopback: bool) -> None:
    """By number and by name."""
    assert is_loopback(url) is loopback


def test_this_host_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login goes along as HTTP has it, and data are posted."""
    monkeypatch.setenv("http_proxy", DEAD_PROXY)
    monkeypatch.delenv("no_proxy", raising=False)
    with Receiver() as receiver:
        url = receiver.url.replace("//", "//user:pass@")
        with open_url(url + "/x", json.dumps([1]).encode(), timeout_s=5.0) as answer:
            assert answer.read() == b""
        assert receiver.next() == ("/x", [1])
        assert receiver.authorization == "Basic dXNlcjpwYXNz"


def test_other_hosts_are_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names one, only it may know the way."""
    with Receiver() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        open_url("http://far.example/x", b"[]", timeout_s=5.0).close()
        assert proxy.next() == ("http://far.example/x", [])
