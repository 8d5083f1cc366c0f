"""Whose a request is, what metrics call it, and who may read its record."""

import hashlib
from pathlib import Path

import pytest

from llm_carbon_meter.config import Config
from llm_carbon_meter.faults import Faults
from llm_carbon_meter.frontend.tenants import OTHER, UNKNOWN, Labels, Tenants, claim_of, read_keys
from llm_carbon_meter.records import ConfigError

KEY = b"sk-secret"
DIGEST = hashlib.sha256(KEY).hexdigest()


def tenants(way: str, **settings: object) -> Tenants:
    """Told in one way."""
    return Tenants(Config(tenant_from=way, **settings), Faults())  # type: ignore[arg-type]


def authorised(key: bytes = KEY) -> list[tuple[bytes, bytes]]:
    """Headers with a key, as clients send it."""
    return [(b"host", b"x"), (b"authorization", b"Bearer " + key)]


@pytest.mark.parametrize(
    ("way", "headers", "tenant"),
    [
        ("", [(b"x-tenant", b"acme")], None),
        ("header:X-Tenant", [(b"x-tenant", b" acme ")], "acme"),
        ("header:X-Tenant", [], None),
        ("header:X-Tenant", [(b"x-tenant", b"")], None),
        ("header:X-Tenant", [(b"x-tenant", b"victim"), (b"x-tenant", b"acme")], None),
        ("header:X-Tenant", [(b"x-tenant", "zürich".encode())], "zürich"),
        ("api_key", [(b"x-api-key", KEY)], DIGEST[:12]),
        ("api_key", [(b"x-api-key", b"other"), *authorised()], DIGEST[:12]),
        ("baggage:tenant", [(b"baggage", b"tenant=victim,tenant=me")], None),
        ("baggage:tenant", [(b"baggage", b"tenant=me;a=1, tenant=me")], "me"),
        ("api_key", authorised(), DIGEST[:12]),
        ("api_key", [(b"authorization", b"bearer  sk-secret")], DIGEST[:12]),
        ("api_key", [(b"authorization", b"Basic c2VjcmV0")], None),
        ("api_key", [], None),
        ("api_key", [*authorised(), (b"authorization", b"Bearer other")], DIGEST[:12]),
        ("baggage:tenant", [(b"baggage", b"a=1,tenant=acme%20gmbh;p=1")], "acme gmbh"),
        ("baggage:tenant", [(b"baggage", b"a=1")], None),
        ("baggage:tenant", [(b"baggage", b"tenant=")], None),
        ("baggage:tenant", [(b"baggage", b";;;=,,")], None),
    ],
)
def test_headers_name_a_tenant(
    way: str, headers: list[tuple[bytes, bytes]], tenant: str | None
) -> None:
    """In the one way of the settings; what is not clear is nobody's."""
    assert tenants(way).of(headers) == tenant


def test_an_adapter_or_a_claim_names_a_tenant() -> None:
    """Each only where the settings say so."""
    assert tenants("adapter").of((), "acme-lora", "claimed") == "acme-lora"
    assert tenants("adapter").of((), "", "claimed") is None
    assert tenants("claimed_user").of((), "acme-lora", "claimed") == "claimed"
    assert tenants("header:X-Tenant").of((), "acme-lora", "claimed") is None


@pytest.mark.parametrize(
    ("body", "claim"),
    [
        (b'{"user": "a", "model": "m"}', "a"),
        (b'{"user": "a", "safety_identifier": "b"}', "b"),
        (b'{"user": null}', ""),
        (b'{"user": 7}', ""),
        (b"[" * 5000, ""),
        (b"no json", ""),
        (b"", ""),
    ],
)
def test_a_body_claims_a_user(body: bytes, claim: str) -> None:
    """OpenAI's fields, the newer one first."""
    assert claim_of(body) == claim


def test_keys_have_names_from_a_file(tmp_path: Path) -> None:
    """Keys may stand there as their digests; others are named by twelve digits of theirs."""
    file = tmp_path / "keys.toml"
    file.write_text(f'"sha256:{DIGEST.upper()}" = "acme"\n"sk-plain" = "zeta"\n')
    named = tenants("api_key", tenant_keys_file=str(file))
    assert named.of(authorised()) == "acme"
    assert named.of(authorised(b"sk-plain")) == "zeta"
    assert len(named.of(authorised(b"sk-other")) or "") == 12


@pytest.mark.parametrize("text", ["what", '"sk-secret" = 7', None])
def test_a_file_of_keys_that_cannot_be_used(tmp_path: Path, text: str | None) -> None:
    """Nothing of it is told, since it holds keys; tenants are digests then."""
    file, faults, told = tmp_path / "keys.toml", Faults(), list[str]()
    if text is not None:
        file.write_text(text)
    faults.listen(told.append)
    named = Tenants(Config(tenant_from="api_key", tenant_keys_file=str(file)), faults)
    assert named.of(authorised()) == DIGEST[:12]
    assert told == ["tenants"]


def test_labels_are_of_a_closed_list() -> None:
    """Ten thousand tenants make one more series."""
    named = tenants("header:X-Tenant", tenants=("acme", "zeta"))
    assert named.label("acme") == "acme"
    assert named.label("other-one") == OTHER
    assert named.label(None) == UNKNOWN


def test_labels_are_the_first_that_come() -> None:
    """A hundred by default."""
    named = tenants("header:X-Tenant", tenant_limit=100)
    labels = {named.label(f"tenant-{number}") for number in range(10_000)}
    assert len(labels) == 101
    assert named.label("tenant-0") == "tenant-0"
    assert named.label("tenant-100") == OTHER
    assert Labels((), 1).of("a") == "a"


@pytest.mark.parametrize(
    "names",
    [
        (b"a" * 67 + b"1", b"a" * 67 + b"2"),
        (b"caf\xe9", b"caf\xe8"),
        (b"a\x00", b"a\x01"),
        (b"a" * 64, b"a" * 65),
    ],
)
def test_names_that_differ_stay_different(names: tuple[bytes, bytes]) -> None:
    """However they have to be changed, each is bounded and can be printed."""
    named = tenants("header:X-Tenant")
    first, second = (named.of([(b"x-tenant", name)]) for name in names)
    assert first is not None
    assert second is not None
    assert first != second
    for name in (first, second):
        assert len(name) <= 64
        assert name.encode().decode() == name
        assert all(one.isprintable() for one in name)
    assert not named.reader([(b"x-tenant", names[0])])(second)


def test_words_of_ours_are_quoted() -> None:
    """A tenant of that name is not added to those that have none."""
    named = tenants("header:X-Tenant")
    assert (named.label("unknown"), named.label(None)) == ('"unknown"', "unknown")
    assert named.label("other") == '"other"'


def test_a_request_that_was_refused_makes_no_label() -> None:
    """Keys that somebody invents push no customer out of the list."""
    named = tenants("api_key", tenant_limit=2)
    assert [named.label(name, new=False) for name in ("a", "b", "c")] == [OTHER] * 3
    assert named.label("acme") == "acme"
    assert named.label("acme", new=False) == "acme"


def test_a_file_of_keys_is_a_closed_list(tmp_path: Path) -> None:
    """Unless the settings have one of their own."""
    file = tmp_path / "keys.toml"
    file.write_text('"k" = "acme"\n"l" = "acme"\n"m" = "zeta"\n')
    assert tenants("api_key", tenant_keys_file=str(file)).named == ("acme", "zeta")
    listed = tenants("api_key", tenant_keys_file=str(file), tenants=("acme",))
    assert listed.named == ("acme",)


def test_a_key_and_its_digest_are_one_key(tmp_path: Path) -> None:
    """Nobody knows which of the two names counts."""
    file = tmp_path / "keys.toml"
    file.write_text(f'"sk-secret" = "acme"\n"sha256:{DIGEST}" = "zeta"\n')
    with pytest.raises(ConfigError, match="a key and its digest"):
        read_keys(file)


def test_who_asks_reads_its_own_alone() -> None:
    """An admin's key reads all; records of nobody are the admin's."""
    keyed = tenants("api_key", admin_key="boss")
    own = keyed.of(authorised())
    for key, expected in ((KEY, True), (b"sk-other", False), (b"boss", True)):
        assert keyed.reader(authorised(key))(own) == expected
        assert keyed.reader(authorised(key))(None) == (key == b"boss")
    assert not keyed.reader([])(own)
    assert not keyed.reader([])(None)


def test_an_empty_admin_key_opens_nothing() -> None:
    """No key at all is not the admin's."""
    assert not tenants("header:X-Tenant").reader([(b"authorization", b"Bearer ")])("acme")


@pytest.mark.parametrize("way", ["", "adapter", "claimed_user"])
def test_where_look_ups_say_nothing_they_are_not_guarded(way: str) -> None:
    """The server's own key is all there is."""
    assert tenants(way).reader([])("acme")
